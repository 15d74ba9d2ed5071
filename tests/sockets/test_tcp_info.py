"""What the kernel tells of sockets in known states."""

from __future__ import annotations

import socket

from ztunnel.sockets.tcp_info import tcp_info


def test_queues_and_state_of_a_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            client.sendall(b"x" * 1000)
            server.setblocking(True)
            assert server.recv(1, socket.MSG_PEEK) == b"x"
            info = tcp_info(server)
            assert info is not None
            assert (info.state, info.unread) == ("ESTABLISHED", 1000)
            assert info.idle >= 0
            client.shutdown(socket.SHUT_WR)
            server.recv(1000)
            assert server.recv(1) == b""
            closing = tcp_info(server)
            assert closing is not None
            assert closing.state == "CLOSE_WAIT"
        listening = tcp_info(listener)
        assert listening is not None
        assert listening.state == "LISTEN"


def test_what_a_peer_does_not_read_stays_in_the_queue():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            client.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += client.send(b"x" * 65536)
            except BlockingIOError:
                pass
            info = tcp_info(client)
            assert info is not None
            assert 0 < info.unsent <= sent


def test_other_sockets_have_none():
    left, right = socket.socketpair()
    with left, right:
        assert tcp_info(left) is None
    assert tcp_info(left) is None
