"""Conversations: each row of docs/protocol/operations.md#cni-agent-conversation."""

from __future__ import annotations

import pytest

from tests.inpod.fake_namespace import FakeNamespace
from ztunnel.inpod.codec import AddPod, DeletePod, KeepPod, SnapshotSent
from ztunnel.inpod.zds_errors import PodStartError, ZdsReadError
from ztunnel.inpod.zds_session import (
    Fail,
    PodCounts,
    PodState,
    PodView,
    Reconnect,
    Release,
    SendAck,
    SendHello,
    SessionPhase,
    StartPod,
    StopPod,
    ZdsSession,
)
from ztunnel.messages import PodInfo

INFO = PodInfo("pod", "ns", "sa")
BIND_ERROR = PodStartError("Bind([::]:15008, Address already in use (os error 98))")


def connected() -> ZdsSession:
    session = ZdsSession()
    assert session.connected() == [SendHello()]
    return session


def add(session: ZdsSession, uid: str, netns: FakeNamespace, *, fails: PodStartError | None = None, now=0.0):
    """Add a pod and answer the start; gives all commands."""
    commands = session.receive(AddPod(uid, INFO), netns)
    if isinstance(commands[-1], StartPod):
        commands += session.failed(fails, now) if fails else session.started()
    return commands


def updating(*uids: str) -> ZdsSession:
    """A session whose snapshot had these pods, in namespaces numbered from 1."""
    session = connected()
    for number, uid in enumerate(uids, 1):
        add(session, uid, FakeNamespace(number))
    assert session.receive(SnapshotSent(), None) == [SendAck()]
    return session


def is_ready(session: ZdsSession) -> bool:
    return session.ready


def running(session: ZdsSession) -> set[str]:
    return {pod.uid for pod in session.pods() if pod.state is PodState.UP}


def test_an_unknown_pod_is_started_and_acknowledged_only_then():
    session = connected()
    netns = FakeNamespace(1)
    assert session.receive(AddPod("a", INFO), netns) == [StartPod("a", INFO, netns)]
    assert list(session.pods()) == [PodView("a", INFO, PodState.PENDING)]
    assert session.started() == [Release(netns), SendAck()]
    assert list(session.pods()) == [PodView("a", INFO, PodState.UP)]


@pytest.mark.parametrize("snapshot_first", [False, True])
def test_an_add_of_the_same_pod_in_the_same_namespace_changes_nothing(snapshot_first):
    session = connected()
    add(session, "a", FakeNamespace(1))
    if snapshot_first:
        session.receive(SnapshotSent(), None)
    again = FakeNamespace(1)
    other_info = PodInfo("other", "ns", "sa")
    assert session.receive(AddPod("a", other_info), again) == [Release(again), SendAck()]
    assert list(session.pods()) == [PodView("a", INFO, PodState.UP)]
    assert session.counts() == PodCounts(active=1, pending=0, started=1, stopped=0)


def test_an_add_of_the_same_pod_in_another_namespace_replaces_it():
    session = updating("a")
    other = FakeNamespace(2)
    assert session.receive(AddPod("a", INFO), other) == [StopPod("a"), StartPod("a", INFO, other)]
    assert session.started() == [Release(other), SendAck()]
    assert session.counts() == PodCounts(active=1, pending=0, started=2, stopped=1)


def test_a_replacement_that_fails_leaves_neither_running():
    session = updating("a")
    assert add(session, "a", FakeNamespace(2), fails=BIND_ERROR)[0] == StopPod("a")
    assert running(session) == set()
    assert session.counts() == PodCounts(active=0, pending=1, started=1, stopped=1)


def test_an_add_without_workload_info_ends_the_process_after_a_nack():
    session = updating()
    netns = FakeNamespace(1)
    release, nack, fail = session.receive(AddPod("a", None), netns)
    assert release == Release(netns)
    assert isinstance(fail, Fail)
    assert nack == SendAck(str(fail.error))
    assert str(fail.error).startswith("failure to process message : ")


def test_a_failed_start_is_refused_and_pending():
    session = updating()
    netns = FakeNamespace(1)
    assert add(session, "a", netns, fails=BIND_ERROR, now=100.0) == [
        StartPod("a", INFO, netns),
        SendAck("failure to start proxy : Bind([::]:15008, Address already in use (os error 98))"),
    ]
    assert list(session.pods()) == [PodView("a", INFO, PodState.PENDING)]
    assert session.counts() == PodCounts(active=0, pending=1, started=0, stopped=0)
    assert session.retry_at == 105.0


def test_an_added_pod_survives_the_reconciliation():
    assert running(updating("a", "b")) == {"a", "b"}


def test_a_kept_pod_survives_the_reconciliation_and_the_others_are_stopped():
    session = updating("a", "b")
    session.disconnected()
    assert running(session) == {"a", "b"}
    session.connected()
    assert session.receive(KeepPod("a"), None) == [SendAck()]
    assert session.receive(SnapshotSent(), None) == [StopPod("b"), SendAck()]
    assert running(session) == {"a"}


def test_keeping_an_unknown_pod_is_acknowledged():
    session = connected()
    assert session.receive(KeepPod("nobody"), None) == [SendAck()]
    assert session.receive(SnapshotSent(), None) == [SendAck()]
    assert list(session.pods()) == []


@pytest.mark.parametrize("request_", [KeepPod("a"), SnapshotSent()])
def test_what_belongs_to_the_snapshot_ends_the_process_when_it_comes_later(request_):
    session = updating("a")
    nack, fail = session.receive(request_, None)
    assert isinstance(fail, Fail)
    assert nack == SendAck(str(fail.error))


def test_deleting_stops_a_running_pod():
    session = updating("a")
    assert session.receive(DeletePod("a"), None) == [StopPod("a"), SendAck()]
    assert session.counts() == PodCounts(active=0, pending=0, started=1, stopped=1)


def test_deleting_forgets_a_pending_pod():
    session = updating()
    netns = FakeNamespace(1)
    add(session, "a", netns, fails=BIND_ERROR)
    assert session.receive(DeletePod("a"), None) == [Release(netns), SendAck()]
    assert list(session.pods()) == []
    assert session.retry(5.0) == []
    assert session.retry_at is None


def test_deleting_an_unknown_pod_is_fine():
    assert updating().receive(DeletePod("nobody"), None) == [SendAck()]


def test_before_the_snapshot_a_deleted_pod_runs_until_the_reconciliation():
    session = updating("a")
    session.disconnected()
    session.connected()
    add(session, "a", FakeNamespace(1))
    assert session.receive(DeletePod("a"), None) == [SendAck()]
    assert running(session) == {"a"}
    assert session.receive(SnapshotSent(), None) == [StopPod("a"), SendAck()]


def test_before_the_snapshot_deleting_forgets_a_pending_pod():
    session = connected()
    netns = FakeNamespace(1)
    add(session, "a", netns, fails=BIND_ERROR)
    assert session.receive(DeletePod("a"), None) == [Release(netns), SendAck()]


def test_an_unreadable_packet_is_refused_and_the_connection_begun_anew():
    session = updating("a")
    error = ZdsReadError("No control message")
    assert session.unreadable(error) == [
        SendAck("failure to read message : No control message"),
        Reconnect(),
    ]
    assert running(session) == {"a"}


def test_a_new_connection_forgets_snapshot_and_pending_pods_but_not_running_ones():
    session = connected()
    add(session, "a", FakeNamespace(1))
    netns = FakeNamespace(2)
    add(session, "b", netns, fails=BIND_ERROR)
    assert session.disconnected() == [Release(netns)]
    assert session.retry_at is None
    assert session.phase is SessionPhase.DISCONNECTED
    session.connected()
    assert session.receive(SnapshotSent(), None) == [StopPod("a"), SendAck()]


def test_all_pending_pods_are_tried_again_after_five_seconds_and_again_while_any_remain():
    session = updating()
    first, second = FakeNamespace(1), FakeNamespace(2)
    add(session, "a", first, fails=BIND_ERROR, now=10.0)
    add(session, "b", second, fails=BIND_ERROR, now=12.0)
    assert session.retry_at == 15.0

    assert session.retry(15.0) == [StartPod("a", INFO, first)]
    assert session.counts().pending == 2
    assert session.started() == [Release(first)], "a retry is not acknowledged"
    assert session.retry_at == 15.0, "the round goes on at once"
    assert session.retry(15.0) == [StartPod("b", INFO, second)]
    assert session.failed(BIND_ERROR, 16.0) == []
    assert session.retry_at == 21.0

    assert session.retry(21.0) == [StartPod("b", INFO, second)]
    assert session.started() == [Release(second)]
    assert not session.counts().pending
    assert session.counts() == PodCounts(active=2, pending=0, started=2, stopped=0)
    assert session.retry(100.0) == []


def test_a_request_may_come_in_the_middle_of_a_round_of_retries():
    session = updating()
    namespaces = [FakeNamespace(number) for number in range(3)]
    for uid, netns in zip("abc", namespaces, strict=True):
        add(session, uid, netns, fails=BIND_ERROR)
    session.retry(5.0)
    session.failed(BIND_ERROR, 5.0)
    assert session.receive(DeletePod("b"), None) == [Release(namespaces[1]), SendAck()]
    assert session.retry(5.0) == [StartPod("c", INFO, namespaces[2])]
    session.failed(BIND_ERROR, 5.0)
    assert session.retry_at == 10.0


def test_adding_a_pending_pod_again_tries_it_at_once_in_the_new_namespace():
    session = updating()
    old, new = FakeNamespace(1), FakeNamespace(2)
    add(session, "a", old, fails=BIND_ERROR)
    assert session.receive(AddPod("a", INFO), new) == [Release(old), StartPod("a", INFO, new)]
    assert session.started() == [Release(new), SendAck()]
    assert session.counts() == PodCounts(active=1, pending=0, started=1, stopped=0)


def test_ready_with_the_snapshot_and_no_longer_after_a_disconnect():
    session = connected()
    add(session, "a", FakeNamespace(1))
    assert not is_ready(session)
    session.receive(SnapshotSent(), None)
    assert is_ready(session)
    session.disconnected()
    assert not is_ready(session)
    session.connected()
    assert not is_ready(session)


def test_not_ready_with_the_snapshot_while_a_pod_is_pending():
    session = connected()
    add(session, "a", FakeNamespace(1), fails=BIND_ERROR)
    session.receive(SnapshotSent(), None)
    assert not is_ready(session)
    session.retry(5.0)
    session.started()
    assert is_ready(session)


def test_a_failed_add_shows_in_readiness_with_the_next_request():
    session = updating()
    add(session, "a", FakeNamespace(1), fails=BIND_ERROR)
    assert is_ready(session)
    session.receive(DeletePod("other"), None)
    assert not is_ready(session)


def test_a_disconnect_during_a_start_gives_the_namespace_back():
    session = connected()
    netns = FakeNamespace(1)
    session.receive(AddPod("a", INFO), netns)
    assert session.disconnected() == [Release(netns)]
    assert list(session.pods()) == []


def test_a_pod_that_ended_by_itself_is_started_when_it_is_added_again():
    session = updating("a")
    session.ended("a")
    session.ended("nobody")
    assert session.counts() == PodCounts(active=0, pending=0, started=1, stopped=1)
    netns = FakeNamespace(1)
    assert session.receive(AddPod("a", INFO), netns) == [StartPod("a", INFO, netns)]


def test_calls_out_of_turn_are_refused():
    session = ZdsSession()
    with pytest.raises(RuntimeError):
        session.receive(SnapshotSent(), None)
    session.connected()
    with pytest.raises(RuntimeError):
        session.connected()
    with pytest.raises(RuntimeError):
        session.started()
    with pytest.raises(RuntimeError):
        session.receive(AddPod("a", INFO), None)
    session.receive(AddPod("a", INFO), FakeNamespace(1))
    with pytest.raises(RuntimeError):
        session.receive(SnapshotSent(), None)
    with pytest.raises(RuntimeError):
        session.retry(5.0)
    with pytest.raises(RuntimeError):
        session.unreadable(ZdsReadError("x"))
