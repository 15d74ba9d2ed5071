"""The pauses of tunnels whose peers send many frames at once.

After a turn of frames that carry nothing a tunnel pauses four times as long, or longer
(`TunnelBounds.turn_pause`), so one peer gets a fifth of the CPU at most. But a peer may have many tunnels,
also by closing one after the other while we still read what was sent on them. So tunnels pause one after the
other: all together get a quarter. And between two of their turns there is at least one look at the other
sockets, however late this process gets the CPU.

Many small pieces of payload are no reason to pause. But there too one tunnel at a time goes on, for else a
turn of each of them would come between two looks at the other sockets.

A storm of honest requests is not held up by it: ten of them are a turn, so there may be more of them in a
second than connections can be made.
"""

from __future__ import annotations

from typing import TypeAlias

import trio

from ztunnel.bounds import TunnelBounds
from ztunnel.tls.scratch import CHUNK

SMALL_READ = 16 * 1024
"""Bytes of one read from a peer that sends many frames with little payload."""

_Queue: TypeAlias = trio.lowlevel.RunVar[trio.Lock]

_pausing: _Queue = trio.lowlevel.RunVar("the queue of tunnels that pause")
_going_on: _Queue = trio.lowlevel.RunVar("the queue of tunnels with many small pieces of payload")


async def end_turn(work: int, bounds: TunnelBounds, *, unread: bool) -> int:
    """End a tunnel's turn while more is waiting than one turn may take. Returns the size of the next read.

    work: what the turn has cost (`ztunnel.hbone.work`).
    unread: bytes that were read wait to be taken apart.
    """
    if work > bounds.turn_work:
        # Many frames with little payload: such a tunnel gets at most a fifth of the CPU, in small pieces,
        # and all of them a quarter. If no stream needs these frames, it is a twentieth.
        await rest(work * bounds.turn_pause)
        return SMALL_READ
    if unread:
        # Payload in small pieces, of which a large read has too many.
        await give_way()
        return SMALL_READ
    await trio.lowlevel.checkpoint()
    return CHUNK


async def rest(seconds: float) -> None:
    """Pause for ``seconds``, once all tunnels have paused that began before."""
    async with _lock(_pausing):
        await trio.sleep(seconds)


async def give_way() -> None:
    """Let the loop look at all sockets, and all tunnels go on that asked before."""
    async with _lock(_going_on):
        await trio.lowlevel.checkpoint()


def _lock(queue: _Queue) -> trio.Lock:
    """Trio's lock is fair: whoever came first is first."""
    try:
        return queue.get()
    except LookupError:
        lock = trio.Lock()
        queue.set(lock)
        return lock
