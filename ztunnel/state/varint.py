"""Numbers in protobuf's base-128 form, read and written. Seven bits a byte, the lowest first.

Source: https://protobuf.dev/programming-guides/encoding/#varints.
"""

from __future__ import annotations


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
