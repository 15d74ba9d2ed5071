"""SOCKS5 on loopback: the same way into the mesh, without redirection."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import AsyncIterator

import pytest
import trio

from tests.e2e.conftest import StandardMesh
from tests.support.pod import MeshPod, eventually
from tests.support.traffic import ended_by, read_all, read_exactly, serve

GREETING = b"\x05\x01\x00"


def request(address: str, port: int, *, command: int = 1, version: int = 5) -> bytes:
    packed = ipaddress.ip_address(address).packed
    kind = 1 if len(packed) == 4 else 4
    return bytes((version, command, 0, kind)) + packed + struct.pack("!H", port)


def answer(code: int) -> bytes:
    return bytes((5, code, 0, 1)) + bytes(6)


@contextlib.asynccontextmanager
async def socks(pod: MeshPod, address: str, port: int) -> AsyncIterator[trio.SocketStream]:
    async with await pod.connect("127.0.0.1", 15080) as stream:
        await stream.send_all(GREETING)
        assert await read_exactly(stream, 2) == b"\x05\x00"
        await stream.send_all(request(address, port))
        assert await read_exactly(stream, 10) == answer(0)
        yield stream


@pytest.mark.parametrize("name", ["VIP", "IPv4", "IPv6", "outside"])
async def test_requests_take_the_normal_way(standard: StandardMesh, name: str) -> None:
    client, server = standard.client, standard.outside if name == "outside" else standard.server
    address, port = {
        "VIP": (standard.vip, 80),
        "IPv4": (server.ipv4, 8080),
        "IPv6": (server.ipv6, 8080),
        "outside": (server.ipv4, 8080),
    }[name]
    before = len(client.access_log())
    async with serve(server, 8080), socks(client, address, port) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
        await stream.send_eof()
        assert await read_all(stream) == b""
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["direction"] == "outbound"
    assert ("dst.identity" in entry) == (name != "outside")
    assert entry["src.addr"].startswith("127.0.0.1:")


async def test_bytes_sent_together_with_the_request_are_not_lost(standard: StandardMesh) -> None:
    async with (
        serve(standard.server, 8080),
        await standard.client.connect("127.0.0.1", 15080) as stream,
    ):
        await stream.send_all(GREETING + request(standard.server.ipv4, 8080) + b"early")
        assert await read_exactly(stream, 17) == b"\x05\x00" + answer(0) + b"early"


async def test_a_request_in_single_bytes_is_understood(standard: StandardMesh) -> None:
    async with (
        serve(standard.server, 8080),
        await standard.client.connect("127.0.0.1", 15080) as stream,
    ):
        for byte in GREETING + request(standard.server.ipv4, 8080):
            await stream.send_all(bytes((byte,)))
        assert await read_exactly(stream, 12) == b"\x05\x00" + answer(0)
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"


@pytest.mark.parametrize(
    ("sent", "received", "logged"),
    [
        (b"\x04\x01\x00", answer(7), "CommandNotSupported: unsupported version 4"),
        (b"\x05\x00", answer(7), "CommandNotSupported: methods cannot be zero"),
        (b"\x05\x01\x02", answer(7), "CommandNotSupported: only unauthenticated is supported"),
        (
            GREETING + request("10.0.0.1", 80, command=2),
            b"\x05\x00" + answer(7),
            "CommandNotSupported: unsupported command 2",
        ),
        (
            GREETING + b"\x05\x01\x00\x05" + bytes(6),
            b"\x05\x00" + answer(7),
            "CommandNotSupported: unsupported address type 5",
        ),
        (
            GREETING + b"\x05\x01\x00\x03\x04name\x00\x50",
            b"\x05\x00" + answer(7),
            "CommandNotSupported: unsupported hostname lookup, requires DNS enabled",
        ),
    ],
)
async def test_what_is_not_supported_is_answered_and_logged(
    standard: StandardMesh, sent: bytes, received: bytes, logged: str
) -> None:
    async with await standard.client.connect("127.0.0.1", 15080) as stream:
        await stream.send_all(sent)
        assert await read_exactly(stream, len(received)) == received
        assert await ended_by(stream) in {"end", "reset"}
    text = f"failed to negotiate socks connection: {logged}"
    await eventually(
        lambda: any(line["message"] == text for line in standard.client.log()), f"logged {text!r}"
    )


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
async def test_it_cannot_be_led_back_into_itself(standard: StandardMesh, port: int) -> None:
    before = len(standard.client.access_log())
    async with socks(standard.client, "127.0.0.1", port) as stream:
        assert await ended_by(stream) == "reset"
    (entry,) = (await standard.client.logged(count=before + 1))[before:]
    assert entry["error"] == "attempted recursive call to ourselves"


async def test_only_loopback_is_served(standard: StandardMesh) -> None:
    with pytest.raises(ConnectionRefusedError):
        await standard.client.connect("::1", 15080)
