"""HBONE: HTTP/2 CONNECT tunnels, sans-IO.

Bytes from the transport go into ``HboneClient`` or ``HboneServer``; events and bytes to write come out. This
package opens no socket, reads no clock and starts no task. ``ztunnel.tunnel.tunnel`` drives it.
"""

from __future__ import annotations

from ztunnel.hbone.client import HboneClient
from ztunnel.hbone.connection import HboneConnection
from ztunnel.hbone.events import (
    ConnectionFailed,
    ConnectReceived,
    DataReceived,
    Event,
    Headers,
    PeerDraining,
    PeerSettingsReceived,
    Pong,
    Responded,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ztunnel.hbone.hbone_errors import CannotOpenStreamError, ErrorCode, code_text, error_text
from ztunnel.hbone.server import HboneServer
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream
from ztunnel.hbone.windows import WindowBudget

__all__ = [
    "CannotOpenStreamError",
    "ConnectReceived",
    "ConnectionFailed",
    "DataReceived",
    "ErrorCode",
    "Event",
    "HboneClient",
    "HboneConnection",
    "HboneServer",
    "HboneSettings",
    "Headers",
    "PeerDraining",
    "PeerSettingsReceived",
    "Pong",
    "Responded",
    "Stream",
    "StreamEnded",
    "StreamReset",
    "WindowBudget",
    "WindowOpened",
    "code_text",
    "error_text",
]
