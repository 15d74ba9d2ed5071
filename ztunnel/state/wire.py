"""Reading the protobuf wire format by tables, strictly.

betterproto2 is what the rest of the project uses. The mesh cache does not, for two reasons. It has to decode
each workload of a mesh (100,000 of them) in a few microseconds. And it has to *refuse* what is broken:
betterproto2 takes a field that ends early, a number where a text belongs, or a message that is cut off, as
if it were whole, and a policy that was half read must never come into force.

A `Schema` names the fields of one message. `decode` reads bytes by it into a plain dict:

========  ==========================================  ============================================
kind      value in the dict                           absent from the bytes
========  ==========================================  ============================================
STRING    str                                         key absent
BYTES     bytes                                       key absent
UINT32    int, the low 32 bits                        key absent
ENUM      int, the low 32 bits, signed, any number    key absent
BOOL      bool                                        key absent
MESSAGE   dict                                        key absent
MAP       dict of str to dict                         key absent
repeated  list of the above                           key absent
========  ==========================================  ============================================

The rules are those of https://protobuf.dev/programming-guides/encoding/: the last value of a singular field
wins, a singular message that comes twice is merged, the last member of a oneof wins, numbers may come packed
or one by one, unknown fields are skipped (groups too). Stricter than most readers, and like the existing
implementation: a known field with another wire type is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]

_MAX_KEY = 0xFFFFFFFF
_MAX_GROUP_DEPTH = 100  # the limit of the existing implementation; our stack would bear more
_WIRE_TYPES = ("Varint", "SixtyFourBit", "LengthDelimited", "StartGroup", "EndGroup", "ThirtyTwoBit")
_VARINT, _FIXED64, _DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)


class WireError(ValueError):
    """Bytes are not a message of their schema. ``str()`` says where (innermost field first) and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where: list[str] = []

    def __str__(self) -> str:
        return (
            "failed to decode Protobuf message: "
            + "".join(f"{place}: " for place in self.where)
            + self.reason
        )


class Kind(Enum):
    """What a field holds."""

    STRING = "string"
    BYTES = "bytes"
    UINT32 = "uint32"
    ENUM = "enum"
    BOOL = "bool"
    MESSAGE = "message"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message. ``message`` is set for MESSAGE, and for MAP to that of `map_entry`."""

    name: str
    kind: Kind = Kind.STRING
    repeated: bool = False
    message: Schema | None = None
    oneof: str | None = None


class Schema:
    """The fields of a message type by number."""

    __slots__ = ("name", "rivals", "table")

    def __init__(self, name: str, fields: Mapping[int, Field]) -> None:
        self.name = name
        self.table: dict[int, tuple[Field, int, Callable[..., Any] | None]] = {
            number: (field, _expected(field), _READERS.get(field.kind)) for number, field in fields.items()
        }
        self.rivals: dict[str, tuple[str, ...]] = {
            field.name: tuple(
                other.name
                for other in fields.values()
                if other.oneof == field.oneof and other.name != field.name
            )
            for field in fields.values()
            if field.oneof is not None
        }

    def __repr__(self) -> str:
        return f"Schema({self.name})"


def map_entry(values: Schema) -> Schema:
    """The message that one entry of a map from texts to messages is on the wire."""
    return Schema("Entry", {1: Field("key"), 2: Field("value", Kind.MESSAGE, message=values)})


def read_varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a number of up to 64 bits. Returns it and where it ends. Raises WireError."""
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


def decode(  # noqa: PLR0912 - one loop, called for each message of a big mesh: calls cost
    schema: Schema, data: bytes, pos: int = 0, end: int = -1, into: Fields | None = None
) -> Fields:
    """Read ``data[pos:end]`` (default: all) as a message, merging it into ``into`` when given.

    Raises WireError for whatever is not such a message, and nothing else.
    """
    fields: Fields = {} if into is None else into
    if end < 0:
        end = len(data)
    table = schema.table
    while pos < end:
        key = data[pos]
        if key < 0x80:
            pos += 1
        else:
            key, pos = read_varint(data, pos, end)
        known = table.get(key >> 3)
        if known is None:
            pos = _skip(data, pos, end, key, 0)
            continue
        field, expected, reader = known
        try:
            wire_type = key & 7
            if wire_type != expected and not (
                wire_type == _DELIMITED and field.repeated and expected == _VARINT
            ):
                raise _wrong_type(wire_type, expected)
            if wire_type == _VARINT:
                value, pos = read_varint(data, pos, end)
                if field.repeated:
                    fields.setdefault(field.name, []).append(_number(field.kind, value))
                else:
                    fields[field.name] = _number(field.kind, value)
                continue
            size, pos = read_varint(data, pos, end)
            stop = pos + size
            if stop > end:
                raise WireError("buffer underflow")  # noqa: TRY301 - the handler below adds where
            if reader is not None:
                value = reader(data, pos, stop)
                if field.repeated:
                    fields.setdefault(field.name, []).append(value)
                else:
                    fields[field.name] = value
            else:
                _compound(field, fields, data, pos, stop)
            pos = stop
            if field.oneof is not None:
                for rival in schema.rivals[field.name]:
                    fields.pop(rival, None)
        except WireError as error:
            error.where.append(f"{schema.name}.{field.oneof or field.name}")
            raise
    return fields


def _compound(field: Field, fields: Fields, data: bytes, pos: int, stop: int) -> None:
    message = field.message
    if message is None:
        # Numbers, packed: one length for all.
        numbers = fields.setdefault(field.name, [])
        while pos < stop:
            value, pos = read_varint(data, pos, stop)
            numbers.append(_number(field.kind, value))
    elif field.kind is Kind.MAP:
        entry = decode(message, data, pos, stop)
        fields.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", {})
    elif field.repeated:
        fields.setdefault(field.name, []).append(decode(message, data, pos, stop))
    else:
        fields[field.name] = decode(message, data, pos, stop, fields.get(field.name))


def _number(kind: Kind, value: int) -> int | bool:
    if kind is Kind.BOOL:
        return value != 0
    value &= 0xFFFFFFFF
    if kind is Kind.ENUM and value >= 0x80000000:
        return value - 0x100000000
    return value


def _text(data: bytes, pos: int, stop: int) -> str:
    try:
        return str(data[pos:stop], "utf-8")
    except UnicodeDecodeError:
        raise WireError("invalid string value: data is not UTF-8 encoded") from None


def _bytes(data: bytes, pos: int, stop: int) -> bytes:
    return data[pos:stop]


_READERS: dict[Kind, Callable[[bytes, int, int], Any]] = {Kind.STRING: _text, Kind.BYTES: _bytes}


def _expected(field: Field) -> int:
    return _VARINT if field.kind in {Kind.UINT32, Kind.ENUM, Kind.BOOL} else _DELIMITED


def _wrong_type(actual: int, expected: int) -> WireError:
    if actual >= len(_WIRE_TYPES):
        return WireError(f"invalid wire type value: {actual}")
    return WireError(f"invalid wire type: {_WIRE_TYPES[actual]} (expected {_WIRE_TYPES[expected]})")


def _skip(data: bytes, pos: int, end: int, key: int, depth: int) -> int:
    """Step over the value of an unknown field, whose key ended at ``pos``."""
    if key > _MAX_KEY:
        raise WireError(f"invalid key value: {key}")
    wire_type = key & 7
    if wire_type >= len(_WIRE_TYPES):
        raise WireError(f"invalid wire type value: {wire_type}")
    if key >> 3 == 0:
        raise WireError("invalid tag value: 0")
    if wire_type == _VARINT:
        return read_varint(data, pos, end)[1]
    if wire_type == _END_GROUP:
        raise WireError("unexpected end group tag")
    if wire_type == _START_GROUP:
        return _skip_group(data, pos, end, key >> 3, depth + 1)
    if wire_type == _DELIMITED:
        size, pos = read_varint(data, pos, end)
    else:
        size = 8 if wire_type == _FIXED64 else 4
    if size > end - pos:
        raise WireError("buffer underflow")
    return pos + size


def _skip_group(data: bytes, pos: int, end: int, number: int, depth: int) -> int:
    if depth > _MAX_GROUP_DEPTH:
        raise WireError("recursion limit reached")
    while True:
        key, pos = read_varint(data, pos, end)
        if key == number << 3 | _END_GROUP:
            return pos
        pos = _skip(data, pos, end, key, depth)
