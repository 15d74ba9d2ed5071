"""Which of several listeners on one port gets new connections, and what becomes of the queue at the close."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address

import pytest

from ztunnel.model.address import SocketAddress
from ztunnel.sockets.addresses import local_address
from ztunnel.sockets.factories import HostSockets
from ztunnel.sockets.listen import bind_datagram, listen
from ztunnel.sockets.takeover import steer_to_newest

LOOPBACK = ip_address("127.0.0.1")
ANY_PORT = SocketAddress(LOOPBACK, 0)
ENOUGH = 20  # by a hash, all on one of two listeners once in half a million times


def connect_some(listener: socket.socket) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(ENOUGH)]


def queued(listener: socket.socket) -> int:
    """Accept and close what waits; gives how many that were."""
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def test_new_connections_come_to_the_newest_listener():
    first = await listen(ANY_PORT, factory=HostSockets(), reuse_port=True)
    sockets = [first.sock]

    def counts() -> list[int]:
        clients = connect_some(sockets[0])
        found = [queued(sock) for sock in sockets]
        for client in clients:
            client.close()
        return found

    try:
        assert counts() == [ENOUGH]
        sockets.append((await listen(first.address, factory=HostSockets(), reuse_port=True)).sock)
        assert counts() == [0, ENOUGH]
        # The newcomer fails: the old one serves again. Or it lasts, and has a successor itself.
        sockets.pop().close()
        assert counts() == [ENOUGH]
        for _ in range(3):
            sockets.append((await listen(first.address, factory=HostSockets(), reuse_port=True)).sock)
            assert counts() == [0, ENOUGH]
            sockets.pop(0).close()
            assert counts() == [ENOUGH]
    finally:
        for sock in sockets:
            sock.close()


async def test_datagrams_do_too():
    with await bind_datagram(ANY_PORT, factory=HostSockets(), reuse_port=True) as old:
        address = local_address(old)
        with await bind_datagram(address, factory=HostSockets(), reuse_port=True) as new:
            for number in range(ENOUGH):
                with socket.socket(type=socket.SOCK_DGRAM) as sender:
                    sender.sendto(bytes([number]), (str(address.ip), address.port))
            assert [new.recv(1)[0] for _ in range(ENOUGH)] == list(range(ENOUGH))
            with pytest.raises(BlockingIOError):
                old.recv(1)


def test_a_kernel_that_refuses_is_no_failure():
    class Refusing(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(92, os.strerror(92))

    with Refusing() as sock:
        steer_to_newest(sock)
