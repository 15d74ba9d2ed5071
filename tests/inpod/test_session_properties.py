"""Arbitrary conversations, held against a naive account of what they mean."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.inpod.fake_namespace import FakeNamespace
from ztunnel.inpod.codec import AddPod, DeletePod, KeepPod, SnapshotSent
from ztunnel.inpod.zds_errors import PodStartError, ZdsReadError
from ztunnel.inpod.zds_session import (
    Command,
    Commands,
    Fail,
    PodState,
    Reconnect,
    Release,
    SendAck,
    StartPod,
    StopPod,
    ZdsSession,
)
from ztunnel.messages import PodInfo

UIDS = st.sampled_from("abcd")
NAMESPACES = st.integers(1, 3)


class Conversation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.session = ZdsSession()
        self.open: set[FakeNamespace] = set()
        self.now = 0.0
        self.online = False
        self.snapshot: set[str] | None = None
        # What is open in truth, as a pod manager would have it.
        self.pods: dict[str, int] = {}
        self.waiting: dict[str, int] = {}

    def carry_out(
        self, commands: Commands, *, succeeds: bool = True
    ) -> tuple[list[str | None], Command | None]:
        """Do what a driver does. Gives the acks, and the last command."""
        acks: list[str | None] = []
        last: Command | None = None
        queue = list(commands)
        releases = [isinstance(command, Release) for command in queue]
        assert releases == sorted(releases, reverse=True), "a driver that is interrupted loses no release"
        while queue:
            last = command = queue.pop(0)
            match command:
                case SendAck(error):
                    acks.append(error)
                case Release(netns):
                    netns.close()
                case StopPod(uid):
                    del self.pods[uid]  # only what runs is stopped
                case StartPod(uid, _, netns):
                    assert netns in self.open, "a start gets an open namespace"
                    assert uid not in self.pods, "one proxy for a pod"
                    assert not queue
                    if succeeds:
                        self.pods[uid] = netns.identity
                        queue += self.session.started()
                    else:
                        queue += self.session.failed(PodStartError("no"), self.now)
        return acks, last

    @precondition(lambda self: not self.online)
    @rule()
    def connect(self):
        self.online = True
        self.snapshot = set()
        self.carry_out(self.session.connected())

    @precondition(lambda self: self.online)
    @rule()
    def disconnect(self):
        running = dict(self.pods)
        self._lose_connection()
        assert self.pods == running

    def _lose_connection(self) -> None:
        self.online = False
        self.waiting.clear()
        self.carry_out(self.session.disconnected())

    @precondition(lambda self: self.online)
    @rule(uid=UIDS, number=NAMESPACES, succeeds=st.booleans())
    def add(self, uid, number, succeeds):
        before = self.pods.get(uid)
        netns = FakeNamespace(number, self.open)
        info = PodInfo(uid, "ns", "sa")
        acks, _ = self.carry_out(self.session.receive(AddPod(uid, info), netns), succeeds=succeeds)
        if self.snapshot is not None:
            self.snapshot.add(uid)
        assert len(acks) == 1
        self.waiting.pop(uid, None)
        if before == number or succeeds:
            assert acks == [None]
            assert self.pods[uid] == number
        else:
            assert acks == ["failure to start proxy : no"]
            assert uid not in self.pods
            self.waiting[uid] = number

    @precondition(lambda self: self.online)
    @rule(uid=UIDS, number=NAMESPACES)
    def disconnect_during_a_start(self, uid, number):
        netns = FakeNamespace(number, self.open)
        commands = self.session.receive(AddPod(uid, PodInfo(uid, "ns", "sa")), netns)
        if isinstance(commands[-1], StartPod):
            self.carry_out(commands[:-1])
            self._lose_connection()
        else:
            self.carry_out(commands)
            self._lose_connection()

    @precondition(lambda self: self.online)
    @rule(uid=UIDS)
    def delete(self, uid):
        acks, _ = self.carry_out(self.session.receive(DeletePod(uid), None))
        assert acks == [None]
        self.waiting.pop(uid, None)
        if self.snapshot is not None:
            self.snapshot.discard(uid)
        else:
            assert uid not in self.pods

    @precondition(lambda self: self.online)
    @rule(uid=UIDS)
    def keep(self, uid):
        acks, last = self.carry_out(self.session.receive(KeepPod(uid), None))
        assert len(acks) == 1
        assert isinstance(last, Fail) == (self.snapshot is None)
        if self.snapshot is None:
            assert acks[0]
            self._lose_connection()
        else:
            self.snapshot.add(uid)

    @precondition(lambda self: self.online)
    @rule()
    def complete_the_snapshot(self):
        acks, last = self.carry_out(self.session.receive(SnapshotSent(), None))
        assert len(acks) == 1
        if self.snapshot is None:
            assert isinstance(last, Fail)
            self._lose_connection()
        else:
            assert set(self.pods) <= self.snapshot, "what the agent did not name is gone"
            self.snapshot = None
            assert self.session.ready == (not self.waiting)

    @precondition(lambda self: self.online)
    @rule()
    def send_rubbish(self):
        acks, last = self.carry_out(self.session.unreadable(ZdsReadError("x")))
        assert acks == ["failure to read message : x"]
        assert isinstance(last, Reconnect)
        self._lose_connection()

    @precondition(lambda self: self.session.retry_at is not None)
    @rule(succeeds=st.booleans())
    def retry(self, succeeds):
        retry_at = self.session.retry_at
        assert retry_at is not None
        self.now = max(self.now, retry_at)
        acks, _ = self.carry_out(self.session.retry(self.now), succeeds=succeeds)
        assert acks == []
        for uid in list(self.waiting):
            if uid in self.pods:
                assert self.pods[uid] == self.waiting.pop(uid)

    @precondition(lambda self: bool(self.pods))
    @rule(data=st.data())
    def end_by_itself(self, data):
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        del self.pods[uid]
        self.session.ended(uid)

    @invariant()
    def the_books_agree_with_what_is_open(self):
        shown = {pod.uid: pod.state for pod in self.session.pods()}
        expected = dict.fromkeys(self.pods, PodState.UP) | dict.fromkeys(self.waiting, PodState.PENDING)
        assert shown == expected
        counts = self.session.counts()
        assert (counts.active, counts.pending) == (len(self.pods), len(self.waiting))
        assert counts.started - counts.stopped == counts.active

    @invariant()
    def only_pending_pods_hold_a_namespace(self):
        assert sorted(handle.identity for handle in self.open) == sorted(self.waiting.values())

    @invariant()
    def while_a_pod_is_pending_a_retry_is_due(self):
        if self.waiting:
            assert self.session.retry_at is not None
            assert self.session.retry_at <= self.now + 5.0


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
