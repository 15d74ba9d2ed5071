"""Splits the byte stream into frames.

How it works. Bytes come in pieces of any size, and nearly all of them are the payload of DATA frames. Payload
is never collected: each piece is passed on as a view into the buffer in which it came. So a frame of 1 MiB
passes through as it arrives and is never copied. Only frame headers (nine bytes) and the bodies of other
frames are collected. A body that is longer than its frame type allows is refused by its length field, before
a byte of it is kept. Frames of unknown types and PRIORITY are skipped and not kept.

The reader is always in one phase:

    PREFACE → HEADER → DATA: PAD_LENGTH? → PAYLOAD → SKIP (padding) → HEADER
                     → others: BODY → HEADER
                     → ignored: SKIP → HEADER

This module checks the rules that need only frame headers: sizes, the order of HEADERS and CONTINUATION,
SETTINGS first. The `FrameHandler` decides what the frames mean.
"""

from __future__ import annotations

import sys
from typing import Final, Protocol

from ztunnel.hbone.events import DataReceived, Event
from ztunnel.hbone.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER_SIZE,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame_header,
)
from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.work import FRAME, SMALL, SMALL_DATA, USELESS

# A flag of ours above a frame's eight: this DATA frame had no payload.
_EMPTY = 0x100

# The phases. Plain numbers, because the members of an enumeration cost an attribute look-up in the inner
# loop.
_PREFACE: Final = 0
_HEADER: Final = 1
_PAD_LENGTH: Final = 2
_PAYLOAD: Final = 3
_SKIP: Final = 4
_BODY: Final = 5

_FIXED_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}

_NEEDS_A_STREAM = frozenset((HEADERS, PRIORITY))

# A normal SETTINGS has about 50 bytes, a normal GOAWAY a sentence of debug data.
_LARGEST_BODY = {SETTINGS: 4_096, GOAWAY: 16_384}

# What a HEADERS frame may add to its header block: padding, the padding's length, priority.
_HEADER_FRAME_OVERHEAD = 1 + 5 + 255


class FrameHandler(Protocol):
    """What frames mean. Its methods may raise Violation.

    work: what they have cost beside being frames; see ``FrameReader.work``.
    """

    work: int

    def data_began(self, stream_id: int, length: int, padded: int) -> bool:
        """A DATA frame of ``length`` bytes begins. Returns whether its payload is wanted.

        padded: not 0 when some of the bytes, perhaps all, are padding.
        """

    def payload_wanted(self, stream_id: int) -> bool:
        """Returns whether the payload of a DATA frame that began in an earlier call is still wanted."""

    def data_ended(self, stream_id: int, *, padding: int, empty: bool, end_stream: bool) -> None:
        """A wanted DATA frame is complete. Called only if it has padding, no payload, or END_STREAM.

        padding: bytes of padding, including the byte with the padding's length.
        """

    def block_received(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        """A whole header block came, in HEADERS and perhaps CONTINUATION. It is not decoded yet."""

    def frame_received(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        """A whole frame of another type came."""


class FrameReader:
    """Splits the bytes of one connection into frames and passes these to ``handler``.

    Payload is appended to ``events`` as it comes; the handler appends its own events to the same list.

    work: what the frames were worth that were not plain DATA (`ztunnel.hbone.work`). The caller reads it
    and sets it to 0.
    """

    __slots__ = (
        "_block",
        "_block_ends_stream",
        "_block_frames",
        "_block_left",
        "_block_limit",
        "_block_stream",
        "_delivering",
        "_events",
        "_flags",
        "_frame_size",
        "_handler",
        "_held",
        "_kind",
        "_left",
        "_max_block_frames",
        "_need",
        "_padding",
        "_phase",
        "_settings_seen",
        "_stream_id",
        "work",
    )

    def __init__(
        self, settings: HboneSettings, handler: FrameHandler, events: list[Event], *, client: bool
    ) -> None:
        self._handler = handler
        self._events = events
        self._frame_size = settings.frame_size
        # An encoded field is never larger than what it counts for when decoded, which includes 32 bytes each.
        self._block_limit = (
            settings.header_list_size(client=client) * settings.header_flood_factor + _HEADER_FRAME_OVERHEAD
        )
        self._max_block_frames = settings.max_header_frames
        self._block: list[bytes] = []
        self._block_ends_stream = False
        self._block_left = 0
        self._block_frames = 0
        self._block_stream = 0
        self._settings_seen = False
        self._held = bytearray()
        self._phase = _HEADER if client else _PREFACE
        self._need = FRAME_HEADER_SIZE if client else len(PREFACE)
        self._kind = self._flags = self._stream_id = self._left = self._padding = 0
        self._delivering = False
        self.work = 0

    @property
    def inside_frame(self) -> bool:
        """Whether the bytes so far end inside a frame or header block."""
        return self._phase > _HEADER or bool(self._held) or bool(self._block_stream)

    @property
    def held(self) -> int:
        """How many bytes of an unfinished frame or header block are kept."""
        return len(self._held) + sum(map(len, self._block))

    def cut(self, data: bytes | bytearray | memoryview, work_limit: int = sys.maxsize) -> memoryview | None:
        """Process the next bytes, in pieces of any size, and call the handler for what they complete.

        Stops when they have cost more than ``work_limit``, in units of ``work``; here each small DATA frame
        counts too. Returns the rest, which the next call must begin with, or None. Raises Violation when the
        peer broke a rule; the reader must not be used afterwards.
        """
        view = memoryview(data)
        end = len(view)
        at = small = 0
        unpack_from = frame_header.unpack_from
        events = self._events
        data_began = self._handler.data_began
        if self._delivering and not self._handler.payload_wanted(self._stream_id):
            self._delivering = False
        while at < end:
            if self._phase == _HEADER and not self._held and end - at >= FRAME_HEADER_SIZE:
                # The fast path: a DATA frame without padding that is here as a whole. It skips all phases; of
                # a busy tunnel's frames nearly every one comes this way.
                high, low, kind, flags, stream_id = unpack_from(view, at)
                if kind == DATA and not flags & PADDED and self._settings_seen and not self._block_stream:
                    length = high << 8 | low
                    stop = at + FRAME_HEADER_SIZE + length
                    if stop <= end and length <= self._frame_size:
                        stream_id &= 0x7FFFFFFF
                        wanted = data_began(stream_id, length, 0)
                        if wanted:
                            if length:
                                events.append(DataReceived(stream_id, view[at + FRAME_HEADER_SIZE : stop]))
                            if flags & END_STREAM or not length:
                                self._handler.data_ended(
                                    stream_id,
                                    padding=0,
                                    empty=not length,
                                    end_stream=bool(flags & END_STREAM),
                                )
                        at = stop
                        if length >= SMALL_DATA and wanted:
                            continue
                        small += SMALL
                        if small + self.work + self._handler.work > work_limit and at < end:
                            return view[at:]
                        continue
            at = self._step(view, at, end)
            if self.work + self._handler.work > work_limit and at < end:
                return view[at:]
        return None

    def _step(self, view: memoryview, at: int, end: int) -> int:
        """Do one phase, or as much of it as the bytes allow. Returns the new position."""
        phase = self._phase
        if phase == _PAYLOAD:
            stop = min(at + self._left, end)
            self._left -= stop - at
            if self._delivering:
                self._events.append(DataReceived(self._stream_id, view[at:stop]))
            if not self._left:
                self._payload_done(empty=False)
            return stop
        if phase == _SKIP:
            stop = min(at + self._left, end)
            self._left -= stop - at
            if not self._left:
                self._skipped()
            return stop
        if phase == _PAD_LENGTH:
            self._pad_length_came(view[at])
            return at + 1
        return self._gather(view, at, end)

    def _gather(self, view: memoryview, at: int, end: int) -> int:
        """Collect the preface, a header or a body. They may come in pieces."""
        held = self._held
        stop = min(at + self._need - len(held), end)
        held += view[at:stop]
        phase = self._phase
        if phase == _PREFACE and not PREFACE.startswith(held):
            raise Violation(ErrorCode.PROTOCOL_ERROR, "the connection does not begin with the HTTP/2 preface")
        if len(held) == self._need:
            gathered = bytes(held)
            held.clear()
            self._phase, self._need = _HEADER, FRAME_HEADER_SIZE
            if phase == _HEADER:
                self._header_came(gathered)
            elif phase == _BODY:
                self._body_came(self._kind, self._flags, self._stream_id, gathered)
        return stop

    def _header_came(self, head: bytes) -> None:
        high, low, kind, flags, stream_id = frame_header.unpack(head)
        length = high << 8 | low
        stream_id &= 0x7FFFFFFF
        self.work += FRAME
        self._check_header(kind, flags, stream_id, length)
        self._kind, self._flags, self._stream_id = kind, flags, stream_id
        if kind == DATA:
            self._data_header_came(length)
        elif kind == PRIORITY or kind > CONTINUATION:
            self.work += USELESS
            self._left = length
            self._delivering = False
            self._padding = 0
            self._phase = _SKIP if length else _HEADER
        elif length:
            self._phase, self._need = _BODY, length
        else:
            self._body_came(kind, flags, stream_id, b"")

    def _body_came(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        if kind == HEADERS:
            self._block_ends_stream = bool(flags & END_STREAM)
            self._block = [_fragment(flags, body)]
        elif kind == CONTINUATION:
            self.work += USELESS
            self._block.append(body)
        else:
            self._handler.frame_received(kind, flags, stream_id, body)
            return
        if flags & END_HEADERS:
            parts, self._block = self._block, []
            block = parts[0] if len(parts) == 1 else b"".join(parts)
            self._handler.block_received(stream_id, block, end_stream=self._block_ends_stream)

    def _check_header(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if not self._settings_seen:
            if kind != SETTINGS or flags & ACK:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_seen = True
        if length > self._frame_size or length != _FIXED_SIZES.get(kind, length):
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} with {length} bytes came")
        if not stream_id and kind in _NEEDS_A_STREAM:
            raise Violation(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} came on stream 0")
        if length > _LARGEST_BODY.get(kind, length):
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, f"a frame of type {kind} with {length} bytes came")
        if kind == PUSH_PROMISE:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE came")
        if bool(self._block_stream) != (kind == CONTINUATION) or (
            self._block_stream and stream_id != self._block_stream
        ):
            raise Violation(
                ErrorCode.PROTOCOL_ERROR, "a header block was interrupted, or continued without one"
            )
        if kind in (HEADERS, CONTINUATION):
            self._count_header_block(kind, flags, stream_id, length)

    def _count_header_block(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Limit the memory of one header block. Without a limit, endless CONTINUATION frames fill it."""
        if kind == HEADERS:
            self._block_left, self._block_frames = self._block_limit, self._max_block_frames
        self._block_left -= length
        self._block_frames -= 1
        if self._block_left < 0 or self._block_frames < 0:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        self._block_stream = 0 if flags & END_HEADERS else stream_id

    def _data_header_came(self, length: int) -> None:
        padded = self._flags & PADDED
        if padded and not length:
            raise Violation(
                ErrorCode.FRAME_SIZE_ERROR, "a padded DATA frame has no room for its padding's length"
            )
        self._delivering = self._handler.data_began(self._stream_id, length, padded)
        self._left = length
        self._padding = 0
        if padded:
            self._phase = _PAD_LENGTH
        elif length:
            self._phase = _PAYLOAD
        else:
            self._payload_done(empty=True)

    def _pad_length_came(self, pad_length: int) -> None:
        left = self._left - 1 - pad_length
        if left < 0:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "a DATA frame's padding is longer than the frame")
        self._left, self._padding = left, pad_length + 1
        if left:
            self._phase = _PAYLOAD
        else:
            self._payload_done(empty=True)

    def _payload_done(self, *, empty: bool) -> None:
        self._left = max(self._padding - 1, 0)
        if empty:
            self._flags |= _EMPTY
        if self._left:
            self._phase = _SKIP
        else:
            self._skipped()

    def _skipped(self) -> None:
        """A DATA frame or an ignored frame is complete."""
        self._phase = _HEADER
        if self._delivering:
            self._delivering = False
            flags = self._flags
            if self._padding or flags & (END_STREAM | _EMPTY):
                self._handler.data_ended(
                    self._stream_id,
                    padding=self._padding,
                    empty=bool(flags & _EMPTY),
                    end_stream=bool(flags & END_STREAM),
                )


def _fragment(flags: int, body: bytes) -> bytes:
    """Returns the part of a header block in the body of a HEADERS frame, without padding and priority."""
    start, stop = 0, len(body)
    if flags & PADDED:
        start = 1
        stop -= body[0] if body else 0
    if flags & WITH_PRIORITY:
        start += 5
    if start > stop:
        raise Violation(ErrorCode.PROTOCOL_ERROR, "a HEADERS frame is shorter than its padding and priority")
    return body[start:stop]
