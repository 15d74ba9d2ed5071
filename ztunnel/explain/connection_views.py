"""The form in which a connection is shown to people and programs; selecting and sorting connections. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ztunnel.bounds import DEFAULTS, AdminBounds
from ztunnel.errors import ZtunnelError
from ztunnel.explain.text import span
from ztunnel.slices import Slices

_RANKED = 1000
"""Views that are processed between two pauses."""


class ConnectionView(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An open or closed connection.

    pod, peer: ``namespace/name``. client: its source address. destination: its original destination. age:
        since it began. idle: since the application's socket last moved a byte.
    waits_for: ``client``, ``server``, ``peer's window``, ``nobody`` (no byte is in transit), or what it waits
        for before it is established.
    send_window: bytes that the peer permits on its stream. held: bytes that wait for a slow application.
    """

    id: str
    state: str
    direction: str
    pod: str
    client: str
    destination: str
    age_seconds: float
    peer: str = ""
    next_hop: str = ""
    service: str = ""
    protocol: str = ""
    peer_identity: str = ""
    duration_seconds: float | None = None
    idle_seconds: float | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    waits_for: str = ""
    send_window: int | None = None
    held_bytes: int = 0
    error: str = ""
    code: str = ""
    why: str = ""
    policy: str = ""
    route: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()
    trace: str = ""


class SelectionError(ZtunnelError):
    """A parameter of ``/connections`` is unknown or has an invalid value."""

    code = "ZT-EXP-003"


_ORDERS: Mapping[str, Callable[[float, float, int], float]] = {
    "age": lambda age, _idle, _count: age,
    "recent": lambda age, _idle, _count: -age,
    "bytes": lambda _age, _idle, count: count,
    "idle": lambda _age, idle, _count: idle,
}
_SWITCHES: Mapping[str, bool] = {"": False, "0": False, "false": False, "1": True, "true": True}
PARAMETERS = ("state", "pod", "peer", "failed", "code", "id", "sort", "limit")


class Selection(msgspec.Struct, frozen=True):
    """Which connections are selected, and in which order."""

    state: str = ""
    pod: str = ""
    peer: str = ""
    failed: bool = False
    code: str = ""
    id: str = ""
    sort: str = "recent"
    limit: int = DEFAULTS.admin.shown_connections

    @classmethod
    def parse(cls, parameters: Mapping[str, str], bounds: AdminBounds = DEFAULTS.admin) -> Selection:
        """Read the parameters of a request. Raises SelectionError."""
        for name in parameters:
            if name not in PARAMETERS:
                raise SelectionError(f"There is no parameter {name[:40]}; there are {', '.join(PARAMETERS)}.")
        state, sort = parameters.get("state", ""), parameters.get("sort", "recent")
        if state not in ("", "open", "closed"):
            raise SelectionError(f"state={state[:40]} is neither open nor closed.")
        if sort not in _ORDERS:
            raise SelectionError(f"sort={sort[:40]} is none of {', '.join(_ORDERS)}.")
        failed = parameters.get("failed", "")
        if failed not in _SWITCHES:
            raise SelectionError(f"failed={failed[:40]} is neither 1 nor 0.")
        limit, most = parameters.get("limit", str(bounds.shown_connections)), bounds.shown_connections_most
        if not (limit.isascii() and limit.isdigit() and len(limit) < 7 and 0 < int(limit) <= most):
            raise SelectionError(f"limit={limit[:40]} is no number from 1 to {most}.")
        return cls(
            state,
            parameters.get("pod", ""),
            parameters.get("peer", ""),
            _SWITCHES[failed],
            parameters.get("code", ""),
            parameters.get("id", ""),
            sort,
            int(limit),
        )

    def takes_closed(self, connection: str, pod: str, code: str, *, failed: bool) -> bool:
        """Returns whether a closed connection is selected by these values; `takes` checks ``peer``."""
        if (self.id and connection != self.id) or (self.failed and not failed):
            return False
        return self.pod in ("", pod) and self.code in ("", code)

    def takes(self, view: ConnectionView) -> bool:
        """Returns whether a connection's peer is the wanted one: by name, address or identity."""
        others = (view.peer, view.peer_identity, view.service, *map(_host, (view.next_hop, view.destination)))
        return self.peer in (*others, _host(view.client), view.next_hop, view.destination, view.client)

    def rank(self, *, age: float, idle: float, count: int) -> float:
        """Returns the sort key of a connection, greatest first: seconds, seconds, and bytes both ways."""
        return _ORDERS[self.sort](age, idle, count)


def _host(address: str) -> str:
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def ordered(views: Sequence[Mapping[str, Any]], selection: Selection) -> Slices[list[Mapping[str, Any]]]:
    """Returns views (as from JSON, of one or several data planes) in order, and no more than wanted."""
    ranks: list[float] = []
    for number, view in enumerate(views, 1):
        count = view.get("receivedBytes", 0) + view.get("sentBytes", 0)
        ranks.append(selection.rank(age=view["ageSeconds"], idle=view.get("idleSeconds") or 0.0, count=count))
        if number % _RANKED == 0:
            yield
    order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
    return [views[index] for index in order[: selection.limit]]


def connection_lines(view: Mapping[str, Any]) -> Iterable[str]:
    """Returns one connection as text, its explanation included."""
    yield f"Connection {view['id']} of pod {view['pod']}: {view['direction']}, {view['state']}"
    peer = f" ({view['peer']})" if view.get("peer") else ""
    service = f" (service {view['service']})" if view.get("service") else ""
    if view["direction"] == "inbound":
        yield f"  from {view['client']}{peer} to {view['destination']}{service}"
        if view.get("nextHop"):
            yield f"  came as {view.get('protocol', '')}; the application is at {view['nextHop']}"
    else:
        yield f"  from {view['client']} to {view['destination']}{service}"
        if view.get("nextHop"):
            yield f"  next hop {view['nextHop']}{peer}, {view.get('protocol', '')}"
    if view.get("peerIdentity"):
        yield f"  the other end is {view['peerIdentity']}"
    age = f"{span(view['ageSeconds'])} ago"
    if view.get("durationSeconds") is not None:
        age += f", for {view['durationSeconds']:.3f} s"
    received, sent = view.get("receivedBytes", 0), view.get("sentBytes", 0)
    yield f"  began {age}; {received} bytes to the server, {sent} back"
    if view.get("idleSeconds") is not None:
        yield f"  the application's socket last moved a byte {span(view['idleSeconds'])} ago"
    if view.get("waitsFor"):
        window = f", its send window is {view['sendWindow']}" if view.get("sendWindow") is not None else ""
        held = f", {view['heldBytes']} bytes wait for the application" if view.get("heldBytes") else ""
        yield f"  it waits for {view['waitsFor']}{window}{held}"
    for number, sentence in enumerate(view.get("route", ()), 1):
        yield f"  {number}. {sentence}"
    for attempt in view.get("attempts", ()):
        yield f"  tried before: {attempt}"
    if view.get("error"):
        yield f"  => {view['error']} ({view.get('code', '')})"
        if view.get("why"):
            yield f"     {view['why']}"
    if view.get("trace"):
        yield f"  trace {view['trace']}: the other end's log lines carry the same"
