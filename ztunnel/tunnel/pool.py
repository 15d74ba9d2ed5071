"""The pool of outgoing HBONE tunnels of one pod.

Who may share a tunnel is decided by its key alone: the identity that we present, the identities of which
the peer had to present one, the client's address, the address that was dialled, and the uid of the workload
that it was dialled for. The uid is there because addresses are reused within seconds: a new pod at an old
address is another key.

The pool decides in plain synchronous code over its whole state; the waiting comes after. For one key at
most one tunnel is being dialled at a time, in a task of the pool's own nursery, so a caller that gives up
does not take the dial away from the others. A dial that fails is told to all who were waiting for it;
whoever comes later starts a new one. Tunnels are full at ``max_streams``, and usable again when streams
end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.observe.logging import get_logger
from ztunnel.tunnel.client_tunnel import ClientTunnel
from ztunnel.tunnel.failures import TunnelLostError

log = get_logger("proxy::pool")


class PoolKey(NamedTuple):
    """What two connections must have in common to share a tunnel. ``expected`` keeps its order."""

    source: Identity
    expected: tuple[str, ...]
    client: IPAddress
    next_hop: SocketAddress
    workload_uid: str


class PoolDrainingError(Exception):
    """The pod is going away; no tunnel is opened any more."""


@dataclass(slots=True, eq=False)
class _Dial:
    """A dial under way, and what its waiters will learn."""

    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    tunnel: ClientTunnel | None = None


@dataclass(slots=True)
class _Entry:
    tunnels: list[ClientTunnel] = field(default_factory=list)
    dial: _Dial | None = None


class Pool:
    """The tunnels of one pod's outbound listener. All of its tasks run in the nursery given.

    dial: connects, handshakes and gives a tunnel that is not running yet; raises what the
        connection's log shall say. It bounds its own waits.
    max_streams: streams of ours on one tunnel at a time.
    idle_timeout: seconds without a stream after which a tunnel is closed.
    stillborn: tunnels that end before they are used, until that is a failure.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        dial: Callable[[PoolKey], Awaitable[ClientTunnel]],
        *,
        max_streams: int,
        idle_timeout: float,
        stillborn: int = DEFAULTS.tunnel.stillborn,
    ) -> None:
        self._stillborn = stillborn
        self._nursery = nursery
        self._dial = dial
        self._max_streams = max_streams
        self._idle_timeout = idle_timeout
        self._entries: dict[PoolKey, _Entry] = {}
        self._by_workload: dict[str, set[PoolKey]] = {}
        self._closed = False

    async def tunnel(self, key: PoolKey) -> ClientTunnel:
        """A tunnel with room for one more stream, which the caller opens without waiting in between.

        Raises PoolDrainingError, what ``dial`` raised, or TunnelLostError when tunnels came up only to end
        before anybody could use them.
        """
        lost = 0
        while True:
            if self._closed:
                raise PoolDrainingError("pool draining")
            entry = self._entry(key)
            usable = self._usable(entry)
            if usable is not None:
                return usable
            dial = entry.dial
            if dial is None:
                dial = entry.dial = _Dial()
                self._nursery.start_soon(
                    self._run, key, entry, dial, name=f"tunnel {key.source} → {key.next_hop}"
                )
            await dial.done.wait()
            if dial.error is not None:
                raise dial.error
            made = dial.tunnel
            if made is not None and not made.can_open and not made.streams:
                lost += 1
                if lost == self._stillborn:
                    raise TunnelLostError(made.failure or "the tunnel was closed")

    def retire(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """No new stream goes to this tunnel; it ends with its last one."""
        entry = self._entries.get(key)
        if entry is not None and tunnel in entry.tunnels:
            entry.tunnels.remove(tunnel)
            self._drop_if_empty(key, entry)
        if not tunnel.streams:
            tunnel.stop()

    def evict(self, workload_uid: str) -> list[ClientTunnel]:
        """No new stream goes to tunnels that were dialled for this workload.

        Gives those that are left open.
        """
        evicted: list[ClientTunnel] = []
        for key in self._by_workload.pop(workload_uid, ()):
            entry = self._entries.pop(key)
            for tunnel in entry.tunnels:
                evicted.append(tunnel)
                if not tunnel.streams:
                    tunnel.stop()
        return evicted

    def workloads(self) -> Collection[str]:
        """The uids of the workloads that tunnels are kept for."""
        return self._by_workload.keys()

    def keys_of(self, workload_uid: str) -> Collection[PoolKey]:
        """The keys under which tunnels for a workload are kept."""
        return self._by_workload.get(workload_uid, ())

    def tunnels(self) -> list[tuple[PoolKey, ClientTunnel]]:
        """All tunnels that are kept, for the dump."""
        return [(key, tunnel) for key, entry in self._entries.items() for tunnel in entry.tunnels]

    def close(self) -> None:
        """Stop handing out tunnels.

        Those without streams close at once, the others when their last stream ends.
        """
        self._closed = True
        for key in list(self._entries):
            for tunnel in self._entries.pop(key).tunnels:
                if not tunnel.streams:
                    tunnel.stop()
        self._by_workload.clear()

    # -- inside -----------------------------------------------------------------------------------------

    def _entry(self, key: PoolKey) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            self._by_workload.setdefault(key.workload_uid, set()).add(key)
        return entry

    def _usable(self, entry: _Entry) -> ClientTunnel | None:
        """The fullest tunnel that has room: so the others can fall idle and close."""
        best: ClientTunnel | None = None
        for tunnel in entry.tunnels:
            count = len(tunnel.streams)
            if count < self._max_streams and tunnel.can_open and (best is None or count > len(best.streams)):
                best = tunnel
        return best

    def _drop_if_empty(self, key: PoolKey, entry: _Entry) -> None:
        if not entry.tunnels and entry.dial is None and self._entries.get(key) is entry:
            del self._entries[key]
            keys = self._by_workload.get(key.workload_uid)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._by_workload[key.workload_uid]

    async def _run(self, key: PoolKey, entry: _Entry, dial: _Dial) -> None:
        """Dial one tunnel, say so, and drive it until it ends."""
        try:
            tunnel = dial.tunnel = await self._dial(key)
        except Exception as error:  # noqa: BLE001  # told to everyone who waits
            dial.error = error
            return
        except trio.Cancelled:
            dial.error = PoolDrainingError("pool draining")
            raise
        finally:
            entry.dial = None
            dial.done.set()
            if dial.error is not None:
                self._drop_if_empty(key, entry)
        entry.tunnels.append(tunnel)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_when_idle, key, entry, tunnel, name="idle watch")
                await tunnel.run()
                nursery.cancel_scope.cancel()
        except Exception as error:  # a bug ends this tunnel, and not the pod
            log.error("a tunnel's task failed; the tunnel is closed", next_hop=key.next_hop, exc_info=error)
        finally:
            if tunnel in entry.tunnels:
                entry.tunnels.remove(tunnel)
            self._drop_if_empty(key, entry)

    async def _close_when_idle(self, key: PoolKey, entry: _Entry, tunnel: ClientTunnel) -> None:
        """Close a tunnel without a stream after ``idle_timeout``, or at once when it is not kept any more."""
        changed = trio.Event()

        def on_change() -> None:
            changed.set()

        tunnel.on_change = on_change
        while True:
            kept = self._entries.get(key) is entry and tunnel in entry.tunnels
            if not tunnel.streams:
                left = tunnel.idle_since + self._idle_timeout - trio.current_time()
                if not kept or left <= 0:
                    tunnel.stop()
                    return
                with trio.move_on_after(left):
                    await changed.wait()
            else:
                await changed.wait()
            changed = trio.Event()
