"""The mesh fixture's own parts, proven without any ztunnel."""

from __future__ import annotations

import random

import pytest
import trio
import yaml

from tests.support.local_file import Exact, Presence, to_yaml
from tests.support.mesh import Mesh
from tests.support.raw_hbone import raw_client, raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import ended_by, pattern, read_exactly, receive_pattern, reset, send_pattern, serve


async def test_raw_peers_talk_to_each_other(fresh_mesh: Mesh) -> None:
    first = fresh_mesh.node("a").pod("first", captured=False)
    second = fresh_mesh.node("b").pod("second", captured=False)
    root = KeyPair.load(fresh_mesh.root)
    ours, theirs = TlsChoices(root.issue(first.identity)), TlsChoices(root.issue(second.identity))
    async with (
        raw_server(second, theirs) as server,
        raw_client(first, second.ipv4, ours) as client,
    ):
        assert client.tls.peer_uri() == second.identity
        stream = await client.connect("10.77.2.10:8080", baggage="k8s.namespace.name=default")
        assert stream.status == 200
        assert await client.exchange(stream, b"x" * 300_000) == b"x" * 300_000
        assert dict(server.requests[0].headers)["baggage"] == "k8s.namespace.name=default"


async def test_exact_transfers_notice_every_difference(fresh_mesh: Mesh) -> None:
    pod = fresh_mesh.node("a").pod("pod", captured=False)
    chunks = random.Random(1)

    async def falsify(stream: trio.SocketStream) -> None:
        kind = await stream.receive_some(1)
        await send_pattern(stream, 4_000_000, chunks)
        data = bytearray(pattern(4_000_000, 100_000))
        if kind == b"f":
            data[50_000] ^= 1
        elif kind == b"l":
            del data[50_000]
        elif kind == b"s":
            data[10:12] = bytes((data[11], data[10]))
        await stream.send_all(data)

    async with serve(pod, 8080, falsify):
        async with await pod.connect(pod.ipv4, 8080) as stream:
            await stream.send_all(b"-")
            assert await receive_pattern(stream) == 4_100_000
        for kind in (b"f", b"l", b"s"):
            async with await pod.connect(pod.ipv4, 8080) as stream:
                await stream.send_all(kind)
                with pytest.raises(AssertionError, match="differ"):
                    await receive_pattern(stream)


async def test_an_end_and_a_reset_are_told_apart(fresh_mesh: Mesh) -> None:
    pod = fresh_mesh.node("a").pod("pod", captured=False)

    async def obey(stream: trio.SocketStream) -> None:
        if await read_exactly(stream, 1) == b"r":
            reset(stream)

    async with serve(pod, 8080, obey):
        for order, outcome in ((b"r", "reset"), (b"e", "end")):
            async with await pod.connect(pod.ipv4, 8080) as stream:
                await stream.send_all(order)
                assert await ended_by(stream) == outcome


def test_string_matches_get_their_tags() -> None:
    text = to_yaml({"principals": [Exact("a/b"), Presence()]})
    assert "!Exact 'a/b'" in text or "!Exact a/b" in text
    document = yaml.compose(text)
    assert document is not None
    assert [node.tag for node in document.value[0][1].value] == ["!Exact", "!Presence"]
