"""The keys of workloads, read the quick way, are those of the workload read in full."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import big_meshes as meshes
from tests.support import mesh_messages as messages
from ztunnel.pb.istio import workload as pb
from ztunnel.state import convert
from ztunnel.state.convert import ServiceParts, WorkloadParts
from ztunnel.state.kinds import RejectedError
from ztunnel.state.scan import Scanner, WorkloadKeys

NODE = "node"
workload_bytes = messages.workloads.map(lambda message: bytes(pb.Address(workload=message)))


def outcome(read: Callable[[], object]) -> object:
    try:
        return read()
    except RejectedError as error:
        return str(error)


def check(body: bytes, scanner: Scanner) -> None:
    """Compare both ways to read, refusals too."""
    expected = outcome(lambda: convert.address(body, local=False))
    if isinstance(expected, WorkloadParts):
        expected = scanner.keys(expected)
    assert outcome(lambda: scanner.scan(body, local=False)) == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(workload_bytes, min_size=1, max_size=3), st.sampled_from([NODE, None, ""]))
def test_the_quick_way_agrees_with_the_full_one(bodies: list[bytes], node: str | None):
    scanner = Scanner(node)
    for body in bodies:
        check(body, scanner)


@settings(deadline=None, max_examples=150)
@given(messages.damaged(workload_bytes))
def test_the_quick_way_never_takes_what_the_full_one_refuses(body: bytes):
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
    assert read is not None
    try:
        keys = Scanner(NODE).scan(body, local=False)
    except RejectedError:
        return
    assert isinstance(keys, WorkloadKeys)
    assert keys.uid == read.uid
    assert keys.network == read.network
    assert keys.native_tunnel == read.native_tunnel
    assert keys.on_node == (read.node == NODE)
    assert [f"{namespace}/{host}" for (namespace, host), _ in keys.services] == list(read.services)
    if read.network_mode is pb.NetworkMode.HOST_NETWORK:
        assert keys.addresses == ()
    else:
        assert [number.to_bytes(4 if v == 4 else 16, "big") for v, number in keys.addresses] == read.addresses


def scan(body: bytes, node: str | None = None) -> WorkloadKeys:
    keys = Scanner(node).scan(body, local=False)
    assert isinstance(keys, WorkloadKeys)
    return keys


def test_the_keys_of_a_typical_workload():
    body = meshes.workload(17).body
    assert 180 < len(body) < 240
    keys = scan(body, "node-17")
    assert keys.account == ("app-1-7d4b9c6f5-00011", "ns-1", "sa-1")
    assert keys.services == ((("ns-1", "app-1.ns-1.svc.cluster.local"), b"\x00P\x00\x90\x1f"),)


def test_a_workload_of_another_node_has_no_account():
    keys = scan(meshes.workload(17).body, "another")
    assert not keys.on_node
    assert keys.account is None


def test_halves_of_a_character_in_two_texts_are_not_taken_for_one():
    # name = C3, namespace = A9: together they would be an é.
    with pytest.raises(RejectedError, match="not UTF-8"):
        scan(b"\x0a\x06\x0a\x01\xc3\x12\x01\xa9")


def test_of_a_text_that_comes_twice_the_last_wins():
    assert scan(b"\x0a\x08\xa2\x01\x01a\xa2\x01\x01b").uid == "b"


def test_a_service_that_comes_twice_is_one_with_the_last_ports():
    entry = b"\xb2\x01\x0e\x0a\x04ns/a\x12\x06\x0a\x04\x08\x50\x10%c"
    workload = entry % 1 + entry % 2
    keys = scan(b"\x0a" + bytes((len(workload),)) + workload)
    assert keys.services == ((("ns", "a"), b"\x00P\x00\x02\x00"),)


def test_memberships_are_remembered_without_limit_to_their_number():
    scanner = Scanner(None)
    for number in range(9000):
        body = bytes(pb.Address(workload=pb.Workload(services={f"ns/{number}": pb.PortList()})))
        keys = scanner.scan(body, local=False)
        assert isinstance(keys, WorkloadKeys)
        assert keys.services[0][0] == ("ns", str(number))
    assert len(scanner._services) <= 8192
