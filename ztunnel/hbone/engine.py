"""The h2 connection underneath: the settings of both sides, and the state of header compression.

One `H2Connection` stands behind each tunnel and is fed what concerns the connection and not a stream. It
checks and applies the peer's SETTINGS and acknowledges them, and its HPACK decoder holds the dynamic table.
Our own settings count as in force from the start, so nothing waits for the peer to acknowledge them.

What h2 is not asked: DATA frames go past it (`reader`), because a whole frame would have to be here before
h2 takes it; the states of a CONNECT stream are a table (`stream_state`); windows are lent (`windows`). GOAWAY
never comes here either: h2 refuses everything afterwards, but streams up to its last id live on (RFC 9113
section 6.8). docs/measurements/hbone.md says what each of these is worth.
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
"""As many streams as anybody may want: what a peer allows that names no number."""

_READ = frozenset(
    (
        wire.HEADER_TABLE_SIZE,
        wire.ENABLE_PUSH,
        wire.MAX_CONCURRENT_STREAMS,
        wire.INITIAL_WINDOW_SIZE,
        wire.MAX_FRAME_SIZE,
    )
)
"""What a tunnel has a use for, or has to check. h2 would keep all that a peer names, known or not."""


class Engine:
    """h2 for one tunnel, and the peer's values in force; those it does not name have the protocol's defaults.

    decoder: HPACK of what the peer sends; it refuses lists of over ``header_flood_factor`` times our limit.
    max_concurrent_streams: streams of ours that the peer takes at a time.
    initial_window, max_frame_size, header_table_size: as RFC 9113 section 6.5.2 names them, in bytes.
    known: SETTINGS came.
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
        # The preface was checked and taken off before anything comes here.
        h2.incoming_buffer = FrameBuffer(server=False)
        self.decoder: Decoder = h2.decoder
        self.decoder.max_header_list_size = limit * settings.header_flood_factor
        self.known = False
        self.max_concurrent_streams = UNLIMITED
        self._read()

    def receive_settings(self, body: bytes) -> bytes:
        """Apply the peer's SETTINGS. Returns what acknowledges them.

        Raises Violation for a value that the protocol forbids, and a body that is not whole.
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
