"""The DNS proxy of one pod: its sockets on localhost:15053, UDP and TCP, and how they are served and closed.

A datagram that the mesh can answer is answered at once, in the loop that reads it. One that must be
forwarded, or whose pod is unknown, gets a task. The number of these tasks is limited; above the limit the
answer is SERVFAIL at once. If a client repeats its query while that is in progress, it gets one answer for
both.

TCP connections are limited too. The queries of one connection are answered in order, one at a time; what a
client sends ahead waits in its socket.

The end of a drain is difficult with UDP. The socket must stay open, because replies have to come from it. But
with SO_REUSEPORT the kernel distributes arriving queries to all sockets of the address, and those for our
socket would be lost for the ztunnel that takes over. So the socket is connected to itself: then it receives
from nobody else, and can still send to everybody. It is closed after the last reply.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import trio

from ztunnel.bounds import DEFAULTS, DnsBounds
from ztunnel.config.model import ListenAddress
from ztunnel.dns.dns_errors import QueryLoopError, TooManyQueriesError
from ztunnel.dns.framing import MessageStream
from ztunnel.dns.listeners import DnsSockets
from ztunnel.dns.message import LONGEST_TCP, TYPE_AXFR, TYPE_IXFR, Query, Rcode, Refused, parse_query
from ztunnel.dns.reply import error_reply
from ztunnel.dns.resolver import Resolver
from ztunnel.model.address import SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.sockets.accept import accept_forever, accept_waiting
from ztunnel.sockets.addresses import from_sockaddr
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.listen import Listener

log = get_logger("dns::server")

_READS_PER_WAKEUP = 16


class DnsProxy:
    """The listeners of one pod. Call `serve`, then `shut` and `close`.

    sockets: already bound; they are closed here. name: ``namespace/pod``. address: as configured, for the
        log.
    """

    def __init__(
        self,
        resolver: Resolver,
        sockets: DnsSockets,
        *,
        name: str,
        address: ListenAddress,
        budget: DescriptorBudget | None = None,
        bounds: DnsBounds = DEFAULTS.dns,
    ) -> None:
        self._bounds = bounds
        self._resolver = resolver
        self._sockets = sockets
        self._budget = budget
        self._log = log.bind_span("dns_proxy", wl=name)
        self._waiting: set[tuple[Any, bytes]] = set()
        self._waiting_bytes = 0
        self._connections = 0
        self._idle: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None
        self._shut = False
        self._overloaded = False
        self._log.info("starting local DNS server", address=address, component="dns")

    async def serve(self, nursery: trio.Nursery) -> None:
        """Read and accept until cancelled. What was begun continues in ``nursery``."""
        self._nursery = nursery
        async with trio.open_nursery() as loops:
            for sock in self._sockets.datagrams:
                loops.start_soon(self._read, sock, name=f"dns datagrams {from_sockaddr(sock.getsockname())}")
            for listener in self._sockets.listeners:
                loops.start_soon(self._accept, listener, nursery, name=f"dns listener {listener.address}")

    def shut(self) -> None:
        """Accept no more queries after those that have arrived. What is in progress is still answered."""
        self._log.info("shutting down the DNS server")
        self._shut = True
        for scope in self._idle:
            scope.cancel()
        for listener in self._sockets.listeners:
            assert self._nursery is not None
            accept_waiting(listener, self._on_connection, self._nursery, component="dns", budget=self._budget)
            listener.close()
        for sock in self._sockets.datagrams:
            try:
                self._read_some(sock, self._bounds.queries)
                sock.connect(sock.getsockname())
                self._read_some(sock, self._bounds.queries)
            except OSError as error:
                self._log.debug(f"could not close a DNS socket to queries: {error}")
        if not self._waiting:
            self._sockets.close_datagrams()

    def drained(self) -> None:
        """Log that nothing is in progress any more, after `shut`."""
        if self._shut:
            self._log.info("dns server drained")

    def close(self) -> None:
        """Close all sockets."""
        self._sockets.close()

    # -- UDP ---------------------------------------------------------------------------------------------

    async def _read(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                self._read_some(sock, _READS_PER_WAKEUP)
            except OSError as error:
                self._log.warn(f"could not read DNS queries: {error}")
                await trio.sleep(self._bounds.read_pause)

    def _read_some(self, sock: socket.socket, most: int) -> None:
        for _ in range(most):
            try:
                message, peer = sock.recvfrom(LONGEST_TCP)
            except BlockingIOError:
                return
            reply = self._guarded(self._on_datagram, sock, message, peer)
            if reply is not None:
                _send(sock, reply, peer)

    def _guarded(self, work: Callable[..., bytes | None], *arguments: Any) -> bytes | None:
        """Run a task. A bug in the processing of one query ends this query only."""
        try:
            return work(*arguments)
        except Exception as error:  # noqa: BLE001  # the boundary of one query
            self._log.error("a DNS query failed", exc_info=error)
            return None

    def _on_datagram(self, sock: socket.socket, message: bytes, peer: Any) -> bytes | None:
        """Returns the reply if it can be made at once; otherwise starts a task."""
        query = self._parsed(message)
        if not isinstance(query, Query):
            return query
        resolver = self._resolver
        if resolver.upstream.is_own(from_sockaddr(peer)):
            return resolver.refuse(query, QueryLoopError(), tcp=False)
        reply = resolver.from_mesh(query, tcp=False)
        if reply is not None:
            return reply
        key = (peer, message)
        if key in self._waiting:
            return None
        if (
            len(self._waiting) >= self._bounds.queries
            or self._waiting_bytes + len(message) > self._bounds.query_bytes
        ):
            return self._overload(query, tcp=False)
        assert self._nursery is not None
        self._waiting.add(key)
        self._waiting_bytes += len(message)
        name = f"dns {query.type_name} {query.name}"
        self._nursery.start_soon(self._answer_datagram, sock, query, key, name=name)
        return None

    def _parsed(self, message: bytes) -> Query | bytes | None:
        query = parse_query(message)
        if isinstance(query, Refused):
            if query.why:
                self._log.warn(query.why)
            return query.reply
        return query

    async def _answer_datagram(self, sock: socket.socket, query: Query, key: tuple[Any, bytes]) -> None:
        try:
            _send(sock, await self._resolver.resolve(query, tcp=False), key[0])
        except Exception as error:  # noqa: BLE001  # the boundary of one query
            self._log.error("a DNS query failed", exc_info=error)
            _send(sock, error_reply(query, Rcode.SERVFAIL), key[0])
        finally:
            self._waiting.discard(key)
            self._waiting_bytes -= len(key[1])
            if len(self._waiting) < self._bounds.queries // 2:
                self._overloaded = False
            if self._shut and not self._waiting:
                self._sockets.close_datagrams()

    def _overload(self, query: Query, *, tcp: bool) -> bytes:
        if not self._overloaded:
            self._overloaded = True
            self._log.warn(
                "too many DNS queries wait for an answer; further ones are answered with SERVFAIL",
                queries=len(self._waiting),
                connections=self._connections,
            )
        return self._resolver.refuse(query, TooManyQueriesError(), tcp=tcp)

    # -- TCP ---------------------------------------------------------------------------------------------

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        await accept_forever(listener, self._on_connection, nursery, component="dns", budget=self._budget)

    async def _on_connection(self, sock: socket.socket, peer: SocketAddress) -> None:
        try:
            if self._connections >= self._bounds.connections:
                self._log.debug("too many DNS connections of this pod; one was closed", peer=peer)
                return
            self._connections += 1
            try:
                await self._serve_connection(MessageStream(sock), peer)
            finally:
                self._connections -= 1
        except OSError as error:
            self._log.debug(f"a DNS connection ended: {error}", peer=peer)
        except Exception as error:  # noqa: BLE001  # the boundary of one connection
            self._log.error("a DNS connection's task failed; the connection is closed", exc_info=error)
        finally:
            sock.close()

    async def _serve_connection(self, stream: MessageStream, peer: SocketAddress) -> None:
        while True:
            message = await self._next_query(stream)
            if message is None:
                return
            # A client that sends faster than we answer must not delay others.
            await trio.lowlevel.checkpoint()
            query = self._parsed(message)
            if query is None:
                continue
            if isinstance(query, Query) and query.qtype in {TYPE_AXFR, TYPE_IXFR}:
                await self._transfer(stream, query)
                return
            reply = await self._reply(query, peer) if isinstance(query, Query) else query
            if not await _deliver(stream, reply, self._bounds.idle_timeout):
                return

    async def _next_query(self, stream: MessageStream) -> bytes | None:
        # After `shut`, only what has arrived is read.
        with trio.move_on_after(0 if self._shut else self._bounds.idle_timeout) as scope:
            self._idle.add(scope)
            try:
                return await stream.receive()
            finally:
                self._idle.discard(scope)
        return None

    async def _reply(self, query: Query, peer: SocketAddress) -> bytes:
        resolver = self._resolver
        if resolver.upstream.is_own(peer):
            return resolver.refuse(query, QueryLoopError(), tcp=True)
        return await resolver.resolve(query, tcp=True)

    async def _transfer(self, stream: MessageStream, query: Query) -> None:
        """A zone transfer has many messages; only its client recognises the last one."""

        async def pass_on(message: bytes) -> None:
            if not await _deliver(stream, message, self._bounds.idle_timeout):
                raise ConnectionResetError("the client takes nothing more")

        await self._resolver.transfer(query, pass_on)


def _send(sock: socket.socket, reply: bytes, peer: Any) -> None:
    """Send a datagram.

    If the client is gone or its buffer is full, the reply is lost, as with UDP in general.
    """
    try:
        sock.sendto(reply, peer)
    except OSError as error:
        log.debug(f"could not send a DNS reply: {error}")


async def _deliver(stream: MessageStream, reply: bytes, seconds: float) -> bool:
    """Send over TCP. Returns False when the client does not read it."""
    with trio.move_on_after(seconds):
        await stream.send(reply)
        return True
    return False
