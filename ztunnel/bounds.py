"""Every timeout and limit that a person may want to know or a test to change, as one frozen value.

`Bounds` is handed down from the top; whoever is made without it gets `DEFAULTS`. What the environment sets is
not here but in `ztunnel.config.model.Config`. The table in docs/architecture.md is made from this file (`make
bounds`), and `make lint` sees that it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024


def seconds(value: float, what: str) -> Any:
    """Returns a field that holds seconds. what: its row in the table of bounds."""
    return field(default=value, metadata={"what": what, "unit": "s"})


def count(value: int, what: str) -> Any:
    """Returns a field that holds a number of things."""
    return field(default=value, metadata={"what": what, "unit": ""})


def size(value: int, what: str) -> Any:
    """Returns a field that holds bytes."""
    return field(default=value, metadata={"what": what, "unit": "B"})


@dataclass(frozen=True, slots=True)
class TunnelBounds:
    """Of one HBONE tunnel and its streams."""

    ping_interval: float = seconds(10, "from an answered PING to the next")
    ping_timeout: float = seconds(20, "for the answer to a PING; then the tunnel is dead")
    goodbye: float = seconds(5, "the end of a tunnel that we choose: for its last bytes to arrive")
    closing: float = seconds(0.25, "of these, for a peer that has got everything to close its end")
    last_words: float = seconds(60, "an application that takes nothing, after its stream is dead")
    answer_timeout: float = seconds(20, "for the answer to CONNECT; the peer may itself wait 10 s")
    probe_after: float = seconds(1, "without an answer to CONNECT, then a PING asks whether anybody is there")
    probe_timeout: float = seconds(2, "for any byte after that PING; then nobody is")
    reset_grace: float = seconds(1, "for an application to read what came before a reset of its peer")
    stillborn: int = count(3, "tunnels that end before they are used, until a connection fails")


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Of one connection, from accept to its access log line."""

    dial_timeout: float = seconds(10, "to dial an endpoint, a gateway or an application")
    handshake_timeout: float = seconds(10, "for a TLS handshake, on either side")
    socks_timeout: float = seconds(10, "for a SOCKS5 greeting and request")
    demand_timeout: float = seconds(6, "on-demand xDS: for an answer, before deciding without")
    attempts: int = count(3, "endpoints that are tried for one connection")
    attempt_patience: float = seconds(3, "for an endpoint to be reached while there are others")
    penalty: float = seconds(5, "an endpoint that failed is avoided, if there are others")
    tunnels: int = count(3, "tunnels to one endpoint that refuse a stream unseen, until that is a failure")
    inner_linger: float = seconds(30, "the last bytes of an inner tunnel (double HBONE)")


@dataclass(frozen=True, slots=True)
class Bounds:
    """All of them, by who keeps them."""

    tunnel: TunnelBounds = field(default_factory=TunnelBounds)
    connection: ConnectionBounds = field(default_factory=ConnectionBounds)


DEFAULTS = Bounds()
