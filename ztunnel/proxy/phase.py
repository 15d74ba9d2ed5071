"""The phases of a connection, and what its client sees if it fails before the relay."""

from __future__ import annotations

import socket
from enum import Enum

from ztunnel.sockets.reset import set_reset_on_close


class Phase(Enum):
    """The phase of a connection. The value says, for people, what it waits for."""

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
    """Let the client see a reset when its connection fails, or is cut by a drain, before the relay.

    The caller closes ``sock``.

    Without this, closing the socket sends a FIN if the client has not sent anything yet, and many clients
    take that for an empty response.
    """
    if phase is not Phase.RELAY:
        set_reset_on_close(sock)
