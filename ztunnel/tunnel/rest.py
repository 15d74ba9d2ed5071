"""The pauses of tunnels whose peers send much that carries nothing.

After a turn of such work a tunnel pauses four times as long (`TunnelBounds.turn_pause`), so one peer gets a
fifth of the CPU. But a peer may have many tunnels, also by closing one after the other while we still read
what was sent on them. So tunnels pause one after the other: all together get a quarter. And between two of
their turns there is at least one look at the other sockets, however late this process gets the CPU.

A storm of honest requests is not held up by it: ten of them are a turn, so there may be more of them in a
second than connections can be made.
"""

from __future__ import annotations

import trio

_door: trio.lowlevel.RunVar[trio.Lock] = trio.lowlevel.RunVar("the queue of tunnels that pause")


async def rest(seconds: float) -> None:
    """Pause for ``seconds``, once all tunnels have paused that began before."""
    async with _queue():
        await trio.sleep(seconds)


def _queue() -> trio.Lock:
    """Trio's lock is fair: whoever came first is first."""
    try:
        return _door.get()
    except LookupError:
        lock = trio.Lock()
        _door.set(lock)
        return lock
