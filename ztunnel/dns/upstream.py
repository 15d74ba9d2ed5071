"""The real resolver: sends the bytes of a query to it and returns the bytes of its answer.

How a query goes. Each query has a socket of its own, so the kernel chooses a random port, and a random id.
The socket is connected, so the kernel drops datagrams from other addresses. Only an answer with the right id
and question is accepted. Everything else is ignored until the time is over; if much of it comes, somebody may
be guessing, and the next try has another port and id.

A try takes ``timeout`` seconds. The next one goes to the next server, or through the same socket to the same
server, so a late answer to an earlier try still counts. After SERVFAIL and REFUSED another server is tried;
the error is returned if no server has a better answer. A server that did not answer is asked last for a
while.

A query over TCP is forwarded over TCP: its client has seen a truncated answer, or wants none.

Everything here is limited. Queries that differ only in their ids share one exchange. (This also prevents an
attacker from having many guesses at the same time, RFC 5452 section 5, and a query that a resolver sends back
to us waits for itself and does not loop.) The number of exchanges is limited, and each ends after ``tries``
times ``timeout`` seconds.

There is no cache. The answer must be the resolver's for exactly these bytes (EDNS options, DNSSEC flags, the
case of the name), and these vary so much that a cache would rarely help. The resolver has a cache, and so do
applications that need one.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from random import Random

import trio

from ztunnel.bounds import DEFAULTS, DnsBounds
from ztunnel.dns.dns_errors import (
    NoNameserverError,
    TooManyQueriesError,
    UpstreamError,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from ztunnel.dns.framing import MessageStream
from ztunnel.dns.message import LONGEST_TCP, Query, Rcode, is_reply_to, read_reply
from ztunnel.dns.resolv_conf import ResolvConf
from ztunnel.errors import os_error_text
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.sockets.addresses import local_address
from ztunnel.sockets.dial import connect
from ztunnel.sockets.factories import SocketFactory

PORT = 53
"""Of nameservers."""
_TRY_ELSEWHERE = {Rcode.SERVFAIL, Rcode.REFUSED}


class _Exchange:
    """One query in progress, for all who wait for it."""

    __slots__ = ("done", "error", "reply")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.reply = b""
        self.error: UpstreamError | None = None


class _NoAnswerError(Exception):
    """Too many datagrams over UDP were no valid answer."""


class Upstream:
    """The nameservers of one pod, asked from its network namespace.

    mark: SO_MARK of the sockets, so that they are not redirected to ourselves. port: for tests.
    """

    def __init__(
        self,
        conf: ResolvConf,
        sockets: SocketFactory,
        *,
        mark: int | None,
        random: Random,
        port: int = PORT,
        bounds: DnsBounds = DEFAULTS.dns,
    ) -> None:
        self._bounds = bounds
        self._conf = conf
        self._sockets = sockets
        self._mark = mark
        self._random = random
        self._port = port
        self._exchanges: dict[tuple[bool, bytes], _Exchange] = {}
        self._bytes = 0
        self._turn = 0
        self._avoid_until: dict[IPAddress, float] = {}
        self._own: set[SocketAddress] = set()

    @property
    def under_way(self) -> int:
        """How many different queries are in progress."""
        return len(self._exchanges)

    def is_own(self, client: SocketAddress) -> bool:
        """Returns whether a query from ``client`` is one that we sent ourselves."""
        return client in self._own

    async def ask(self, query: Query, *, tcp: bool) -> bytes:
        """Returns the answer of a nameserver, under the query's own id. Raises UpstreamError."""
        key = (tcp, query.without_id)
        exchange = self._exchanges.get(key)
        if exchange is None:
            exchange = await self._lead(key, query, tcp=tcp)
        else:
            await exchange.done.wait()
        if exchange.error is not None:
            raise exchange.error.with_traceback(None)
        return query.message[:2] + exchange.reply[2:]

    async def _lead(self, key: tuple[bool, bytes], query: Query, *, tcp: bool) -> _Exchange:
        """Ask for all who wait for the same query."""
        size = len(query.message)
        bounds = self._bounds
        if len(self._exchanges) >= bounds.forwarded or self._bytes + size > bounds.query_bytes:
            raise TooManyQueriesError
        exchange = self._exchanges[key] = _Exchange()
        exchange.error = UpstreamUnreachable("the query was cancelled")
        self._bytes += size
        try:
            exchange.reply = await (self._over_tcp(query) if tcp else self._over_udp(query))
            exchange.error = None
        except UpstreamError as error:
            exchange.error = error
        finally:
            del self._exchanges[key]
            self._bytes -= size
            exchange.done.set()
        return exchange

    # -- which server ------------------------------------------------------------------------------------

    def _order(self) -> list[IPAddress]:
        """Returns the nameservers in the order in which to ask them. Raises NoNameserverError."""
        servers = list(self._conf.nameservers)
        if not servers:
            raise NoNameserverError(self._conf.problem)
        if self._conf.rotate:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        if self._avoid_until and len(servers) > 1:
            now = trio.current_time()
            servers.sort(key=lambda server: self._avoid_until.get(server, -math.inf) > now)
        return servers

    def _avoid(self, server: IPAddress) -> None:
        self._avoid_until[server] = trio.current_time() + self._bounds.avoid

    # -- UDP ---------------------------------------------------------------------------------------------

    async def _over_udp(self, query: Query) -> bytes:
        servers = self._order()
        problem: UpstreamError = UpstreamTimedOut()
        error_reply: bytes | None = None
        conversation: _Datagrams | None = None
        try:
            for attempt in range(self._conf.tries):
                server = servers[attempt % len(servers)]
                if conversation is not None and conversation.server != server:
                    self._close(conversation)
                    conversation = None
                reply: bytes | None = None
                try:
                    if conversation is None:
                        conversation = await self._open(server, query)
                    reply = await conversation.ask(self._conf.timeout)
                except (OSError, _NoAnswerError) as error:
                    problem = _unreachable(error)
                    self._close(conversation)
                    conversation = None
                if reply is None:
                    self._avoid(server)
                    continue
                self._avoid_until.pop(server, None)
                if read_reply(reply).rcode not in _TRY_ELSEWHERE:
                    return reply
                error_reply = reply
                self._close(conversation)
                conversation = None
        finally:
            self._close(conversation)
        if error_reply is not None:
            return error_reply
        raise problem

    async def _open(self, server: IPAddress, query: Query) -> _Datagrams:
        sock = await self._sockets.datagram(socket.AF_INET6 if server.version == 6 else socket.AF_INET)
        try:
            if self._mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            sock.connect((str(server), self._port))
            conversation = _Datagrams(
                server, query, self._random.getrandbits(16), sock, self._bounds.wrong_replies
            )
        except BaseException:
            sock.close()
            raise
        self._own.add(conversation.local)
        return conversation

    def _close(self, conversation: _Datagrams | None) -> None:
        if conversation is not None:
            self._own.discard(conversation.local)
            conversation.close()

    # -- TCP ---------------------------------------------------------------------------------------------

    async def _over_tcp(self, query: Query) -> bytes:
        servers = self._order()
        problem: UpstreamError = UpstreamTimedOut()
        error_reply: bytes | None = None
        for attempt in range(self._conf.tries):
            server = servers[attempt % len(servers)]
            reply: bytes | None = None
            with trio.move_on_after(self._conf.timeout):
                try:
                    reply = await self._once_over_tcp(server, query)
                except (OSError, _NoAnswerError) as error:
                    problem = _unreachable(error)
            if reply is None:
                self._avoid(server)
                continue
            self._avoid_until.pop(server, None)
            if read_reply(reply).rcode not in _TRY_ELSEWHERE:
                return reply
            error_reply = reply
        if error_reply is not None:
            return error_reply
        raise problem

    async def _once_over_tcp(self, server: IPAddress, query: Query) -> bytes:
        messages: list[bytes] = []

        async def take(message: bytes) -> None:
            messages.append(message)

        await self._converse(server, query, take, all_messages=False)
        return messages[0]

    async def transfer(self, query: Query, take: Callable[[bytes], Awaitable[None]]) -> int:
        """Ask over TCP for an answer of several messages (AXFR), and pass each to ``take``.

        Returns the number of messages. It ends when the server closes the connection, or is silent for
        ``timeout`` seconds after a message. Raises UpstreamError when there was no message, and what ``take``
        raises.
        """
        problem: UpstreamError = UpstreamTimedOut()
        taken = 0

        async def take_one(message: bytes) -> None:
            nonlocal taken
            taken += 1
            await take(query.message[:2] + message[2:])

        for server in self._order():
            try:
                await self._converse(server, query, take_one, all_messages=True)
            except (OSError, _NoAnswerError) as error:
                problem = _unreachable(error)
            if taken:
                return taken
        raise problem

    async def _converse(
        self,
        server: IPAddress,
        query: Query,
        take: Callable[[bytes], Awaitable[None]],
        *,
        all_messages: bool,
    ) -> None:
        timeout = self._conf.timeout
        address = SocketAddress(server, self._port)
        sock = await connect(address, factory=self._sockets, mark=self._mark, timeout=timeout)
        local = None
        try:
            local = local_address(sock)
            self._own.add(local)
            stream = MessageStream(sock)
            number = self._random.getrandbits(16)
            message = None
            with trio.move_on_after(timeout) as limit:
                await stream.send(query.with_id(number))
                message = await stream.receive()
            if limit.cancelled_caught:
                raise TimeoutError
            if message is None:
                raise _NoAnswerError("the nameserver hung up")
            if not is_reply_to(query, number, message):
                raise _NoAnswerError
            await take(message)
            while all_messages:
                message = None
                with trio.move_on_after(timeout):
                    message = await stream.receive()
                # From the second message on the question may be missing (RFC 5936, 2.2.1).
                if message is None or message[:2] != number.to_bytes(2, "big"):
                    return
                await take(message)
        finally:
            if local is not None:
                self._own.discard(local)
            sock.close()


class _Datagrams:
    """A query to one server: one port, one id, and the tries, until too many invalid datagrams came."""

    __slots__ = ("_message", "_number", "_query", "_sock", "_wrong_left", "local", "server")

    def __init__(
        self, server: IPAddress, query: Query, number: int, sock: socket.socket, wrong_replies: int
    ) -> None:
        self.server = server
        self.local = local_address(sock)
        self._query = query
        self._number = number
        self._message = query.with_id(number)
        self._sock = sock
        self._wrong_left = wrong_replies

    def close(self) -> None:
        self._sock.close()

    async def ask(self, timeout: float) -> bytes | None:  # noqa: ASYNC109  # one try, of several, has it
        """Send, and wait for the answer. Returns None if it did not come in time.

        Raises OSError when nobody listens there or there is no route, and _NoAnswerError.
        """
        sock = self._sock
        with trio.move_on_after(timeout):
            try:
                sock.send(self._message)
            except BlockingIOError:
                pass  # lost, as packets may be; the next try sends it again
            while True:
                try:
                    reply = sock.recv(LONGEST_TCP)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(sock)
                    continue
                if is_reply_to(self._query, self._number, reply):
                    return reply
                self._wrong_left -= 1
                if self._wrong_left <= 0:
                    raise _NoAnswerError
        return None


def _unreachable(error: OSError | _NoAnswerError) -> UpstreamError:
    if isinstance(error, TimeoutError):
        return UpstreamTimedOut()
    if isinstance(error, OSError):
        return UpstreamUnreachable(f"io error: {os_error_text(error)}")
    return UpstreamUnreachable(str(error) or "what the nameserver sent was no answer to the query")
