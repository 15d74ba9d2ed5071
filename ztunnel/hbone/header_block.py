"""Header blocks: HPACK, and what one may cost.

The limit that we announce (SETTINGS_MAX_HEADER_LIST_SIZE) is a request's own: a block that is over it is
still decoded to its end, because the dynamic table belongs to the whole connection and has to stay in step
(RFC 7541 section 2.2), and then its stream alone is refused. What decoding may cost is bounded by
``header_flood_factor`` times the limit. A block that is larger than that, coded or decoded, is an attack,
and ends the connection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.literals import plain_fields
from ztunnel.hbone.settings import HboneSettings

_FIELD_OVERHEAD = 32
"""What each field counts beside its bytes (RFC 9113 section 6.5.2)."""


_USUAL = 1_024
"""Bytes that the block of an honest request stays below, coded; hpack reads it in some 20 microseconds. A
large one costs about two for each eight bytes.
"""


class HeaderBlock(NamedTuple):
    """The fields of a block, unchecked. ``fits``: they are within the limit that we announced."""

    fields: list[tuple[bytes, bytes]]
    fits: bool

    @property
    def informational(self) -> bool:
        """Whether this is a 1xx answer."""
        for name, value in self.fields:
            if name == b":status":
                return value[:1] == b"1"
            if name[:1] != b":":
                return False
        return False


class HeaderReader:
    """Reads the header blocks of one connection, all of them, in their order.

    decoder: of the `Engine`, which bounds it.
    work: what the last block cost beside being a frame, in the units of `HboneConnection.take_work`.
    """

    __slots__ = ("_decoder", "_limit", "work")

    def __init__(self, settings: HboneSettings, decoder: Decoder, *, client: bool) -> None:
        self.work = 0
        self._limit = settings.header_list_size(client=client)
        self._decoder = decoder

    def read(self, block: bytes) -> HeaderBlock:
        """Decode a block. Raises Violation when it cannot be decoded, or is a flood."""
        plain = plain_fields(block, self._limit)
        self.work = len(block) >> 3 if plain is None and len(block) > _USUAL else 0
        if plain is not None:
            return HeaderBlock(plain, fits=True)
        try:
            fields: Any = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "a header list is several times as large as the limit"
            ) from None
        # hpack lets IndexError pass for some blocks that are cut off.
        except (HPACKError, IndexError, TypeError, UnicodeDecodeError):
            raise Violation(ErrorCode.COMPRESSION_ERROR, "a header block cannot be decoded") from None
        size = sum([len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields])
        return HeaderBlock(fields, fits=size <= self._limit)
