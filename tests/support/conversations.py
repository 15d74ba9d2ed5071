"""The traffic that runs while faults happen, and what must always be true of it.

Each conversation announces how many bytes it will send, sends them as the pattern of `tests.support.traffic`,
and ends its side. The server checks them and answers in the same way. So both sides know whether an end comes
at the right place. An end (FIN) before the last byte is a violation, whatever happened. A reset is none,
because it says that something was lost. Bytes are compared by their position, so they must be exact and in
order.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio

from tests.support.pod import MeshPod
from tests.support.traffic import receive_pattern, reset, send_pattern
from ztunnel.pb.istio.security import Action, Authorization, Clause, Match, Rule, Scope, StringMatch

OPEN_PORT = 8080
DENIED_PORT = 9090
LARGEST = 3_000_000
RESET, IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
"""What closing a socket does, as SO_LINGER has it."""


def only_the_client(client: MeshPod) -> Authorization:
    """Returns the policy of these tests: at DENIED_PORT it denies everybody but the client."""
    port = Clause(matches=[Match(destination_ports=[DENIED_PORT])])
    others = Clause(matches=[Match(not_principals=[StringMatch(exact=client.principal)])])
    return Authorization(
        name="only-the-client",
        namespace="default",
        scope=Scope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=[Rule(clauses=[port, others])],
    )


class Violation(AssertionError):
    """Something that must never happen, whatever fails."""


class Applications:
    """The server's side, in a pod. One port is open to all; at the other a policy admits only the client."""

    def __init__(self, pod: MeshPod, forbidden: MeshPod) -> None:
        self._pod = pod
        self._forbidden = forbidden
        self._running = trio.Event()
        self._running.set()
        self._listening: trio.CancelScope | None = None
        self._up = True
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            if self._up:
                with trio.CancelScope() as self._listening:
                    async with trio.open_nursery() as nursery:
                        for port in (OPEN_PORT, DENIED_PORT):
                            nursery.start_soon(trio.serve_listeners, self._serve, [self._pod.listen(port)])
            await trio.sleep(0.05)

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Close the listeners and all connections."""
        self._up = False
        assert self._listening is not None
        self._listening.cancel()
        try:
            yield
        finally:
            self._up = True

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Accept connections, and neither read nor write on them."""
        self._running = trio.Event()
        try:
            yield
        finally:
            self._running.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        peer = ("", 0)
        try:
            async with stream:
                local, peer = stream.socket.getsockname(), stream.socket.getpeername()
                if local[1] == DENIED_PORT and peer[0].removeprefix("::ffff:") == self._forbidden.ipv4:
                    self.violations.append(f"{peer} reached the port that policy denies to it")
                try:
                    await self._running.wait()
                    await exchange(stream, answering=True, running=self._running)
                except trio.Cancelled:
                    reset(stream)  # the end of an application in the middle of its answer is no honest FIN
                    raise
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return
        except AssertionError as error:
            self.violations.append(f"at the server, from {peer}: {error}")

    async def converse(
        self, pod: MeshPod, address: str, port: int, random: Random, timeout: float = 60
    ) -> str:
        """One conversation from a pod. Returns how it ended: complete, reset, refused or silent."""
        try:
            with trio.fail_after(timeout):
                sock = trio.socket.from_stdlib_socket(nonblocking(pod.socket()))
                # Trio closes a socket whose `connect` is cancelled, connected or not.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                async with trio.SocketStream(sock) as stream:
                    try:
                        await sock.connect((address, port))
                    except OSError:
                        return "refused"
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, IN_ORDER)
                    try:
                        await exchange(stream, answering=False, random=random)
                    except trio.Cancelled:
                        reset(stream)  # as in `_serve`
                        raise
        except trio.TooSlowError:
            return "silent"
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return "reset"
        except AssertionError as error:
            self.violations.append(f"at {pod.name}: {error}")
            return "violation"
        return "complete"


def nonblocking(sock: socket.socket) -> socket.socket:
    """Returns the same socket in non-blocking mode."""
    sock.setblocking(False)
    return sock


async def exchange(
    stream: trio.SocketStream,
    *,
    answering: bool,
    random: Random | None = None,
    running: trio.Event | None = None,
) -> None:
    """One side of a conversation. Raises Violation for bytes or an end that are wrong."""
    random = random or Random(0)
    if answering:
        total = await _take(stream)
        if running is not None:
            await running.wait()
        await _give(stream, total, random)
        return
    # Small ones mostly, as real traffic.
    total = random.choice([1, 100, 1000, 50_000, random.randrange(LARGEST)])
    await _give(stream, total, random)
    answered = await _take(stream)
    if answered != total:
        raise Violation(f"{total} bytes were sent, and the answer is of {answered}")


async def _give(stream: trio.SocketStream, total: int, random: Random) -> None:
    await stream.send_all(total.to_bytes(8, "big"))
    await send_pattern(stream, total, random)
    await stream.send_eof()


async def _take(stream: trio.SocketStream) -> int:
    head = b""
    while len(head) < 8:
        piece = await stream.receive_some(8 - len(head))
        if not piece:
            raise Violation(f"the end came after {len(head)} bytes of 8, without a reset")
        head += piece
    total = int.from_bytes(head, "big")
    received = await receive_pattern(stream)
    if received != total:
        raise Violation(f"the end came after {received} bytes of {total}, without a reset")
    return total
