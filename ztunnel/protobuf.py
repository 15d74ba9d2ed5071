"""Protobuf's encoding by hand: numbers, and a strict check of whole messages.

Messages are read by upb (`ztunnel.state.wire`). Here is what it does not do, or not as the Rust ztunnel does.

Numbers have seven bits a byte, the lowest first. `check` tells whether bytes are a message, and if not, where
and why. It reads the structure alone. The rules are those of
https://protobuf.dev/programming-guides/encoding/: unknown fields are skipped (groups too), numbers may come
packed or one by one. It is stricter than most readers, and like the Rust ztunnel: a known field with another
wire type is an error, and so is a number of more than 64 bits.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

_MAX_KEY = 0xFFFFFFFF
_MAX_GROUP_DEPTH = 100  # the limit of the Rust ztunnel; our stack would bear more
_WIRE_TYPES = ("Varint", "SixtyFourBit", "LengthDelimited", "StartGroup", "EndGroup", "ThirtyTwoBit")
_VARINT, _FIXED64, _DELIMITED, _START_GROUP, _END_GROUP = range(5)  # 5 is FIXED32


class WireError(ValueError):
    """Bytes are not a message of their type. ``str()`` says where (innermost field first) and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where: list[str] = []

    def __str__(self) -> str:
        places = "".join(f"{place}: " for place in self.where)
        return f"failed to decode Protobuf message: {places}{self.reason}"


def read_varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Reads a number of up to 64 bits. Returns it and where it ends. Raises WireError."""
    result = shift = 0
    while pos < end:
        byte = data[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == 63 and byte > 1:
                break
            return result, pos
        shift += 7
        if shift > 63:
            break
    raise WireError("invalid varint")


def write_varint(value: int) -> bytes:
    """Returns a non-negative number as bytes."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Field(NamedTuple):
    """What can be wrong with a field. ``message`` is None for texts, bytes and numbers."""

    place: str
    wire_type: int
    packable: bool
    text: bool
    message: Any


def check(descriptor: Any, data: bytes, pos: int = 0, end: int = -1) -> None:
    """Goes over ``data[pos:end]`` (default: all) as a message of this type.

    ``descriptor`` is one of the protobuf package. Raises WireError for whatever is not such a message.
    """
    if end < 0:
        end = len(data)
    fields = _fields(descriptor)
    while pos < end:
        key, pos = read_varint(data, pos, end)
        field = fields.get(key >> 3)
        if field is None:
            pos = _skip_unknown(data, pos, end, key, 0)
            continue
        try:
            pos = _check_value(field, key & 7, data, pos, end)
        except WireError as error:
            error.where.append(field.place)
            raise


def _check_value(field: _Field, wire_type: int, data: bytes, pos: int, end: int) -> int:
    """Checks the value of a known field, and returns where it ends."""
    if wire_type != field.wire_type and not (field.packable and wire_type == _DELIMITED):
        raise _wrong_type(wire_type, field.wire_type)
    stop = _skip(data, pos, end, wire_type)
    if wire_type == _VARINT:
        return stop
    _, pos = read_varint(data, pos, end)
    if field.message is not None:
        check(field.message, data, pos, stop)
    elif field.text:
        try:
            str(data[pos:stop], "utf-8")
        except UnicodeDecodeError:
            raise WireError("invalid string value: data is not UTF-8 encoded") from None
    elif field.packable:
        while pos < stop:
            _, pos = read_varint(data, pos, stop)
    return stop


@cache
def _fields(descriptor: Any) -> dict[int, _Field]:
    # The entries of maps are called so by the Rust ztunnel.
    name = "Entry" if descriptor.name.endswith("Entry") else descriptor.name
    fields = {}
    for field in descriptor.fields:
        oneof = field.containing_oneof
        # In the Rust ztunnel, fields are called as is usual in Rust.
        snake = re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), field.name)
        shown = snake if oneof is None or oneof.name.startswith("_") else oneof.name
        numeric = field.type in {field.TYPE_UINT32, field.TYPE_BOOL}
        fields[field.number] = _Field(
            place=f"{name}.{shown}",
            wire_type=_VARINT if numeric else _DELIMITED,
            packable=numeric and field.is_repeated,
            text=field.type == field.TYPE_STRING,
            message=field.message_type,
        )
    return fields


def _wrong_type(actual: int, expected: int) -> WireError:
    if actual >= len(_WIRE_TYPES):
        return WireError(f"invalid wire type value: {actual}")
    return WireError(f"invalid wire type: {_WIRE_TYPES[actual]} (expected {_WIRE_TYPES[expected]})")


def _skip_unknown(data: bytes, pos: int, end: int, key: int, depth: int) -> int:
    """Returns where the value of an unknown field ends, whose key ended at ``pos``."""
    if key > _MAX_KEY:
        raise WireError(f"invalid key value: {key}")
    wire_type, number = key & 7, key >> 3
    if wire_type >= len(_WIRE_TYPES):
        raise WireError(f"invalid wire type value: {wire_type}")
    if number == 0:
        raise WireError("invalid tag value: 0")
    if wire_type == _END_GROUP:
        raise WireError("unexpected end group tag")
    if wire_type != _START_GROUP:
        return _skip(data, pos, end, wire_type)
    if depth >= _MAX_GROUP_DEPTH:
        raise WireError("recursion limit reached")
    while True:
        key, pos = read_varint(data, pos, end)
        if key == number << 3 | _END_GROUP:
            return pos
        pos = _skip_unknown(data, pos, end, key, depth + 1)


def _skip(data: bytes, pos: int, end: int, wire_type: int) -> int:
    """Returns where a value that is no group ends."""
    if wire_type == _VARINT:
        return read_varint(data, pos, end)[1]
    if wire_type == _DELIMITED:
        size, pos = read_varint(data, pos, end)
    else:
        size = 8 if wire_type == _FIXED64 else 4
    if size > end - pos:
        raise WireError("buffer underflow")
    return pos + size
