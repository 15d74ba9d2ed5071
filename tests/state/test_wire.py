"""The reader by tables, beside Google's and betterproto2's."""

from __future__ import annotations

from typing import Any

import betterproto2
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no stubs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state import messages
from tests.state.messages import google, google_fields, without_defaults
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.state import schema
from ztunnel.state.wire import Field, Kind, Schema, WireError, decode, read_varint

TYPES = [
    (schema.ADDRESS, "istio.workload.Address", messages.addresses),
    (schema.AUTHORIZATION, "istio.security.Authorization", messages.policies),
]
pairs = st.sampled_from(TYPES).flatmap(
    lambda row: st.tuples(st.just(row[0]), st.just(row[1]), row[2].map(bytes))
)
damaged_pairs = st.sampled_from(TYPES).flatmap(
    lambda row: st.tuples(st.just(row[0]), st.just(row[1]), messages.damaged(row[2].map(bytes)))
)


@settings(deadline=None)
@given(pairs)
def test_what_betterproto_writes_is_read_as_google_reads_it(case: tuple[Schema, str, bytes]):
    table, name, body = case
    assert without_defaults(table, decode(table, body)) == google_fields(table, google(name).FromString(body))


@settings(deadline=None, max_examples=150)
@given(damaged_pairs)
def test_damaged_bytes_are_refused_or_read_as_google_reads_them(case: tuple[Schema, str, bytes]):
    table, name, body = case
    refused, fields = "", {}
    try:
        fields = decode(table, body)
    except WireError as error:
        refused = error.reason
    try:
        judged = google(name).FromString(body)
    except DecodeError:
        assert refused
        return
    # Google skips a known field of another wire type as if it were unknown; too kind for a policy.
    assert not refused or refused.startswith("invalid wire type")
    if not refused:
        assert without_defaults(table, fields) == google_fields(table, judged)


@settings(deadline=None)
@given(st.sampled_from([schema.ADDRESS, schema.AUTHORIZATION]), st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(table: Schema, body: bytes):
    try:
        fields = decode(table, body)
    except WireError:
        return
    assert isinstance(fields, dict)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (schema.ADDRESS, pb.Address),
        (schema.WORKLOAD, pb.Workload),
        (schema.SERVICE, pb.Service),
        (schema.AUTHORIZATION, security.Authorization),
    ],
)
def test_the_tables_are_those_of_the_compiled_protos(table: Schema, message: type[betterproto2.Message]):
    compare(table, message, set())


def compare(table: Schema, message: type[Any], seen: set[str]) -> None:
    if table.name in seen:
        return
    seen.add(table.name)
    metadata = message._betterproto.meta_by_field_name
    assert {number: field.name for number, (field, _, _) in table.table.items()} == {
        meta.number: name for name, meta in metadata.items()
    }
    for field, _, _ in table.table.values():
        meta = metadata[field.name]
        assert meta.proto_type == field.kind.value
        assert bool(meta.repeated) == field.repeated
        assert meta.group == field.oneof
        if field.kind is Kind.MESSAGE and meta.unwrap is None:
            assert field.message is not None
            compare(field.message, message._betterproto.cls_by_field[field.name], seen)


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
        decode(schema.ADDRESS, body)
    assert str(caught.value) == f"failed to decode Protobuf message: {reason}"


def test_unknown_fields_of_all_wire_types_are_skipped():
    unknown = b"\x18\x01" + b"\x19" + bytes(8) + b"\x1a\x02hi" + b"\x1d" + bytes(4) + b"\x1b\x20\x01\x1c"
    assert decode(schema.ADDRESS, unknown + b"\x12\x00" + unknown) == {"service": {}}


def test_the_last_member_of_a_oneof_wins_and_equal_ones_merge():
    one, other = b"\x0a\x03\x0a\x01a", b"\x0a\x03\x12\x01b"
    assert decode(schema.ADDRESS, one + other) == {"workload": {"name": "a", "namespace": "b"}}
    assert decode(schema.ADDRESS, one + b"\x12\x00" + other) == {"workload": {"namespace": "b"}}
    assert decode(schema.ADDRESS, one + b"\x12\x00") == {"service": {}}


def test_numbers_come_packed_or_one_by_one():
    table = Schema("Numbers", {1: Field("n", Kind.UINT32, repeated=True)})
    assert decode(table, b"\x08\x05\x0a\x03\x06\x80\x01\x08\x07") == {"n": [5, 6, 128, 7]}


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_numbers_of_up_to_64_bits_are_read(number: int):
    encoded = betterproto2.encode_varint(number)
    assert read_varint(b"x" + encoded, 1, 1 + len(encoded)) == (number, 1 + len(encoded))


def test_a_number_over_64_bits_is_refused():
    with pytest.raises(WireError):
        read_varint(b"\xff" * 9 + b"\x02", 0, 10)


def test_numbers_are_cut_to_their_32_bits():
    table = Schema(
        "Numbers", {1: Field("u", Kind.UINT32), 2: Field("e", Kind.ENUM), 3: Field("b", Kind.BOOL)}
    )
    big = betterproto2.encode_varint(2**32 + 5)
    minus = betterproto2.encode_varint(-1)
    assert decode(table, b"\x08" + big + b"\x10" + minus + b"\x18" + big) == {"u": 5, "e": -1, "b": True}
