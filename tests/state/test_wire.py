"""Which bytes are messages, strictly, and with which reasons others are refused."""

from __future__ import annotations

from typing import Any

import betterproto2
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import mesh_messages as messages
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.protobuf import WireError, check, read_varint
from ztunnel.state import wire

TYPES = [
    (wire.ADDRESS, messages.addresses, pb.Address),
    (wire.AUTHORIZATION, messages.policies, security.Authorization),
]
pairs = st.sampled_from(TYPES).flatmap(
    lambda row: st.tuples(st.just(row[0]), row[1].map(bytes), st.just(row[2]))
)
damaged_pairs = st.sampled_from(TYPES).flatmap(
    lambda row: st.tuples(st.just(row[0]), messages.damaged(row[1].map(bytes)))
)


def refusal(kind: Any, body: bytes) -> str | None:
    try:
        check(kind.DESCRIPTOR, body)
    except WireError as error:
        return error.reason
    return None


@settings(deadline=None)
@given(pairs)
def test_what_betterproto_writes_is_taken_and_says_the_same(case: tuple[Any, bytes, Any]):
    kind, body, better = case
    assert refusal(kind, body) is None
    assert better.parse(wire.parse(kind, body).SerializeToString()) == better.parse(body)


@settings(deadline=None, max_examples=200)
@given(damaged_pairs)
def test_what_parse_takes_is_what_the_check_takes(case: tuple[Any, bytes]):
    kind, body = case
    refused = refusal(kind, body)
    try:
        judged = kind.FromString(body)
    except DecodeError:
        judged = None
        assert refused
    # Google skips a known field of another wire type as if it were unknown; too kind for a policy.
    assert not refused or judged is None or refused.startswith("invalid wire type")
    if refused:
        with pytest.raises(WireError) as caught:
            wire.parse(kind, body)
        assert caught.value.reason == refused
    else:
        taken = wire.parse(kind, body)
        judged.DiscardUnknownFields()
        taken.DiscardUnknownFields()
        assert taken == judged


@settings(deadline=None)
@given(st.sampled_from([wire.ADDRESS, wire.AUTHORIZATION]), st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(kind: Any, body: bytes):
    try:
        wire.parse(kind, body)
    except WireError:
        return


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x0a", "Address.type: invalid varint"),
        (b"\x0a\x05", "Address.type: buffer underflow"),
        (b"\x0a\x03\xa2\x01\x05", "Workload.uid: Address.type: buffer underflow"),
        (
            b"\x0a\x04\xa2\x01\x01\xff",
            "Workload.uid: Address.type: invalid string value: data is not UTF-8 encoded",
        ),
        (
            b"\x0a\x02\x08\x01",
            "Workload.name: Address.type: invalid wire type: Varint (expected LengthDelimited)",
        ),
        (
            b"\x0a\x02\x2a\x00",
            "Workload.tunnel_protocol: Address.type: invalid wire type: LengthDelimited (expected Varint)",
        ),
        (b"\x0a\x02\x0f\x00", "Workload.name: Address.type: invalid wire type value: 7"),
        (
            b"\x0a\x05\xb2\x01\x02\x12\x01",
            "Entry.value: Workload.services: Address.type: buffer underflow",
        ),
        (b"\x00\x00", "invalid tag value: 0"),
        (b"\x07", "invalid wire type value: 7"),
        (b"\x1c", "unexpected end group tag"),
        (b"\x19\x00", "buffer underflow"),
        (b"\x1d\x00", "buffer underflow"),
        (b"\xf8\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", "invalid key value: 18446744073709551608"),
        (b"\xff" * 11, "invalid varint"),
        (b"\x1b" * 101, "recursion limit reached"),
    ],
)
def test_broken_messages_are_refused_with_the_place(body: bytes, reason: str):
    with pytest.raises(WireError) as caught:
        wire.parse(wire.ADDRESS, body)
    assert str(caught.value) == f"failed to decode Protobuf message: {reason}"


def test_a_wrong_wire_type_is_found_where_the_lengths_make_up_for_it():
    # Two ports one by one are each a byte shorter than packed, and make room for a name that is a number.
    body = b"\x2a\x08\x0a\x06\x12\x04\x48\x01\x50\x02" + b"\x08\x01"
    message = wire.AUTHORIZATION.FromString(body)
    assert message.ByteSize() == len(body) + 2
    with pytest.raises(WireError, match=r"Authorization\.name: invalid wire type"):
        wire.parse(wire.AUTHORIZATION, body)


def test_unknown_fields_of_all_wire_types_are_skipped():
    unknown = b"\x18\x01" + b"\x19" + bytes(8) + b"\x1a\x02hi" + b"\x1d" + bytes(4) + b"\x1b\x20\x01\x1c"
    message = wire.parse(wire.ADDRESS, unknown + b"\x12\x00" + unknown)
    assert message.WhichOneof("type") == "service"


def test_the_last_member_of_a_oneof_wins_and_equal_ones_merge():
    one, other = b"\x0a\x03\x0a\x01a", b"\x0a\x03\x12\x01b"
    both = wire.parse(wire.ADDRESS, one + other).workload
    assert (both.name, both.namespace) == ("a", "b")
    last = wire.parse(wire.ADDRESS, one + b"\x12\x00" + other).workload
    assert (last.name, last.namespace) == ("", "b")
    assert wire.parse(wire.ADDRESS, one + b"\x12\x00").WhichOneof("type") == "service"


def test_numbers_come_packed_or_one_by_one():
    # destination_ports of a match: 5, then packed 6 and 128, then 7.
    match = b"\x48\x05\x4a\x03\x06\x80\x01\x48\x07"
    body = (
        b"\x2a"
        + bytes((len(match) + 4,))
        + b"\x0a"
        + bytes((len(match) + 2,))
        + b"\x12"
        + bytes((len(match),))
    )
    (rule,) = wire.parse(wire.AUTHORIZATION, body + match).rules
    assert list(rule.clauses[0].matches[0].destination_ports) == [5, 6, 128, 7]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_numbers_of_up_to_64_bits_are_read(number: int):
    encoded = bytes(betterproto2.encode_varint(number))
    assert read_varint(b"x" + encoded, 1, 1 + len(encoded)) == (number, 1 + len(encoded))


def test_a_number_over_64_bits_is_refused():
    with pytest.raises(WireError):
        read_varint(b"\xff" * 9 + b"\x02", 0, 10)
    # upb takes this one, and would cut it.
    with pytest.raises(WireError, match=r"Workload\.status: Address\.type: invalid varint"):
        wire.parse(wire.ADDRESS, b"\x0a\x0c\x88\x01" + b"\xff" * 9 + b"\x02")


def test_numbers_are_cut_to_their_32_bits():
    big = betterproto2.encode_varint(2**32 + 5)
    minus = betterproto2.encode_varint(-1)
    workload = b"\x88\x01" + minus + b"\x70" + big + b"\xda\x01\x06\x08" + big
    message = wire.parse(wire.ADDRESS, b"\x0a" + bytes((len(workload),)) + workload).workload
    assert (message.status, message.native_tunnel, message.capacity.value) == (2**32 - 1, True, 5)
