"""How far a connection has come, and what its client sees if it fails there."""

from __future__ import annotations

import socket
from enum import Enum

from ztunnel.sockets.reset import set_reset_on_close


class Phase(Enum):
    """How far a connection has come: what it waits for."""

    WORKLOAD = "the control plane, to tell of this pod"
    CERTIFICATE = "a certificate of this pod"
    HANDSHAKE = "the peer, to finish the TLS handshake"
    DESTINATION = "the control plane, to tell of the destination"
    NAME = "the destination's name to be resolved"
    ENDPOINT = "a tunnel, or the answer to its CONNECT"
    DIAL = "the next hop, to take the connection"
    APPLICATION = "the application, to take the connection"
    RELAY = ""


def reset_unless_carried(sock: socket.socket, phase: Phase) -> None:
    """Have the client see a reset, and never an end, when its connection failed before a byte was carried.

    By itself a close is a reset if the client's request had come and an end if not, which to many clients is
    an empty answer.
    """
    if phase is not Phase.RELAY:
        set_reset_on_close(sock)
