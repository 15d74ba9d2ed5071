"""The pool of outgoing HBONE tunnels of one pod.

Sharing. Connections with the same `PoolKey` share tunnels: the identity that we present, the identities of
which the peer has to present one, the client's address, the address to dial, and the uid of the workload that
it is dialled for. The uid is part of the key because addresses are reused within seconds: a new pod at an old
address must get a new tunnel.

Which tunnel. A stream goes to the fullest tunnel that has room, so that the other tunnels become idle and
close. A tunnel has room for ``max_streams`` and for what the peer's SETTINGS allow. Before the SETTINGS came
it has room for one stream, because more might be refused. A tunnel is congested when its connection's window,
in either direction, is nearly used up by stalled streams. Bulk data at full speed looks the same for a
moment, so a new connection waits that long, and then gets a new tunnel.

How many dials. As many as the waiting connections need by the peer's known limit: usually one. Dials run in
the pool's own nursery, so a caller that gives up does not cancel a dial that others wait for. When the last
dial of a key fails, all who wait get its error; later callers start a new dial.

The pool decides in synchronous code that sees its whole state. Waiting comes after the decision and ends
whenever something changes: a dial, the peer's SETTINGS, the end of a stream or of a tunnel. Then it decides
again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from ztunnel.bounds import DEFAULTS, TunnelBounds
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.observe.logging import get_logger
from ztunnel.tunnel.client_tunnel import ClientTunnel
from ztunnel.tunnel.failures import TunnelLostError

log = get_logger("proxy::pool")


class PoolKey(NamedTuple):
    """What two connections must have in common to share a tunnel.

    expected: the SPIFFE identities of which the peer must present one, in the order of the plan.
    """

    source: Identity
    expected: tuple[str, ...]
    client: IPAddress
    next_hop: SocketAddress
    workload_uid: str


class PoolDrainingError(Exception):
    """The pod is being stopped; no tunnel is opened any more."""


@dataclass(slots=True, eq=False)
class _Entry:
    """The state of one key.

    limit: how many streams the peer allowed on its last tunnel.
    failed, failure: how often all dials have failed, and the last error.
    lost, loss: how many tunnels ended before they were used, and why the last one did.
    change: set when something changes, and then replaced.
    """

    limit: int
    tunnels: list[ClientTunnel] = field(default_factory=list)
    dials: int = 0
    waiting: int = 0
    failed: int = 0
    failure: Exception | None = None
    lost: int = 0
    loss: str = ""
    change: trio.Event = field(default_factory=trio.Event)

    def changed(self) -> None:
        """Wake all who wait; they decide again."""
        change, self.change = self.change, trio.Event()
        change.set()


class Pool:
    """The tunnels of one pod's outbound listener. All its tasks run in the given nursery.

    dial: connects, does the TLS handshake, and returns a tunnel that does not run yet. It limits its own
        waits. What it raises is passed on to those who wait for the tunnel.
    max_streams: how many streams we open on one tunnel at a time.
    idle_timeout: seconds without a stream after which a tunnel is closed.
    bounds: the limits of waiting and dialling.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        dial: Callable[[PoolKey], Awaitable[ClientTunnel]],
        *,
        max_streams: int,
        idle_timeout: float,
        bounds: TunnelBounds = DEFAULTS.tunnel,
    ) -> None:
        self._bounds = bounds
        self._nursery = nursery
        self._dial = dial
        self._max_streams = max_streams
        self._idle_timeout = idle_timeout
        self._entries: dict[PoolKey, _Entry] = {}
        self._by_workload: dict[str, set[PoolKey]] = {}
        self._closed = False

    async def tunnel(self, key: PoolKey) -> ClientTunnel:
        """Returns a tunnel with room for one more stream. The caller opens it before its next await.

        Raises PoolDrainingError, what ``dial`` raised, or TunnelLostError when ``unused_tunnels`` tunnels in
        a row ended before they were used.
        """
        return self.at_hand(key) or await self._wait(key)

    def at_hand(self, key: PoolKey) -> ClientTunnel | None:
        """As `tunnel`, but None when one has to be waited for."""
        usable = self._best(self._find(key))
        return None if usable is None or usable.congested else usable

    async def _wait(self, key: PoolKey) -> ClientTunnel:
        began = trio.current_time()
        entry = self._find(key)
        failed, lost, loss = entry.failed, -entry.lost, ""
        while True:
            usable = self._best(entry)
            if usable is not None and not usable.congested:
                return usable
            if entry.failed > failed:
                if usable is not None:
                    # No new tunnel can be had, so a congested one is better than a failure.
                    return usable
                assert entry.failure is not None
                raise entry.failure
            loss = entry.loss or loss
            if lost + entry.lost >= self._bounds.unused_tunnels:
                raise TunnelLostError(loss)
            await self._look_again(key, entry, began if usable is not None else None)
            if self._closed or (self._entries.get(key) is not entry and entry.failed == failed):
                # The workload was evicted, or its last tunnel ended: the key has a new entry, whose counts
                # start at 0.
                lost += entry.lost
                loss = entry.loss or loss
                entry = self._find(key)
                failed = entry.failed
                lost -= entry.lost

    async def _look_again(self, key: PoolKey, entry: _Entry, congested_since: float | None) -> None:
        """Start the dials that are due, and wait for a change."""
        entry.waiting += 1
        try:
            if (
                congested_since is None
                or trio.current_time() >= congested_since + self._bounds.congestion_grace
            ):
                self._start_dials(key, entry)
            bounds = self._bounds
            with trio.move_on_after(
                bounds.settings_wait if congested_since is None else bounds.congestion_interval
            ):
                await entry.change.wait()
        finally:
            entry.waiting -= 1

    def retire(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """Give no new stream to this tunnel. It ends with its last stream."""
        entry = self._entries.get(key)
        if entry is not None and tunnel in entry.tunnels:
            entry.tunnels.remove(tunnel)
            entry.changed()
            self._drop_if_empty(key, entry)
        if not tunnel.streams:
            tunnel.stop()

    def evict(self, workload_uid: str) -> list[ClientTunnel]:
        """Give no new stream to the tunnels that were dialled for this workload. Returns these tunnels.

        Those without streams end at once, the others with their last stream.
        """
        evicted: list[ClientTunnel] = []
        for key in self._by_workload.pop(workload_uid, ()):
            entry = self._entries.pop(key)
            entry.changed()
            for tunnel in entry.tunnels:
                evicted.append(tunnel)
                if not tunnel.streams:
                    tunnel.stop()
        return evicted

    def workloads(self) -> Collection[str]:
        """Returns the uids of the workloads that have tunnels here."""
        return self._by_workload.keys()

    def keys_of(self, workload_uid: str) -> Collection[PoolKey]:
        """Returns the keys of a workload's tunnels."""
        return self._by_workload.get(workload_uid, ())

    def tunnels(self) -> list[tuple[PoolKey, ClientTunnel]]:
        """Returns all tunnels with their keys, for the dump."""
        return [(key, tunnel) for key, entry in self._entries.items() for tunnel in entry.tunnels]

    def close(self) -> None:
        """Give out no more tunnels. Those without streams end at once, the others with their last stream."""
        self._closed = True
        for key in list(self._entries):
            entry = self._entries.pop(key)
            entry.changed()
            for tunnel in entry.tunnels:
                if not tunnel.streams:
                    tunnel.stop()
        self._by_workload.clear()

    # -- choosing ---------------------------------------------------------------------------------------

    def _find(self, key: PoolKey) -> _Entry:
        if self._closed:
            raise PoolDrainingError("pool draining")
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(self._max_streams)
            self._by_workload.setdefault(key.workload_uid, set()).add(key)
        return entry

    def _best(self, entry: _Entry) -> ClientTunnel | None:
        """Returns the fullest tunnel that has room; a congested one only if there is no other."""
        best: ClientTunnel | None = None
        rank = (False, -1)
        for tunnel in entry.tunnels:
            count = len(tunnel.streams)
            if count < self._max_streams and tunnel.room:
                its = (not tunnel.congested, count)
                if its > rank:
                    best, rank = tunnel, its
        return best

    def _start_dials(self, key: PoolKey, entry: _Entry) -> None:
        """Start as many dials as the waiting connections need, in addition to those under way."""
        each = max(1, min(self._max_streams, entry.limit))
        now = trio.current_time()
        coming = entry.dials * each
        for tunnel in entry.tunnels:
            if tunnel.opening and now < tunnel.began + self._bounds.settings_wait:
                coming += max(0, each - len(tunnel.streams))
        while coming < entry.waiting and entry.dials < self._bounds.dials:
            entry.dials += 1
            coming += each
            name = f"tunnel {key.source} → {key.next_hop}"
            self._nursery.start_soon(self._run, key, entry, name=name)

    def _keeps(self, key: PoolKey, entry: _Entry, tunnel: ClientTunnel) -> bool:
        return self._entries.get(key) is entry and tunnel in entry.tunnels

    def _drop_if_empty(self, key: PoolKey, entry: _Entry) -> None:
        if not entry.tunnels and not entry.dials and self._entries.get(key) is entry:
            del self._entries[key]
            keys = self._by_workload.get(key.workload_uid)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._by_workload[key.workload_uid]

    # -- a tunnel's life --------------------------------------------------------------------------------

    async def _run(self, key: PoolKey, entry: _Entry) -> None:
        """Dial one tunnel, wake those who wait, and drive the tunnel until it ends."""
        failure: Exception | None = None
        try:
            tunnel = await self._dial(key)
        except Exception as error:  # noqa: BLE001  # told to everyone who waits
            failure = error
            return
        except trio.Cancelled:
            failure = PoolDrainingError("pool draining")
            raise
        finally:
            entry.dials -= 1
            if failure is not None and not entry.dials:
                entry.failed += 1
                entry.failure = failure
                entry.changed()
                self._drop_if_empty(key, entry)
        await self._drive(key, entry, tunnel)

    async def _drive(self, key: PoolKey, entry: _Entry, tunnel: ClientTunnel) -> None:
        entry.tunnels.append(tunnel)
        unwanted = trio.Event()

        def changed() -> None:
            if tunnel.limit is not None:
                entry.limit = tunnel.limit
            if entry.waiting:
                entry.changed()
            if not tunnel.streams and not self._keeps(key, entry, tunnel):
                unwanted.set()

        async def close_when_idle() -> None:
            """End the tunnel after ``idle_timeout``, or with its last stream once the pool has dropped it."""
            left = self._idle_timeout
            while self._keeps(key, entry, tunnel) or tunnel.streams:
                with trio.move_on_after(left):
                    await unwanted.wait()
                left = self._idle_timeout
                if not tunnel.streams:
                    left += tunnel.idle_since - trio.current_time()
                    if left <= 0:
                        break
            tunnel.stop()

        tunnel.on_change = changed
        entry.changed()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_when_idle, name="idle watch")
                await tunnel.run()
                # Before the nursery ends: nobody may be woken and find this tunnel still in the pool.
                self._over(key, entry, tunnel)
                nursery.cancel_scope.cancel()
        except Exception as error:  # a bug ends this tunnel, and not the pod
            log.error("a tunnel's task failed; the tunnel is closed", next_hop=key.next_hop, exc_info=error)
        finally:
            if tunnel in entry.tunnels:
                self._over(key, entry, tunnel)

    def _over(self, key: PoolKey, entry: _Entry, tunnel: ClientTunnel) -> None:
        if tunnel in entry.tunnels:
            entry.tunnels.remove(tunnel)
        if not tunnel.streams and not tunnel.answered:
            entry.lost += 1
            entry.loss = tunnel.failure or "the tunnel was closed"
        entry.changed()
        self._drop_if_empty(key, entry)
