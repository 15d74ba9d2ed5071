from __future__ import annotations

import socket

import pytest

from ztunnel.config.model import SocketConfig
from ztunnel.sockets.keepalive import Keepalive


def options(sock: socket.socket) -> tuple[int, int, int, int, int]:
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    idle, interval, count, timeout = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), idle, interval, count, timeout


@pytest.mark.parametrize(
    ("keepalive", "expected"),
    [
        (Keepalive(), (1, 180, 180, 9, 0)),
        (Keepalive(user_timeout=SocketConfig().user_timeout), (1, 180, 180, 9, 1_800_000)),
        (Keepalive(time=0.2, interval=0.2, retries=0), (1, 1, 1, 1, 0)),
        (
            Keepalive(time=1e9, interval=1e9, retries=10**9, user_timeout=1e9),
            (1, 32767, 32767, 127, 2**31 - 1),
        ),
    ],
)
def test_settings_reach_the_socket_within_the_kernels_bounds(keepalive, expected):
    with socket.socket() as sock:
        keepalive.apply(sock)
        assert options(sock) == expected


def test_a_refusal_is_ignored():
    sock = socket.socket()
    sock.close()
    Keepalive(user_timeout=SocketConfig().user_timeout).apply(sock)
