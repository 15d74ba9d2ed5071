"""A resolver over UDP and TCP that does what a test tells it to, and records its queries."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import trio

SO_RCVBUFFORCE = 33
"""asm-generic/socket.h; beyond what net.core.rmem_max allows."""

Behaviour = Callable[[bytes, bool], Iterable[bytes]]


def answer_with(*records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> Behaviour:
    """Answers each query with these records (``name ttl class type data``)."""

    def behave(query: bytes, tcp: bool) -> list[bytes]:
        return [reply_to(query, *records, rcode=rcode)]

    return behave


def reply_to(
    query: bytes, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, truncated: bool = False
) -> bytes:
    """Returns a reply as a real resolver would make it."""
    message = dns.message.make_response(
        dns.message.from_wire(query, ignore_trailing=True), recursion_available=True
    )
    message.set_rcode(rcode)
    if truncated:
        message.flags |= dns.flags.TC
    for record in records:
        name, ttl, *rest = record.split(maxsplit=4)
        message.answer.append(dns.rrset.from_text(name, int(ttl), *rest))
    return message.to_wire(max_size=65535)


def with_resolv_conf(path: Path) -> list[str]:
    """Returns a prefix for a command, which then sees this file as /etc/resolv.conf."""
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(path)]


def silent(query: bytes, tcp: bool) -> list[bytes]:
    """Never answers."""
    return []


@dataclass
class FakeResolver:
    """``asked``: each query, and whether it came over TCP. ``ports``, ``clients``: sources of those over UDP.

    ``delay``: seconds that each answer takes.
    """

    port: int
    behave: Behaviour
    asked: list[tuple[bytes, bool]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    delay: float = 0.0

    def asked_for(self, name: str) -> int:
        """Returns how often a name was asked for."""
        return sum(str(dns.message.from_wire(query).question[0].name) == name for query, _ in self.asked)


async def _serve_udp(resolver: FakeResolver, sock: trio.socket.SocketType) -> None:
    async def answer(query: bytes, peer: tuple[object, ...]) -> None:
        await trio.sleep(resolver.delay)
        for reply in resolver.behave(query, False):
            with contextlib.suppress(OSError):
                await sock.sendto(reply, peer)

    async with trio.open_nursery() as nursery:
        while True:
            query, peer = await sock.recvfrom(65535)
            resolver.asked.append((query, False))
            resolver.ports.append(peer[1])
            resolver.clients.add(peer[0])
            if resolver.delay:
                nursery.start_soon(answer, query, peer)
            else:
                await answer(query, peer)


async def _serve_tcp(resolver: FakeResolver, stream: trio.SocketStream) -> None:
    received = b""
    with contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            async for data in stream:
                received += data
                while len(received) >= 2 and len(received) >= 2 + int.from_bytes(received[:2], "big"):
                    end = 2 + int.from_bytes(received[:2], "big")
                    query, received = received[2:end], received[end:]
                    resolver.asked.append((query, True))
                    await trio.sleep(resolver.delay)
                    for reply in resolver.behave(query, True):
                        await stream.send_all(len(reply).to_bytes(2, "big") + reply)


@asynccontextmanager
async def fake_resolver(
    behave: Behaviour,
    address: str = "127.0.0.1",
    port: int = 0,
    make: Callable[[int, int], socket.socket] = socket.socket,
) -> AsyncIterator[FakeResolver]:
    """Serve while the block runs, on a port that the kernel chooses, or on this one.

    make: makes sockets of a family and a kind, in some network namespace.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        udp = trio.socket.from_stdlib_socket(make(family, socket.SOCK_DGRAM))
        tcp = trio.socket.from_stdlib_socket(make(family, socket.SOCK_STREAM))
        # A thousand queries at once are to wait for this process and not to be lost.
        with contextlib.suppress(PermissionError):
            udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        try:
            await udp.bind((address, port))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await tcp.bind((address, udp.getsockname()[1]))
            break
        except OSError as error:
            udp.close()
            tcp.close()
            if port or error.errno != errno.EADDRINUSE:
                raise
    tcp.listen(1024)
    resolver = FakeResolver(udp.getsockname()[1], behave)
    with udp, tcp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_udp, resolver, udp)

            async def serve(stream: trio.SocketStream) -> None:
                await _serve_tcp(resolver, stream)

            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(tcp)])
            yield resolver
            nursery.cancel_scope.cancel()
