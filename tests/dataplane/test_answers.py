"""What a data plane answers to people: about connections, tunnels, descriptors and tasks."""

from __future__ import annotations

import os

import trio

from tests.support.data_plane import deny_port, echo, is_closed, read_all, running_plane, server, via_socks
from ztunnel.messages import Topic


async def never_reads(stream: trio.SocketStream) -> None:
    async with stream:
        await trio.Event().wait()


async def test_open_connections_are_told_with_bytes_and_what_they_wait_for():
    async with running_plane() as control, server(echo) as port, await via_socks(port) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some(100) == b"hello"
        found = await control.ask(Topic.CONNECTIONS, state="open")
        assert [one["direction"] for one in found] == ["outbound", "inbound"]
        for one in found:
            assert (one["pod"], one["waitsFor"], one["receivedBytes"]) == ("default/local", "nobody", 5)
            assert one["sendWindow"] > 1_000_000
            assert one["destination"].endswith(f":{port}") or one["direction"] == "inbound"
            assert one["route"]
        [tunnel, _] = await control.ask(Topic.POOL)
        assert (tunnel["streams"], tunnel["direction"]) == (1, "outbound")
        assert tunnel["peerIdentities"] == ["spiffe://cluster.local/ns/default/sa/default"]


STALLED = {"peer's window", "server"}


async def send_without_end(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"x" * 65536)


async def test_a_stalled_reader_is_named():
    async with (
        running_plane() as control,
        server(never_reads) as port,
        await via_socks(port) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_without_end, stream)
        before: list[tuple[str, int]] = []
        with trio.fail_after(60):
            while True:
                found = {one["direction"]: one for one in await control.ask(Topic.CONNECTIONS, state="open")}
                now = [(one.get("waitsFor"), one.get("receivedBytes", 0)) for one in found.values()]
                if now == before and all(waits_for in STALLED for waits_for, _ in now):
                    break
                before = now
                await trio.sleep(0.1)
        assert {side: one["waitsFor"] for side, one in found.items()} == {
            "outbound": "peer's window",
            "inbound": "server",
        }
        assert found["inbound"]["heldBytes"] > 0
        assert found["outbound"]["sendWindow"] == 0
        [tunnel, _] = await control.ask(Topic.POOL)
        assert tunnel["stalledStreams"] == 1
        tasks = await control.ask(Topic.TASKS)
        words = [word for one in tasks[1:] for word in one.get("doing", ())]
        assert any("waits for the peer's window" in word for word in words)
        nursery.cancel_scope.cancel()


async def test_connections_that_were_are_found_by_their_ids_codes_and_peers(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        await control.policies(deny_port(port))
        async with await via_socks(port) as stream:
            assert await is_closed(stream)
        await control.policies(removed=["default/deny"])
        async with await via_socks(port) as stream:
            await stream.send_eof()
            assert await read_all(stream) == b""
        await trio.sleep(0.1)
        everything = await control.ask(Topic.CONNECTIONS)
        assert [one["state"] for one in everything] == ["closed"] * 4
        failed = await control.ask(Topic.CONNECTIONS, failed="1")
        assert {one["code"] for one in failed} == {"ZT-POL-001", "ZT-HBN-010"}
        [denied] = await control.ask(Topic.CONNECTIONS, code="ZT-POL-001")
        assert denied["policy"] == "default/deny"
        assert "Rule 0 of default/deny denies it" in denied["why"]
        [again] = await control.ask(Topic.CONNECTIONS, id=denied["id"])
        assert again | {"ageSeconds": denied["ageSeconds"]} == denied
        assert len(await control.ask(Topic.CONNECTIONS, peer="default/local")) == 4
        assert await control.ask(Topic.CONNECTIONS, peer="default/nobody") == []


async def test_an_explanation_adds_what_is_true_at_this_moment(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        goal = {"from": "default/local", "to": f"127.0.0.1:{port}"}
        [before] = await control.ask(Topic.EXPLAIN, **goal)
        assert before["outcome"] == "allowed"
        async with await via_socks(port) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"
            [now] = await control.ask(Topic.EXPLAIN, **goal)
        assert now["live"]["tunnels"][0]["streams"] == 1
        assert now["live"]["connections"][0]["state"] == "open"
        assert any("is valid for" in sentence for sentence in now["live"]["sentences"])
    async with running_plane() as control:
        async with await via_socks(port) as stream:
            assert await is_closed(stream)
        await trio.sleep(0.1)
        [failing] = await control.ask(Topic.EXPLAIN, **goal)
        [latest] = failing["live"]["connections"]
        assert (latest["code"], "its application was not" in latest["why"]) == ("ZT-HBN-010", True)


async def test_unknown_names_and_parameters():
    async with running_plane() as control:
        [answer] = await control.ask(Topic.EXPLAIN, **{"from": "default/locl", "to": "1.1.1.1:80"})
        assert (answer["outcome"], answer["nearest"]) == ("unknown", ["default/local"])


async def test_every_descriptor_is_told_with_whose_it_is():
    async with running_plane() as control, server(echo) as port, await via_socks(port) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some(1) == b"x"
        found = await control.ask(Topic.SOCKETS)
        roles = {one["role"] for one in found if one["pod"] == "default/local"}
        assert {"outbound listener", "inbound listener", "application", "tunnel of a peer"} <= roles
        [tunnel] = [one for one in found if one["role"].startswith("tunnel to")]
        assert (tunnel["state"], tunnel["peer"]) == ("ESTABLISHED", "127.0.0.1:15008")


async def test_a_process_does_not_tell_its_tasks_twice():
    async with running_plane() as control:
        tasks = await control.ask(Topic.TASKS)
        assert tasks[0] == {"pid": os.getpid()}
        assert any(one["name"] == "pod default/local" for one in tasks[1:])
        assert await control.ask(Topic.TASKS, pid=str(os.getpid())) == []
