"""Turns of tunnels whose peers send many frames at once, and their pauses.

Others wait while a tunnel has its turn, so a turn is small: eight requests if it was quiet before
(`TunnelBounds.first_work`), else three, or 15 frames that carry nothing, or 18 pieces of payload of a few
bytes (``turn_work``). If more is waiting, tasks whose sockets are ready run first. And the connections of
these further requests begin one after the other (`Tunnel.many`, `give_way`). If their peer has closed the
tunnel by then, they do not begin at all.

After a few turns in a row (`TunnelBounds.pause_work`) a tunnel pauses four times as long as they took, or
longer. So one peer gets a fifth of the CPU at most, and a fortieth if no stream needs what it sends. But a
peer may have many tunnels, also by closing one after the other while we still read what was sent on them. So
tunnels pause one after the other: all together get a quarter. And between two of their turns there is at
least one look at the other sockets, however late this process gets the CPU.

Pieces of payload are no reason to pause. But one tunnel with many of them at a time goes on, for else a turn
of each would come between two looks at the other sockets.

A storm of honest requests is not held up by it: ten of them are no reason to pause, so there may be more of
them in a second than connections can be made.
"""

from __future__ import annotations

from typing import TypeAlias

import trio

from ztunnel.bounds import TunnelBounds
from ztunnel.loop.bulk import make_room

SMALL_READ = 16 * 1024
"""Bytes of one read from a peer that sends many frames with little payload."""

_Queue: TypeAlias = trio.lowlevel.RunVar[trio.Lock]

_pausing: _Queue = trio.lowlevel.RunVar("the queue of tunnels that pause")
_going_on: _Queue = trio.lowlevel.RunVar("the queue of those that go on one at a time")


async def end_turn(turn: int, before: int, bounds: TunnelBounds) -> int:
    """End a tunnel's turn while more is waiting than one turn may take.

    turn: what it has cost (`ztunnel.hbone.work`). before: what those cost that it followed at once.
    Returns what the next turn has to add its own to: 0 after a pause.
    """
    work = before + turn
    if work > bounds.pause_work:
        await rest(work * bounds.turn_pause)
        return 0
    if turn > bounds.turn_work:
        await make_room()
    else:
        # Payload in small pieces, for which nobody pauses.
        await give_way()
    return work


async def rest(seconds: float) -> None:
    """Pause for ``seconds``, once all tunnels have paused that began before."""
    async with _lock(_pausing):
        await trio.sleep(seconds)


async def give_way() -> None:
    """Let the loop look at all sockets, those run that are ready, and all go on that asked before."""
    async with _lock(_going_on):
        await trio.lowlevel.checkpoint()
        await make_room()


def _lock(queue: _Queue) -> trio.Lock:
    """Trio's lock is fair: whoever came first is first."""
    try:
        return queue.get()
    except LookupError:
        lock = trio.Lock()
        queue.set(lock)
        return lock
