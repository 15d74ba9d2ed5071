"""The history: the last connections of a data plane that ended, with the reasons of their plan and verdict.

An entry is made when a connection ends, from values that exist anyway; texts are made from it when somebody
asks. Entries share sentences, because most connections of a pod have the same reasons. The number of entries
and the length of each text are limited: the largest entry takes less than 3.5 kB, most take a third of that
(tests/proxy/test_history.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random

import msgspec

from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity

_LONGEST_TEXT = 300
_SENTENCES = 12
_SHARED = 4096


class ClosedConnection(msgspec.Struct, gc=False):
    """One connection that has ended.

    pod: ``namespace/name`` of our pod. began: seconds since the epoch. received, sent: bytes from client to
    server, and back. error, code, why: why it failed, empty if it did not. route: the reasons of its plan.
    client, destination, identity: for an incoming connection, what policy was asked about.
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
    identity: Identity | None = None
    trace: str = ""


class History:
    """A ring buffer of `ClosedConnection`, and the ids of connections.

    capacity: how many entries are kept, 0 for none. random: makes the first part of the ids. It differs
    between processes and between runs of one process.
    """

    def __init__(self, capacity: int, random: Random) -> None:
        self._ring: deque[ClosedConnection] = deque(maxlen=capacity)
        self.keeps = capacity != 0
        """Whether anything is kept."""
        self.add = self._ring.append
        """Adds a connection that has ended; the oldest entry is dropped if there is no room."""
        self._prefix = f"{random.getrandbits(20):05x}-"
        self._number = 0
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def next_id(self) -> str:
        """Returns an id for a new connection: short, and unique for a long time."""
        self._number += 1
        return f"{self._prefix}{self._number:x}"

    def shared(self, sentences: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the sentences, limited in number and length. Equal sentences give the same object."""
        found = self._shared.get(sentences)
        if found is None:
            if len(self._shared) >= _SHARED:
                self._shared.clear()
            found = tuple(short(one) for one in sentences[:_SENTENCES])
            self._shared[sentences] = found
        return found

    def latest(self) -> Iterator[ClosedConnection]:
        """Returns all entries, the last one first."""
        return iter(list(reversed(self._ring)))

    def find(self, connection: str) -> ClosedConnection | None:
        """Returns the entry with this id, None if there is none."""
        return next((one for one in self._ring if one.id == connection), None)


def short(text: str) -> str:
    """Returns a text of limited length, since a peer may have caused it."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
