"""The fast scanner sees what the general reader sees, or gives up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state import messages
from tests.support import big_meshes as meshes
from ztunnel.pb.istio import workload as pb
from ztunnel.state import convert
from ztunnel.state.convert import RejectedError, ServiceParts, WorkloadParts
from ztunnel.state.scan import Scanner, WorkloadKeys

NODE = "node"
workload_bytes = messages.workloads.map(lambda message: bytes(pb.Address(workload=message)))


def check(body: bytes, scanner: Scanner) -> bool:
    """Compare both ways to read; returns whether the fast one did."""
    fast = scanner.fast(body)
    if fast is not None:
        parts = convert.address(body, local=False)
        assert isinstance(parts, WorkloadParts)
        assert fast == scanner.keys(parts)
    return fast is not None


@settings(deadline=None, max_examples=100)
@given(st.lists(workload_bytes, min_size=1, max_size=3), st.sampled_from([NODE, None, ""]))
def test_the_fast_way_agrees_with_the_slow_one(bodies: list[bytes], node: str | None):
    scanner = Scanner(node)
    for body in bodies:
        taken = check(body, scanner)
        try:
            convert.address(body, local=False)
        except RejectedError:
            continue
        # What a known writer writes is read the fast way, unless a number is one that only few would know.
        message = pb.Address.parse(body).workload
        assert message is not None
        assert taken or message.workload_type.value > 127


@settings(deadline=None, max_examples=150)
@given(messages.damaged(workload_bytes))
def test_the_fast_way_never_takes_what_the_slow_one_refuses(body: bytes):
    check(body, Scanner(NODE))


@settings(deadline=None)
@given(st.one_of(messages.addresses.map(bytes), messages.damaged(messages.addresses.map(bytes)), st.binary()))
def test_scanning_raises_nothing_but_rejections(body: bytes):
    for local in (False, True):
        try:
            result = Scanner(NODE).scan(body, local=local)
        except RejectedError:
            continue
        assert isinstance(result, WorkloadKeys | ServiceParts)


@settings(deadline=None)
@given(messages.workloads)
def test_the_keys_are_those_that_betterproto_reads(message: pb.Workload):
    body = bytes(pb.Address(workload=message))
    read = pb.Address.parse(body).workload
    keys = Scanner(NODE).fast(body)
    if keys is None or read is None:
        return
    assert keys.uid == read.uid
    assert keys.network == read.network
    assert keys.native_tunnel == read.native_tunnel
    assert keys.on_node == (read.node == NODE)
    assert [f"{namespace}/{host}" for (namespace, host), _ in keys.services] == list(read.services)
    if read.network_mode is pb.NetworkMode.HOST_NETWORK:
        assert keys.addresses == ()
    else:
        assert [number.to_bytes(4 if v == 4 else 16, "big") for v, number in keys.addresses] == read.addresses


def test_a_typical_workload_is_read_the_fast_way():
    body = meshes.workload(17).body
    assert 180 < len(body) < 240
    keys = Scanner("node-17").fast(body)
    assert keys is not None
    assert keys.account == ("app-1-7d4b9c6f5-00011", "ns-1", "sa-1")
    assert keys.services == ((("ns-1", "app-1.ns-1.svc.cluster.local"), b"\x00P\x00\x90\x1f"),)


def test_a_workload_of_another_node_has_no_account():
    keys = Scanner("another").fast(meshes.workload(17).body)
    assert keys is not None
    assert not keys.on_node
    assert keys.account is None


def test_a_text_longer_than_127_bytes_is_read_the_fast_way():
    long = "é" * 500
    keys = Scanner(None).fast(bytes(pb.Address(workload=pb.Workload(uid=long))))
    assert keys is not None
    assert keys.uid == long


def test_halves_of_a_character_in_two_texts_are_not_taken_for_one():
    # name = C3, namespace = A9: together they would be an é.
    body = b"\x0a\x06\x0a\x01\xc3\x12\x01\xa9"
    assert Scanner(None).fast(body) is None
    with pytest.raises(RejectedError, match="not UTF-8"):
        Scanner(None).scan(body, local=False)


def test_a_text_that_comes_twice_is_left_to_the_slow_way_and_the_last_wins():
    body = b"\x0a\x08\xa2\x01\x01a\xa2\x01\x01b"
    assert Scanner(None).fast(body) is None
    keys = Scanner(None).scan(body, local=False)
    assert isinstance(keys, WorkloadKeys)
    assert keys.uid == "b"


def test_inner_messages_are_remembered_without_limit_to_their_number():
    scanner = Scanner(None)
    for number in range(9000):
        body = bytes(pb.Address(workload=pb.Workload(services={f"ns/{number}": pb.PortList()})))
        keys = scanner.fast(body)
        assert keys is not None
        assert keys.services[0][0] == ("ns", str(number))
    assert len(scanner._services) <= 8192
