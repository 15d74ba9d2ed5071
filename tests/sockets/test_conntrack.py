"""The messages of connection tracking's netlink, and what comes of them in a real namespace."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.namespaces import needs_namespaces
from ztunnel.demo.machine import Machine
from ztunnel.demo.network import Network, Pod
from ztunnel.demo.redirection import RedirectionOptions
from ztunnel.sockets.conntrack import (
    Conntrack,
    ConntrackEndpoint,
    decode_reply,
    encode_add,
    encode_delete,
    encode_get,
)
from ztunnel.sockets.factories import make_netlink_socket

HIDDEN = ConntrackEndpoint(bytes((127, 64, 0, 1)), 40000)
TARGET = ConntrackEndpoint(bytes((10, 0, 0, 2)), 8080)
CLIENT = ConntrackEndpoint(bytes((10, 0, 0, 1)), 5555)


def attributes(data: bytes) -> dict[int, object]:
    """Attributes by number, the nested ones opened."""
    found: dict[int, object] = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        value = data[4:length]
        found[kind & 0x3FFF] = attributes(value) if kind & 0x8000 else value
        data = data[(length + 3) & ~3 :]
    return found


def test_a_request_to_add_says_who_connects_and_what_is_shown():
    message = encode_add(7, HIDDEN, TARGET, CLIENT, 30)
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", message)
    assert (length, kind, flags, sequence, port) == (len(message), 0x100, 0x605, 7, 0)
    assert message[16:20] == bytes((socket.AF_INET, 0, 0, 0))
    assert attributes(message[20:]) == {
        1: {1: {1: HIDDEN.ip, 2: TARGET.ip}, 2: {1: b"\x06", 2: b"\x9c\x40", 3: b"\x1f\x90"}},
        2: {1: {1: TARGET.ip, 2: HIDDEN.ip}, 2: {1: b"\x06", 2: b"\x1f\x90", 3: b"\x9c\x40"}},
        6: {1: CLIENT.ip, 2: CLIENT.ip, 3: {1: b"\x15\xb3", 2: b"\x15\xb3"}},
        7: b"\x00\x00\x00\x1e",
    }


def test_ipv6_has_attributes_of_its_own():
    hidden, target, client = (
        ConntrackEndpoint(ip_address(text).packed, 1) for text in ("100::1", "fd00::2", "fd00::1")
    )
    message = encode_add(1, hidden, target, client, 30)
    assert message[16] == socket.AF_INET6
    found = attributes(message[20:])
    assert found[1] == {1: {3: hidden.ip, 4: target.ip}, 2: {1: b"\x06", 2: b"\x00\x01", 3: b"\x00\x01"}}
    assert found[6] == {4: client.ip, 5: client.ip, 3: {1: b"\x00\x01", 2: b"\x00\x01"}}


@pytest.mark.parametrize(("encode", "kind", "flags"), [(encode_get, 0x101, 0x1), (encode_delete, 0x102, 0x5)])
def test_an_entry_is_named_by_its_answers(encode, kind, flags):
    message = encode(3, TARGET, CLIENT)
    assert struct.unpack_from("=IHHI", message) == (len(message), kind, flags, 3)
    assert list(attributes(message[20:])) == [2]


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_upset_what_reads_replies(data):
    try:
        decode_reply(data)
    except ValueError:
        pass


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with Machine.open() as machine:
        network = Network(machine)
        made = network.node("a").pod("tracked")
        network.redirect(made, RedirectionOptions())
        yield made


@pytest.fixture
def table(pod: Pod) -> Iterator[Conntrack]:
    with pod.namespace.entered():
        sock = make_netlink_socket()
    with closing(Conntrack(sock)) as made:
        yield made


@needs_namespaces
def test_what_is_shown_can_be_shown_once(table: Conntrack):
    first, second = (ConntrackEndpoint(bytes((127, 64, 1, number)), 40000) for number in (1, 2))
    assert table.add(first, TARGET, CLIENT)
    assert not table.add(second, TARGET, CLIENT)
    assert table.add(second, TARGET, CLIENT._replace(port=5556))


@needs_namespaces
def test_only_what_has_ended_is_forgotten(pod: Pod, table: Conntrack):
    target = ConntrackEndpoint(ip_address(pod.ipv4).packed, 7100)
    shown = ConntrackEndpoint(bytes((10, 9, 9, 9)), 7777)
    assert not table.forget_ended(target, shown), "there is none"
    with pod.namespace.entered():
        server = socket.create_server((pod.ipv4, 7100))
        client = socket.socket()
    with server, client:
        client.bind(("127.64.2.1", 40001))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1337)
        assert table.add(ConntrackEndpoint(bytes((127, 64, 2, 1)), 40001), target, shown)
        client.settimeout(5)
        client.connect((pod.ipv4, 7100))
        accepted, peer = server.accept()
        assert peer == ("10.9.9.9", 7777)
        assert not table.forget_ended(target, shown), "it is in use"
        client.close()
        assert accepted.recv(1) == b""
        accepted.close()
        assert table.forget_ended(target, shown)
        assert table.add(ConntrackEndpoint(bytes((127, 64, 2, 2)), 40001), target, shown)


@needs_namespaces
def test_what_the_kernel_refuses_is_an_error(table: Conntrack):
    with pytest.raises(OSError, match=r"ange|nvalid") as caught:
        table.add(HIDDEN, TARGET, CLIENT._replace(ip=bytes(2)))
    assert caught.value.errno != errno.EEXIST
    assert table.add(HIDDEN, TARGET, CLIENT._replace(port=7)), "the socket is in step"
