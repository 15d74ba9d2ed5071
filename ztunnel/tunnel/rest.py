"""The pauses of tunnels whose peers send much that carries nothing.

After a turn of such work a tunnel pauses four times as long (`TunnelBounds.turn_pause`), so one peer gets a
fifth of the CPU. But a peer may have many tunnels, also by closing one after the other while we still read
what was sent on them. So the second half of each pause is spent in a queue, one tunnel at a time: all such
tunnels together get half of the CPU. And between two of their turns there is at least one look at the other
sockets, however late this process gets the CPU.
"""

from __future__ import annotations

import trio

_door: trio.lowlevel.RunVar[trio.Lock] = trio.lowlevel.RunVar("the queue of tunnels that pause")


async def rest(seconds: float) -> None:
    """Pause for ``seconds``, and longer when other tunnels pause as well."""
    await trio.sleep(seconds / 2)
    async with _queue():
        await trio.sleep(seconds / 2)


def _queue() -> trio.Lock:
    """Trio's lock is fair: whoever came first is first."""
    try:
        return _door.get()
    except LookupError:
        lock = trio.Lock()
        _door.set(lock)
        return lock
