"""SOCKS5 negotiation, as RFC 1928 and the existing implementation have it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.model.address import SocketAddress
from ztunnel.proxy.socks import METHOD_CHOSEN, SocksError, SocksReply, SocksServer, SocksTarget, reply

GREETING = b"\x05\x01\x00"


def negotiate(data: bytes) -> SocksTarget | None:
    server = SocksServer()
    return server.receive(data)


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", SocketAddress(ip_address("10.0.0.1"), 80)),
        (b"\x05\x01\x00\x04" + b"\x00" * 15 + b"\x01\x1f\x90", SocketAddress(ip_address("::1"), 8080)),
        (
            b"\x05\x01\x00\x04" + ip_address("::ffff:10.0.0.1").packed + b"\x00\x50",
            SocketAddress(ip_address("10.0.0.1"), 80),
        ),
        (b"\x05\x01\x00\x03\x03foo\x00\x50", ("foo", 80)),
    ],
    ids=["ipv4", "ipv6", "mapped", "name"],
)
def test_each_kind_of_address_is_understood(request_bytes, expected):
    target = negotiate(GREETING + request_bytes)
    assert target is not None
    assert target.destination == expected


def test_the_method_is_answered_before_the_request_comes():
    server = SocksServer()
    assert server.receive(GREETING) is None
    assert server.take_output() == METHOD_CHOSEN
    assert server.take_output() == b""


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x04\x01\x00", "CommandNotSupported: unsupported version 4"),
        (b"\x05\x00", "CommandNotSupported: methods cannot be zero"),
        (b"\x05\x01\x02", "CommandNotSupported: only unauthenticated is supported"),
        (GREETING + b"\x04\x01\x00\x01", "CommandNotSupported: unsupported version 4"),
        (GREETING + b"\x05\x02\x00\x01", "CommandNotSupported: unsupported command 2"),
        (GREETING + b"\x05\x01\x00\x05\x00", "CommandNotSupported: unsupported address type 5"),
    ],
)
def test_what_we_do_not_speak_is_refused_with_code_seven(data, text):
    with pytest.raises(SocksError) as caught:
        negotiate(data)
    assert str(caught.value) == text
    assert reply(caught.value.reply) == b"\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"


def test_success_has_no_bound_address():
    assert reply(SocksReply.SUCCEEDED) == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_refused_or_understood(data):
    try:
        target = negotiate(data)
    except SocksError:
        return
    assert target is None or isinstance(target, SocksTarget)


@given(
    st.integers(1, 10),
    st.sampled_from([b"\x01\x0a\x00\x00\x01", b"\x04" + b"\x11" * 16, b"\x03\x04name"]),
    st.binary(max_size=40),
)
def test_reading_what_is_missing_never_takes_payload(methods, address, payload):
    wire = bytes([5, methods]) + bytes(methods) + b"\x05\x01\x00" + address + b"\x00\x50" + payload
    server = SocksServer()
    taken = 0
    target = None
    while target is None:
        count = server.missing
        assert count >= 1
        target = server.receive(wire[taken : taken + count])
        taken += count
    assert wire[taken:] == payload
