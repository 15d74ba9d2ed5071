"""Decodes header blocks (HPACK) and limits what decoding may cost.

There are two limits. We announce the first (SETTINGS_MAX_HEADER_LIST_SIZE). A block that is larger is still
decoded to its end, because all streams share the dynamic table (RFC 7541 section 2.2); then only its stream
is refused. The second is ``header_flood_factor`` times as large. A block that is larger than that, encoded or
decoded, is an attack and ends the connection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.literals import plain_fields
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.work import HEADER_BYTES

_FIELD_OVERHEAD = 32
"""Bytes that each field counts for, in addition to its name and value (RFC 9113 section 6.5.2)."""


_USUAL_SIZE = 1_024
"""Bytes. The encoded blocks of honest requests are smaller; hpack decodes one in about 20 microseconds.

Larger ones take about two microseconds for each eight bytes.
"""


class HeaderBlock(NamedTuple):
    """The decoded fields, unchecked. ``fits``: whether they are within the limit that we announced."""

    fields: list[tuple[bytes, bytes]]
    fits: bool

    @property
    def informational(self) -> bool:
        """Whether this is a 1xx response."""
        for name, value in self.fields:
            if name == b":status":
                return value[:1] == b"1"
            if name[:1] != b":":
                return False
        return False


class HeaderReader:
    """Decodes all header blocks of one connection, in their order.

    decoder: the decoder of the connection's `Engine`, which sets its size limit.
    work: the cost of the last block beyond that of a frame, in the unit of `HboneConnection.take_work`.
    """

    __slots__ = ("_decoder", "_limit", "work")

    def __init__(self, settings: HboneSettings, decoder: Decoder, *, client: bool) -> None:
        self.work = 0
        self._limit = settings.header_list_size(client=client)
        self._decoder = decoder

    def read(self, block: bytes) -> HeaderBlock:
        """Decode one block. Raises Violation when it cannot be decoded or is over the second limit."""
        plain = plain_fields(block, self._limit)
        self.work = len(block) // HEADER_BYTES if plain is None and len(block) > _USUAL_SIZE else 0
        if plain is not None:
            return HeaderBlock(plain, fits=True)
        try:
            fields: Any = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "a header list is several times as large as the limit"
            ) from None
        # hpack raises IndexError for some blocks that are cut off.
        except (HPACKError, IndexError, TypeError, UnicodeDecodeError):
            raise Violation(ErrorCode.COMPRESSION_ERROR, "a header block cannot be decoded") from None
        size = sum([len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields])
        return HeaderBlock(fields, fits=size <= self._limit)
