"""The readiness server's socket before there is a readiness server."""

from __future__ import annotations

import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest

from ztunnel.admin.early import listen_early, listening
from ztunnel.admin.servers import bind
from ztunnel.model.address import SocketAddress


@pytest.mark.parametrize("arguments", [[], ["proxy"], ["proxy", "ztunnel"]])
def test_the_proxy_listens_for_both_families_unless_ipv6_is_off(arguments):
    for environ, family in (({}, socket.AF_INET6), ({"IPV6_ENABLED": "false"}, socket.AF_INET)):
        sock = listen_early(arguments, environ, port=0)
        assert sock is not None
        with sock:
            assert sock.family == family
            with socket.create_connection(("127.0.0.1", sock.getsockname()[1]), 10):
                pass


@pytest.mark.parametrize("arguments", [["demo"], ["help"], ["poxy"], ["proxy", "--help"], ["--version"]])
def test_no_other_command_does(arguments):
    assert listen_early(arguments, {}, port=0) is None


def test_a_port_that_is_taken_is_left_to_whoever_tells_of_it():
    with listening(socket.AF_INET6, "::", 0) as taken:
        assert listen_early([], {}, port=taken.getsockname()[1]) is None


def test_it_is_taken_over_if_that_is_where_the_server_is_to_be():
    with listening(socket.AF_INET, "127.0.0.1", 0) as sock:
        here = SocketAddress(IPv4Address("127.0.0.1"), sock.getsockname()[1])
        assert bind("readiness", here, early=sock) == [sock]
        elsewhere = SocketAddress(IPv6Address("::1"), 0)
        [other] = bind("readiness", elsewhere, early=sock)
        with other:
            assert other is not sock
            assert sock.fileno() == -1


def test_little_is_loaded_before_it_listens():
    program = (
        "import sys; before = set(sys.modules); import ztunnel.start, ztunnel.admin.early;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "ztunnel" in loaded
    assert not loaded & {"trio", "asyncio", "structlog", "cryptography", "grpc", "yaml", "dataclasses"}
