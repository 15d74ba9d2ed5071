"""Reads and writes the wire format of delta xDS by hand, because a mesh is large.

The first sync of 100,000 pods is one message of tens of megabytes. A general decoder takes 40 µs for each of
its resources and would block every connection meanwhile; `ResponseScanner` takes about 2 µs and stops after
each slice. It decodes only the envelope. The bytes of a resource are not decoded, and not even copied out of
the message before a caller takes the resource (`ztunnel.xds.scanned`).

How the scanner works: a protobuf message is a sequence of fields, each with a tag (field number and wire
type) and a value. All fields that matter are length-delimited, with tags of one byte and lengths of one or
two bytes. This fast path is written out in one loop, because a function call would cost as much as the rest.
Everything else (a longer length, an unknown field, another wire type) goes through `_skip` and `read_varint`.
Nothing is applied before the whole message was scanned, so a broken message changes nothing.

Sources: envoy.service.discovery.v3 (protos/xds.proto); protobuf encoding
(protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ztunnel.errors import ZtunnelError
from ztunnel.protobuf import WireError, read_varint, write_varint
from ztunnel.xds.scanned import ScannedResources, Span

# Tags: field number << 3 | wire type 2 (length-delimited).
_REQUEST_NODE = 0x0A
_REQUEST_TYPE_URL = 0x12
_REQUEST_SUBSCRIBE = 0x1A
_REQUEST_UNSUBSCRIBE = 0x22
_REQUEST_VERSIONS = 0x2A
_REQUEST_NONCE = 0x32
_REQUEST_ERROR = 0x3A
_STATUS_MESSAGE = 0x12
_RESPONSE_RESOURCE = 0x12
_RESPONSE_TYPE_URL = 0x22
_RESPONSE_NONCE = 0x2A
_RESPONSE_REMOVED = 0x32
_RESOURCE_VERSION = 0x0A
_RESOURCE_ANY = 0x12
_RESOURCE_NAME = 0x1A
_RESOURCE_ALIAS = 0x22
_ANY_VALUE = 0x12


class MalformedResponseError(ZtunnelError):
    """A message of the control plane is not a DeltaDiscoveryResponse. Nothing of it was applied."""

    code = "ZT-XDS-001"


def field(tag: int, value: bytes) -> bytes:
    """Returns a length-delimited field: its tag byte, the length, the value."""
    return bytes((tag,)) + write_varint(len(value)) + value


def encode_request(
    type_url: str,
    *,
    node: bytes = b"",
    subscribe: Iterable[str] = (),
    unsubscribe: Iterable[str] = (),
    versions: Mapping[str, str] | None = None,
    nonce: str = "",
    error: str | None = None,
) -> bytes:
    """Returns the bytes of a DeltaDiscoveryRequest.

    node: an encoded Node message, left out if empty.
    versions: the initial resource versions.
    error: makes the request a NACK. The sub-message is written even if the text is empty, because its
        presence alone makes a NACK.
    """
    out: list[bytes] = []
    if node:
        out.append(field(_REQUEST_NODE, node))
    out.append(field(_REQUEST_TYPE_URL, type_url.encode()))
    out.extend(field(_REQUEST_SUBSCRIBE, name.encode()) for name in subscribe)
    out.extend(field(_REQUEST_UNSUBSCRIBE, name.encode()) for name in unsubscribe)
    if versions:
        out.extend(encode_version(name, version) for name, version in versions.items())
    if nonce:
        out.append(field(_REQUEST_NONCE, nonce.encode()))
    if error is not None:
        out.append(field(_REQUEST_ERROR, field(_STATUS_MESSAGE, error.encode("utf-8", "replace"))))
    return b"".join(out)


def encode_version(name: str, version: str) -> bytes:
    """Returns one entry of the map ``initial_resource_versions``, with its tag."""
    key = name.encode()
    value = version.encode()
    if len(key) < 0x70 and len(value) < 0x0C:  # the whole entry is below 128 bytes: every length is one byte
        entry = bytes((0x0A, len(key))) + key + bytes((0x12, len(value))) + value
        return bytes((_REQUEST_VERSIONS, len(entry))) + entry
    return field(_REQUEST_VERSIONS, field(0x0A, key) + field(0x12, value))


class ResponseScanner:
    """Splits the bytes of a DeltaDiscoveryResponse into its resources, one slice at a time.

    Call `scan` until it returns True; then the attributes are complete. `Any.type_url`, the ttl and the cache
    control are ignored.

    resources: the resources in order, until `release` is called.
    aliases: the other names of all resources, in one list.
    value_bytes: the sum of the lengths of the resources' payloads.
    """

    __slots__ = (
        "_message",
        "_position",
        "aliases",
        "nonce",
        "removed",
        "resources",
        "type_url",
        "value_bytes",
    )

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._position = 0
        self.type_url = ""
        self.nonce = ""
        self.removed: list[str] = []
        self.resources = ScannedResources(message)
        self.aliases: list[str] = []
        self.value_bytes = 0

    def scan(self, slice_size: int) -> bool:
        """Read at most ``slice_size`` more fields. Returns True when the message is read to its end.

        Raises `MalformedResponseError` if the bytes are not such a message.
        """
        try:
            self._scan(slice_size)
        except (IndexError, UnicodeDecodeError, WireError, _BrokenError) as error:
            self.release()
            where = f"DeltaDiscoveryResponse, near byte {self._position}"
            raise MalformedResponseError(f"failed to decode Protobuf message: {where}: {error}") from None
        return self._position >= len(self._message)

    def release(self) -> None:
        """Release the message and the resources in it."""
        self._message = b""
        self.resources = ScannedResources(b"")

    def _scan(self, limit: int) -> None:
        message = self._message
        end = len(message)
        position = self._position
        try:
            while position < end and limit:
                limit -= 1
                tag = message[position]
                if tag & 7 != 2 or tag >= 0x80:
                    position = _skip(message, position, end)
                    continue
                size = message[position + 1]
                position += 2
                if size >= 0x80:
                    size, position = read_varint(message, position - 1, end)
                stop = position + size
                if stop > end:
                    raise _BrokenError("a field is longer than the message")
                if tag == _RESPONSE_RESOURCE:
                    self._resource(message, position, stop)
                elif tag == _RESPONSE_REMOVED:
                    self.removed.append(message[position:stop].decode())
                elif tag == _RESPONSE_TYPE_URL:
                    self.type_url = message[position:stop].decode()
                elif tag == _RESPONSE_NONCE:
                    self.nonce = message[position:stop].decode()
                position = stop
        finally:
            self._position = position

    def _resource(self, message: bytes, position: int, end: int) -> None:
        name = version = body = (0, 0)
        while position < end:
            tag = message[position]
            if tag & 7 != 2 or tag >= 0x80:
                position = _skip(message, position, end)
                continue
            size = message[position + 1]
            position += 2
            if size >= 0x80:
                more = message[position]
                if more < 0x80:
                    size = size & 0x7F | more << 7
                    position += 1
                else:
                    size, position = read_varint(message, position - 1, end)
            stop = position + size
            if stop > end:
                raise _BrokenError("a field is longer than its resource")
            if tag == _RESOURCE_ANY:
                body = _any_value(message, position, stop, body)
            elif tag == _RESOURCE_NAME:
                name = (position, stop)
                message[position:stop].decode()  # must be possible later
            elif tag == _RESOURCE_VERSION:
                version = (position, stop)
                message[position:stop].decode()
            elif tag == _RESOURCE_ALIAS:
                self.aliases.append(message[position:stop].decode())
            position = stop
        if position != end:
            raise _BrokenError("a resource ends inside a field")
        self.value_bytes += body[1] - body[0]
        self.resources.add(name, version, body)


def _any_value(message: bytes, position: int, end: int, value: Span) -> Span:
    """Returns the position of the payload of an Any between two positions; ``value`` if it has none.

    A field may come twice: repeated sub-messages merge, so the last payload counts.
    """
    while position < end:
        tag = message[position]
        if tag & 7 != 2 or tag >= 0x80:
            position = _skip(message, position, end)
            continue
        size = message[position + 1]
        position += 2
        if size >= 0x80:
            size, position = read_varint(message, position - 1, end)
        stop = position + size
        if stop > end:
            raise _BrokenError("a field is longer than its Any")
        if tag == _ANY_VALUE:
            value = (position, stop)
        position = stop
    if position != end:
        raise _BrokenError("an Any ends inside a field")
    return value


class _BrokenError(Exception):
    """The bytes are not valid; the text says why."""


def _skip(message: bytes, position: int, end: int) -> int:
    """Returns the position after the field at ``position``, whatever it is.

    It must end at or before ``end``.
    """
    tag, position = read_varint(message, position, len(message))
    kind = tag & 7
    if not 0 < tag >> 3 < 1 << 29:
        raise _BrokenError("a field has an impossible number")
    if kind == 2:
        size, position = read_varint(message, position, len(message))
        position += size
    elif kind == 0:
        _, position = read_varint(message, position, len(message))
    elif kind == 1:
        position += 8
    elif kind == 5:
        position += 4
    else:
        raise _BrokenError(f"a field has wire type {kind}")
    if position > end:
        raise _BrokenError("a field is longer than what encloses it")
    return position
