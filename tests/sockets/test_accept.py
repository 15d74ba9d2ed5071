from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

import pytest
import trio

from tests.support.logs import capture_logs
from ztunnel.model.address import SocketAddress
from ztunnel.sockets.accept import accept_forever, accept_waiting
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.factories import HostSockets
from ztunnel.sockets.listen import Listener, SocketOptions, listen

ANY_PORT = SocketAddress(ip_address("127.0.0.1"), 0)


class Accepted:
    """A handler that keeps what it gets, and who else is accepting."""

    def __init__(self) -> None:
        self.connections: list[tuple[socket.socket, SocketAddress]] = []
        self.names: list[str] = []
        self.arrived = trio.Event()

    async def __call__(self, sock: socket.socket, peer: SocketAddress) -> None:
        with sock:
            self.connections.append((sock, peer))
            self.names.append(trio.lowlevel.current_task().name)
            self.arrived.set()
            await trio.sleep_forever()

    async def wait(self, count: int) -> None:
        while len(self.connections) < count:
            self.arrived = trio.Event()
            await self.arrived.wait()


@asynccontextmanager
async def accepting(budget=None, sock=None):
    listener = await listen(ANY_PORT, factory=HostSockets())
    used = listener if sock is None else Listener(sock(listener.sock), listener.address, transparent=False)
    accepted = Accepted()
    with listener.sock, capture_logs() as records:
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                await accept_forever(used, accepted, nursery, component="outbound", budget=budget)

            nursery.start_soon(accept)
            yield listener, accepted, records
            nursery.cancel_scope.cancel()


def client(listener: Listener) -> socket.socket:
    return socket.create_connection((str(listener.address.ip), listener.address.port))


async def test_each_connection_gets_a_task_named_after_it_and_a_non_blocking_socket():
    async with accepting() as (listener, accepted, _):
        with client(listener) as first, client(listener) as second:
            await accepted.wait(2)
            peers = [
                SocketAddress(ip_address("127.0.0.1"), sock.getsockname()[1]) for sock in (first, second)
            ]
            # trio shuffles tasks that begin together.
            assert {peer for _, peer in accepted.connections} == set(peers)
            assert set(accepted.names) == {f"outbound {peer}" for peer in peers}
            assert all(sock.gettimeout() == 0 for sock, _ in accepted.connections)


async def test_closing_the_listener_ends_the_loop():
    listener = await listen(ANY_PORT, factory=HostSockets())
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            await accept_forever(listener, Accepted(), nursery, component="outbound")

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    listener.close()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            await accept_forever(listener, Accepted(), nursery, component="outbound")


class Faulty:
    """A listening socket whose accept answers with errors first."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self._sock = sock
        self.errors = errors

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self):
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock.accept()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH])
async def test_a_connection_lost_in_the_backlog_is_logged_and_the_loop_goes_on(number):
    async with accepting(sock=lambda sock: Faulty(sock, [number])) as (listener, accepted, records):
        with client(listener):
            await accepted.wait(1)
        assert [record.message for record in records] == [
            f"Failed TCP handshake {os.strerror(number)} (os error {number})"
        ]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO])
async def test_when_nothing_can_be_accepted_the_loop_pauses_and_recovers_by_itself(number, autojump_clock):
    async with accepting(sock=lambda sock: Faulty(sock, [number] * 100)) as (listener, accepted, records):
        start = trio.current_time()
        with client(listener):
            await accepted.wait(1)
        assert trio.current_time() - start > 9, "it does not spin"
        warned = [record for record in records if record.message.startswith("connections refused: ")]
        assert 5 <= len(warned) <= 12, "at most one line a second"
        assert os.strerror(number) in warned[0].message
        assert records[-1].message == "connections accepted again"


async def test_over_the_budget_connections_are_reset_with_a_reason_and_under_it_accepted_again():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for three connections, both ends of which are in this process.
    with no_holes() as used:
        await over_the_budget(DescriptorBudget(limit=used + 7 + 24, reserve=16))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@contextmanager
def no_holes() -> Iterator[int]:
    """All numbers of descriptors up to the largest are taken; gives the next one, which is free."""
    largest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = []
    while (descriptor := os.dup(0)) <= largest:
        taken.append(descriptor)
    os.close(descriptor)
    try:
        yield descriptor
    finally:
        for one in taken:
            os.close(one)


async def over_the_budget(budget: DescriptorBudget) -> None:
    async with accepting(budget) as (listener, accepted, records):
        clients = [client(listener)]
        await accepted.wait(1)
        while True:
            clients.append(client(listener))
            await trio.testing.wait_all_tasks_blocked()
            if len(accepted.connections) < len(clients):
                break
            assert len(clients) < 10
        refused = clients.pop()
        with pytest.raises(ConnectionResetError):
            refused.recv(1)
        refused.close()
        assert records[-1].message == f"connections refused: over {budget.accept_line} descriptors are open"
        assert records[-1].fields["component"] == "outbound"

        served = len(accepted.connections)
        accepted.connections[0][0].close()
        clients.pop(0).close()
        with client(listener):
            await accepted.wait(served + 1)
        assert records[-1].message == "connections accepted again"
        for sock in clients:
            sock.close()


async def test_a_burst_is_accepted_in_turns_with_the_connections_that_are_there():
    """Sixteen at most are taken before other tasks run."""
    async with accepting() as (listener, accepted, _):
        clients = [client(listener) for _ in range(100)]
        seen: list[int] = []
        while len(accepted.connections) < 100:
            await trio.lowlevel.checkpoint()
            if not seen or seen[-1] != len(accepted.connections):
                seen.append(len(accepted.connections))
        assert max(after - earlier for earlier, after in zip([0, *seen], seen, strict=False)) <= 32
        for sock in clients:
            sock.close()


async def test_options_of_the_listener_are_handed_down():
    listener = await listen(ANY_PORT, factory=HostSockets(), options=SocketOptions(mark=None, keepalive=None))
    with listener.sock, client(listener):
        await trio.lowlevel.wait_readable(listener.sock)
        with listener.sock.accept()[0] as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


async def test_what_waits_in_the_queue_is_accepted_before_the_close():
    listener = await listen(ANY_PORT, factory=HostSockets())
    accepted = Accepted()
    async with trio.open_nursery() as nursery:
        with listener.sock:
            clients = [client(listener) for _ in range(5)]
            assert accept_waiting(listener, accepted, nursery, component="outbound") == 5
            assert accept_waiting(listener, accepted, nursery, component="outbound") == 0
        # Closed, it has nothing.
        assert accept_waiting(listener, accepted, nursery, component="outbound") == 0
        await accepted.wait(5)
        for one in clients:
            one.send(b"x")
            one.close()
        assert {sock.recv(1) for sock, _ in accepted.connections} == {b"x"}
        nursery.cancel_scope.cancel()


async def test_what_waits_in_the_queue_is_reset_over_the_limit_of_descriptors():
    listener = await listen(ANY_PORT, factory=HostSockets())
    async with trio.open_nursery() as nursery:
        with listener.sock, client(listener) as late:
            none_left = DescriptorBudget(limit=0, reserve=0)
            assert accept_waiting(listener, Accepted(), nursery, component="outbound", budget=none_left) == 0
            with pytest.raises(ConnectionResetError):
                late.recv(1)
