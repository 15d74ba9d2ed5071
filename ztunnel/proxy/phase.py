"""The phases of a connection."""

from __future__ import annotations

from enum import Enum


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
