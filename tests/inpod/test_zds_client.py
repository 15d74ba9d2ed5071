from __future__ import annotations

import os
import random

import pytest
import trio

from tests.support.cni_agent import SNAPSHOT_SENT, Agent, add_packet, delete_packet, keep_packet
from tests.support.cni_node import INFO, Manager, node, some_file
from tests.support.logs import capture_logs
from tests.support.namespaces import open_descriptors
from ztunnel.inpod.zds_client import ZdsClient
from ztunnel.inpod.zds_errors import ZdsProtocolError
from ztunnel.inpod.zds_session import PodCounts, PodState, PodView


async def test_a_conversation_from_hello_to_updates(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        with some_file() as netns:
            assert await agent.add("a", INFO, netns) == ""
            assert a_node.manager.namespaces["a"].st_ino == os.fstat(netns).st_ino
            assert a_node.manager.infos["a"] == INFO
            assert a_node.readiness == []
            assert await agent.ask(SNAPSHOT_SENT) == ""
            assert a_node.readiness == [True]
            assert await agent.add("b", INFO, netns) == ""
        assert a_node.client.counts() == PodCounts(active=2, pending=0, started=2, stopped=0)
        assert await agent.ask(delete_packet("a")) == ""
        assert a_node.manager.calls == ["start a", "start b", "stop a"]
        assert list(a_node.client.pods()) == [PodView("b", INFO, PodState.UP)]
        await trio.sleep(60)
        assert agent.silent(), "the agent hangs up on an unsolicited byte"


async def test_the_ack_waits_for_the_pods_sockets_and_keeps_the_order(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        a_node.manager.gate = trio.Event()
        with some_file() as netns:
            agent.send(add_packet("a", INFO), (netns,))
            agent.send(keep_packet("x"))
        a_node.manager.broken["a"] = "no"
        await trio.sleep(1)
        assert agent.silent()
        a_node.manager.gate.set()
        assert await agent.ack() == "failure to start proxy : no"
        assert await agent.ack() == ""


async def test_a_failed_pod_is_tried_again_after_five_seconds(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        await agent.ask(SNAPSHOT_SENT)
        a_node.manager.broken["a"] = "Bind([::]:15008, Address already in use (os error 98))"
        with some_file() as netns:
            error = await agent.add("a", INFO, netns)
        assert error == "failure to start proxy : Bind([::]:15008, Address already in use (os error 98))"
        assert a_node.client.counts().pending == 1
        start = trio.current_time()
        a_node.manager.calls.clear()
        await trio.sleep(4.9)
        assert a_node.manager.calls == []
        await trio.sleep(0.2)
        assert a_node.manager.calls == ["start a"]
        a_node.manager.broken.clear()
        await trio.sleep(5)
        assert a_node.manager.calls == ["start a", "start a"]
        assert a_node.client.counts() == PodCounts(active=1, pending=0, started=1, stopped=0)
        assert trio.current_time() - start < 11
        assert agent.silent(), "a retry is not acknowledged"


async def test_readiness_follows_the_tables_and_the_connection(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        await agent.ask(SNAPSHOT_SENT)
        a_node.manager.broken["a"] = "no"
        with some_file() as netns:
            await agent.add("a", INFO, netns)
        assert a_node.readiness == [True]
        await agent.ask(delete_packet("b"))
        assert a_node.readiness == [True, False]
        a_node.manager.broken.clear()
        await trio.sleep(6)
        assert a_node.readiness == [True, False, True]
        agent.close()
        await a_node.agent.greeted()
        assert a_node.readiness == [True, False, True, False]


async def test_pods_live_on_while_the_agent_is_away_and_those_it_comes_back_without_are_stopped(
    tmp_path, autojump_clock
):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        with some_file() as netns:
            await agent.add("a", INFO, netns)
            await agent.add("b", INFO, netns)
            await agent.ask(SNAPSHOT_SENT)
            agent.close()
            agent = await a_node.agent.greeted()
            assert a_node.client.counts().active == 2
            assert await agent.add("a", INFO, netns) == ""
            assert await agent.ask(SNAPSHOT_SENT) == ""
        assert a_node.manager.calls == ["start a", "start b", "stop b"]


async def test_a_pod_in_a_new_namespace_is_replaced(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        for number in (0, 0, 1):
            with some_file(number) as netns:
                assert await agent.add("a", INFO, netns) == ""
        assert a_node.manager.calls == ["start a", "stop a", "start a"]


@pytest.mark.parametrize(
    ("packet", "descriptors", "error"),
    [
        (add_packet("a", INFO), 0, "failure to read message : No control message"),
        (keep_packet("a"), 1, "failure to read message : Unexpected control message"),
        (delete_packet("a"), 1, "failure to read message : Unexpected control message"),
        (SNAPSHOT_SENT, 2, "failure to read message : Unexpected control message"),
        (b"\x0a\xff", 1, "failure to read message : "),
        (add_packet("a" * 1024, INFO), 1, "failure to read message : message is truncated"),
        (add_packet("a", INFO), 40, "failure to read message : message is truncated"),
    ],
)
async def test_an_unreadable_packet_is_refused_without_a_leak_and_the_connection_made_anew(
    tmp_path, autojump_clock, packet, descriptors, error
):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        with some_file() as netns:
            before = open_descriptors()
            assert (await agent.ask(packet, *([netns] * descriptors))).startswith(error)
            assert await agent.receive() == b""
            agent.close()
            again = await a_node.agent.greeted()
            assert open_descriptors() == before
            assert await again.add("a", INFO, netns) == ""
        assert a_node.manager.calls == ["start a"]


async def test_a_second_descriptor_is_closed(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        with some_file() as first, some_file(1) as second:
            before = open_descriptors()
            assert await agent.ask(add_packet("a", INFO), first, second) == ""
            assert open_descriptors() == before
            assert a_node.manager.namespaces["a"].st_ino == os.fstat(first).st_ino


@pytest.mark.parametrize(
    ("packet", "descriptors"), [(SNAPSHOT_SENT, 0), (keep_packet("a"), 0), (add_packet("a"), 1)]
)
async def test_a_broken_protocol_ends_the_client_after_a_nack(tmp_path, autojump_clock, packet, descriptors):
    nacks = []
    before = open_descriptors()
    with pytest.RaisesGroup(ZdsProtocolError) as caught:
        async with node(tmp_path) as a_node:
            agent = await a_node.agent.greeted()
            await agent.ask(SNAPSHOT_SENT)
            with some_file() as netns, trio.CancelScope(shield=True):
                nacks.append(await agent.ask(packet, *([netns] * descriptors)))
                assert await agent.receive() == b""
    assert nacks == [str(caught.value.exceptions[0])]
    assert nacks[0].startswith("failure to process message : ")
    assert open_descriptors() == before


async def test_an_agent_that_is_not_there_is_looked_for_with_growing_pauses(tmp_path, autojump_clock):
    path = tmp_path / "zds.sock"
    client = ZdsClient(str(path), Manager(), on_ready=lambda _: None, randomness=random.Random(0))
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await trio.sleep(100)
            messages = [record.message for record in records]
            assert messages[0] == (
                f'failed to connect to the Istio CNI node agent over "{path}", is the node agent healthy? '
                "details: No such file or directory (os error 2). retrying in 20ms"
            )
            pauses = [message.rpartition(" ")[2] for message in messages]
            assert pauses[:12] == [
                "20ms", "40ms", "80ms", "160ms", "320ms", "640ms",
                "1.28s", "2.56s", "5.12s", "10.24s", "15s", "15s",
            ]  # fmt: skip
            with Agent(path) as agent:
                connection = await agent.greeted()
                connection.close()
                connection = await agent.greeted()
            del records[:]
            connection.close()
            await trio.sleep(1)
            assert [record.message.rpartition(" ")[2] for record in records][1] == "20ms", (
                "a new outage starts anew"
            )
            nursery.cancel_scope.cancel()


async def test_after_a_useful_connection_the_next_one_follows_at_once(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        start = trio.current_time()
        for _ in range(5):
            agent = await a_node.agent.greeted()
            await agent.ask(SNAPSHOT_SENT)
            agent.close()
        await a_node.agent.greeted()
        assert trio.current_time() == start


async def test_an_agent_that_hangs_up_each_time_is_not_besieged(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        start = trio.current_time()
        for _ in range(2):
            (await a_node.agent.greeted()).close()
        assert trio.current_time() == start, "the first time costs nothing"
        for _ in range(10):
            (await a_node.agent.greeted()).close()
        assert 1.0 < trio.current_time() - start < 10.0


async def test_a_start_that_hangs_is_refused_in_time_for_the_agent(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        a_node.manager.stuck.add("a")
        start = trio.current_time()
        with some_file() as netns:
            assert await agent.add("a", INFO, netns) == "failure to start proxy : deadline has elapsed"
        assert trio.current_time() - start < 5


async def test_a_request_that_waits_comes_before_a_retry(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        for uid in "abc":
            a_node.manager.broken[uid] = "no"
            with some_file() as netns:
                await agent.add(uid, INFO, netns)
        a_node.manager.calls.clear()
        a_node.manager.gate = trio.Event()
        await trio.sleep(6)
        assert a_node.manager.calls == ["start a"]
        agent.send(delete_packet("b"))
        a_node.manager.gate.set()
        assert await agent.ack() == ""
        await trio.sleep(1)
        assert a_node.manager.calls == ["start a", "start c"]


async def test_cancelled_in_the_middle_of_a_start_nothing_is_left_open(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        a_node.manager.gate = trio.Event()
        with some_file() as netns:
            agent.send(add_packet("a", INFO), (netns,))
            agent.send(add_packet("b", INFO), (netns,))
        await trio.sleep(0.1)
        assert a_node.manager.calls == ["start a"]


async def test_a_pod_that_ended_by_itself_is_asked_for_again(tmp_path, autojump_clock):
    async with node(tmp_path) as a_node:
        agent = await a_node.agent.greeted()
        with some_file() as netns:
            for uid in ("a", "b"):
                assert await agent.add(uid, INFO, netns) == ""
            assert await agent.ask(SNAPSHOT_SENT) == ""
            a_node.client.pod_ended("a")
            assert [pod.uid for pod in a_node.client.pods()] == ["b"]
            assert agent.silent()
            began = trio.current_time()
            # Twice is as good as once.
            a_node.client.pod_ended("a")
            again = await a_node.agent.greeted()
            assert trio.current_time() - began == 5
            for uid in ("a", "b"):
                assert await again.add(uid, INFO, netns) == ""
            assert await again.ask(SNAPSHOT_SENT) == ""
        assert a_node.manager.calls == ["start a", "start b", "start a"]
        assert a_node.readiness == [True, False, True]
        await trio.sleep(60)
        assert again.silent()
