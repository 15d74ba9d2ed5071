"""The connections that were: the last ones of a data plane, with the reasons of their plan and verdict.

An entry is made when a connection ends, of values that exist anyway; texts are made of it when somebody
asks. Sentences are shared between entries, since most connections of a pod have the same reasons. The number
of entries is bounded, and so is the length of each text in them: an entry whose texts are all as long as may
be takes less than 3.5 kB, most take a third of that (tests/proxy/test_history.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random

import msgspec

from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity

_TEXT = 300
_SENTENCES = 12
_SHARED = 4096


class Remembered(msgspec.Struct, gc=False):
    """One connection that has ended.

    pod: ``namespace/name`` of ours. began: seconds since the epoch. received, sent: bytes from client to
    server, and back. code, error, why: of its end; empty for a good one. route: the reasons of its plan.
    client, destination, identity: what policy looked at, for an incoming one.
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
    """A ring of `Remembered`, and the ids of connections.

    capacity: entries that are kept, 0 for none. random: makes the first part of ids, by which those of
    several processes and of several lives of one differ.
    """

    def __init__(self, capacity: int, random: Random) -> None:
        self._ring: deque[Remembered] = deque(maxlen=capacity)
        self._prefix = f"{random.getrandbits(20):05x}"
        self._number = 0
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def next_id(self) -> str:
        """An id for a new connection: short, and no other's for long."""
        self._number += 1
        return f"{self._prefix}-{self._number:x}"

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._ring.maxlen != 0

    def add(self, entry: Remembered) -> None:
        """Keep one that has ended; the oldest goes if there is no room."""
        self._ring.append(entry)

    def shared(self, sentences: tuple[str, ...]) -> tuple[str, ...]:
        """The same sentences, bounded in number and length, as one object for all that have them."""
        found = self._shared.get(sentences)
        if found is None:
            if len(self._shared) >= _SHARED:
                self._shared.clear()
            found = tuple(short(one) for one in sentences[:_SENTENCES])
            self._shared[sentences] = found
        return found

    def latest(self) -> Iterator[Remembered]:
        """All, the last one first."""
        return iter(list(reversed(self._ring)))

    def find(self, connection: str) -> Remembered | None:
        """The one with this id."""
        return next((one for one in self._ring if one.id == connection), None)


def short(text: str) -> str:
    """A text that a peer may have had a hand in, bounded."""
    return text if len(text) <= _TEXT else text[: _TEXT - 3] + "..."
