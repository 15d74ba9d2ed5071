"""The part of a tunnel that the h2 library does: both sides' settings, and the state of header compression.

Each tunnel has one `H2Connection`. It gets the frames that are about the connection as a whole: it checks,
applies and acknowledges the peer's SETTINGS, and its HPACK decoder holds the dynamic table. Our own settings
count as in force from the start, so nothing waits for the peer's acknowledgement.

These parts are ours:

- DATA frames (`reader`): h2 would need a whole frame before it hands out any of its payload.
- The states of a CONNECT stream, which are a table (`stream_state`).
- Flow control, which lends windows (`windows`).
- GOAWAY: after it h2 refuses all frames, but streams up to its last id continue (RFC 9113 section 6.8).

docs/measurements/hbone.md has the measurements behind this choice.
"""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hpack import Decoder

from ztunnel.hbone import frames as wire
from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.settings import HboneSettings

UNLIMITED: Final = 1 << 32
"""The number of streams that a peer allows if its SETTINGS name none."""

_READ = frozenset(
    (
        wire.HEADER_TABLE_SIZE,
        wire.ENABLE_PUSH,
        wire.MAX_CONCURRENT_STREAMS,
        wire.INITIAL_WINDOW_SIZE,
        wire.MAX_FRAME_SIZE,
    )
)
"""The settings that a tunnel uses or has to check.

H2 would keep every one that a peer sends, known or not.
"""


class Engine:
    """The h2 connection of one tunnel, and the peer's settings in force (the protocol's defaults at first).

    decoder: the HPACK decoder; it refuses header lists over ``header_flood_factor`` times our limit.
    max_concurrent_streams: how many of our streams the peer takes at a time.
    initial_window, max_frame_size, header_table_size: the settings of RFC 9113 section 6.5.2, in bytes.
    known: whether the peer's SETTINGS came.
    """

    __slots__ = (
        "_h2",
        "decoder",
        "header_table_size",
        "initial_window",
        "known",
        "max_concurrent_streams",
        "max_frame_size",
    )

    def __init__(self, settings: HboneSettings, *, client: bool) -> None:
        limit = settings.header_list_size(client=client)
        h2 = self._h2 = H2Connection(H2Configuration(client_side=client, header_encoding=None))
        h2.local_settings = Settings(
            client=client,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window,
                SettingCodes.MAX_FRAME_SIZE: settings.frame_size,
                SettingCodes.MAX_HEADER_LIST_SIZE: limit,
            },
        )
        h2.max_inbound_frame_size = settings.frame_size
        # `FrameReader` has checked and removed the preface before.
        h2.incoming_buffer = FrameBuffer(server=False)
        self.decoder: Decoder = h2.decoder
        self.decoder.max_header_list_size = limit * settings.header_flood_factor
        self.known = False
        self.max_concurrent_streams = UNLIMITED
        self._read()

    def receive_settings(self, body: bytes) -> bytes:
        """Apply the body of the peer's SETTINGS frame. Returns the frame that acknowledges it.

        Raises Violation for a value that the protocol forbids, and for an incomplete body.
        """
        if len(body) % 6:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS with {len(body)} bytes came")
        named = [(identifier, value) for identifier, value in wire.read_settings(body) if identifier in _READ]
        try:
            self._h2.receive_data(wire.settings(named))
        except ProtocolError as error:
            raise Violation(ErrorCode(error.error_code), f"SETTINGS cannot be accepted: {error}") from None
        self.known = True
        for identifier, value in named:
            if identifier == wire.MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
        self._read()
        return self._h2.data_to_send()

    def _read(self) -> None:
        remote = self._h2.remote_settings
        self.initial_window = remote.initial_window_size
        self.max_frame_size = remote.max_frame_size
        self.header_table_size = remote.header_table_size
