"""The history: the last connections of a data plane that ended, with the reasons of their plan and verdict.

Each connection passes here and hardly any is asked about. So an entry is a record of fixed size in one block
of memory: numbers, addresses, the trace id. All else is in a `ConnectionKind`, which connections share that
have the same pod, peer, service and route, and in a `Failure` if there was one. Nothing else stays: each
object that stays makes the next connection use memory that is in no cache of the processor, which costs more
than making the object. Records are made some at a time (`later`): what runs for one connection alone runs out
of no cache either. `ClosedConnection` is made from a record when somebody reads it.

The number of entries and the length of each text are limited: tests/proxy/test_history.py holds how much
memory they take.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count
from random import Random
from struct import Struct
from typing import Protocol

import msgspec

from ztunnel.bounds import DEFAULTS, HistoryBounds
from ztunnel.model.address import SocketAddress

_TOGETHER = 32
"""Connections whose records are made in one go: some 60 microseconds."""

_RECORD = Struct("<QddQQ16s16sH16sH16sHBBB")
"""Number, began, seconds, received, sent, trace; client, destination and next hop as ip and port; the lengths
of the three ips.
"""
_NO_ADDRESS = (b"", 0)


class Ended(Protocol):
    """A connection that has ended, and whose record is not made yet."""

    def remember(self) -> None:
        """Add it to the history."""


class ConnectionKind(msgspec.Struct, frozen=True, gc=False):
    """What connections have in common. Texts are limited. route: the reasons of the plan."""

    direction: str = ""
    pod: str = ""
    peer: str = ""
    service: str = ""
    peer_identity: str = ""
    protocol: str = ""
    route: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, gc=False):
    """Why a connection failed, or what failed before it succeeded. Texts are limited.

    route: the reasons of a refusal, None where those of the plan count. attempts: that failed before.
    """

    error: str = ""
    code: str = ""
    why: str = ""
    policy: str = ""
    route: tuple[str, ...] | None = None
    attempts: tuple[str, ...] = ()


class ClosedConnection(msgspec.Struct, gc=False):
    """One connection that has ended.

    pod: ``namespace/name`` of our pod. began: seconds since the epoch. received, sent: bytes from client to
    server, and back. error, code, why: why it failed, empty if it did not. route: the reasons of its plan.
    destination: for an incoming connection, what policy was asked about.
    """

    id: str
    pod: str
    direction: str
    client: SocketAddress
    destination: SocketAddress
    began: float
    seconds: float
    next_hop: SocketAddress | None = None
    peer: str = ""
    service: str = ""
    peer_identity: str = ""
    protocol: str = ""
    received: int = 0
    sent: int = 0
    error: str = ""
    code: str = ""
    why: str = ""
    policy: str = ""
    route: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()
    trace: str = ""


class History:
    """A ring of the last connections, and the ids of connections.

    capacity: how many entries are kept, 0 for none. random: makes the first part of the ids. It differs
    between processes and between runs of one process. keeps: whether anything is kept. numbers: gives each
    new connection its number, for `id_of` and `add`. bounds: of what an entry keeps.
    """

    def __init__(self, capacity: int, random: Random, bounds: HistoryBounds = DEFAULTS.history) -> None:
        self.bounds = bounds
        self.keeps = capacity > 0
        self._capacity = capacity
        self.numbers = count(1)
        self._added = 0
        self._waiting: list[Ended] = []
        self._records = bytearray(capacity * _RECORD.size)
        self._kinds: list[ConnectionKind | None] = [None] * capacity
        self._failures: list[Failure | None] = [None] * capacity
        self._prefix = f"{random.getrandbits(20):05x}-"
        self._shared: dict[tuple[str, str, str, str, str, str, str, tuple[str, ...]], ConnectionKind] = {}

    def __len__(self) -> int:
        self._catch_up()
        return min(self._added, self._capacity)

    def id_of(self, number: int) -> str:
        """Returns the id of a connection: short, and unique for a long time."""
        return f"{self._prefix}{number:x}"

    def later(self, ended: Ended) -> None:
        """Let a connection add itself soon, and at the latest before somebody reads.

        It is held until then, so it must hold no socket and no error with its traceback.
        """
        self._waiting.append(ended)
        if len(self._waiting) >= _TOGETHER:
            self._catch_up()

    def _catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for ended in waiting:
            ended.remember()

    def add(
        self,
        number: int,
        kind: ConnectionKind,
        client: SocketAddress,
        destination: SocketAddress,
        next_hop: SocketAddress | None,
        began: float,
        seconds: float,
        carried: tuple[int, int],
        trace: str,
        failure: Failure | None = None,
    ) -> None:
        """Add a connection that has ended. The oldest entry is overwritten if there is no room.

        Arguments as in `ClosedConnection`; carried: bytes received and sent; trace: 32 hexadecimal digits.
        """
        if not self.keeps:
            return
        slot = self._added % self._capacity
        self._added += 1
        client_ip, destination_ip = client.ip.packed, destination.ip.packed
        hop_ip, hop_port = _NO_ADDRESS if next_hop is None else (next_hop.ip.packed, next_hop.port)
        _RECORD.pack_into(
            self._records,
            slot * _RECORD.size,
            number,
            began,
            seconds,
            carried[0],
            carried[1],
            bytes.fromhex(trace),
            client_ip,
            client.port,
            destination_ip,
            destination.port,
            hop_ip,
            hop_port,
            len(client_ip),
            len(destination_ip),
            len(hop_ip),
        )
        self._kinds[slot] = kind
        self._failures[slot] = failure

    def kind(
        self,
        direction: str,
        pod: str,
        namespace: str,
        shown: str,
        service: str,
        peer_identity: str,
        protocol: str,
        route: tuple[str, ...],
    ) -> ConnectionKind:
        """Returns the kind with these values; the same object for the same values, mostly.

        namespace, shown: of the peer. All of them may come from a peer and have any length.
        """
        key = (direction, pod, namespace, shown, service, peer_identity, protocol, route)
        found = self._shared.get(key)
        if found is None:
            bounds = self.bounds
            found = ConnectionKind(
                direction,
                pod,
                short(f"{namespace}/{shown}", bounds) if shown else "",
                short(service, bounds),
                short(peer_identity, bounds),
                protocol,
                limited(route, bounds),
            )
            if len(self._shared) >= bounds.kinds:
                self._shared.clear()
            # A key is as long as a peer makes it, and stays: a long one is not shared.
            if sum(map(len, (namespace, shown, service, peer_identity, *route))) < bounds.text * 4:
                self._shared[key] = found
        return found

    def latest(self) -> Iterator[ClosedConnection]:
        """Returns all entries, the last one first.

        More may be added while the caller goes through them: they are left out, and so are those that were
        overwritten meanwhile.
        """
        self._catch_up()
        newest = self._added
        for position in range(newest - 1, max(newest - self._capacity, 0) - 1, -1):
            if position < self._added - self._capacity:
                return
            yield self._read(position % self._capacity)

    def find(self, connection: str) -> ClosedConnection | None:
        """Returns the entry with this id, None if there is none."""
        return next((one for one in self.latest() if one.id == connection), None)

    def _read(self, slot: int) -> ClosedConnection:
        (
            number,
            began,
            seconds,
            received,
            sent,
            trace,
            client_ip,
            client_port,
            destination_ip,
            destination_port,
            hop_ip,
            hop_port,
            client_length,
            destination_length,
            hop_length,
        ) = _RECORD.unpack_from(self._records, slot * _RECORD.size)
        kind, failure = self._kinds[slot], self._failures[slot] or Failure()
        assert kind is not None
        return ClosedConnection(
            self.id_of(number),
            kind.pod,
            kind.direction,
            SocketAddress(ip_address(client_ip[:client_length]), client_port),
            SocketAddress(ip_address(destination_ip[:destination_length]), destination_port),
            began,
            seconds,
            SocketAddress(ip_address(hop_ip[:hop_length]), hop_port) if hop_length else None,
            kind.peer,
            kind.service,
            kind.peer_identity,
            kind.protocol,
            received,
            sent,
            failure.error,
            failure.code,
            failure.why,
            failure.policy,
            kind.route if failure.route is None else failure.route,
            failure.attempts,
            trace.hex(),
        )


def limited(sentences: tuple[str, ...], bounds: HistoryBounds) -> tuple[str, ...]:
    """Returns the sentences, limited in number and length."""
    return tuple(short(one, bounds) for one in sentences[: bounds.sentences])


def short(text: str, bounds: HistoryBounds) -> str:
    """Returns a text of limited length, since a peer may have caused it."""
    return text if len(text) <= bounds.text else text[: bounds.text - 3] + "..."
