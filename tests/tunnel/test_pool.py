"""The pool: who shares a tunnel, how many dials there are, and what cancellation leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.logs import capture_logs
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.tunnel.failures import DialError, TunnelLostError
from ztunnel.tunnel.pool import Pool, PoolDrainingError, PoolKey


class FakeTunnel:
    """What the pool sees of a tunnel."""

    def __init__(self) -> None:
        self.streams: dict[int, object] = {}
        self.can_open = True
        self.answered = False
        self.congested = False
        self.limit: int | None = 1 << 32
        self.began = trio.current_time()
        self.failure: str | None = None
        self.idle_since = trio.current_time()
        self.on_change: Callable[[], None] | None = None
        self.stopped = trio.Event()

    @property
    def opening(self) -> bool:
        return self.limit is None

    @property
    def room(self) -> int:
        if not self.can_open:
            return 0
        if self.limit is None:
            return 0 if self.streams else 1
        return max(0, self.limit - len(self.streams))

    def settings(self, limit: int) -> None:
        self.limit = limit
        if self.on_change is not None:
            self.on_change()

    async def run(self) -> None:
        await self.stopped.wait()

    def stop(self) -> None:
        self.can_open = False
        self.stopped.set()

    def open(self) -> int:
        number = max(self.streams, default=0) + 1
        self.streams[number] = object()
        return number

    def close(self, number: int) -> None:
        del self.streams[number]
        if not self.streams:
            self.idle_since = trio.current_time()
        if self.on_change is not None:
            self.on_change()


def key(
    source: str = "client",
    uid: str = "uid-1",
    ip: str = "10.0.0.2",
    expected: tuple[str, ...] = ("spiffe://a",),
) -> PoolKey:
    return PoolKey(
        Identity("cluster.local", "default", source),
        expected,
        ip_address("10.0.0.1"),
        SocketAddress(ip_address(ip), 15008),
        uid,
    )


class Dialer:
    def __init__(self, delay: float = 0.1) -> None:
        self.delay = delay
        self.made: list[FakeTunnel] = []
        self.calls: list[PoolKey] = []
        self.error: Exception | None = None

    async def __call__(self, wanted: PoolKey):
        self.calls.append(wanted)
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        tunnel = FakeTunnel()
        self.made.append(tunnel)
        return tunnel


def make(nursery, dialer, *, max_streams=100, idle_timeout=300.0) -> Any:
    return Pool(nursery, dialer, max_streams=max_streams, idle_timeout=idle_timeout)


async def test_callers_of_one_key_share_one_dial(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    got = []

    async def call():
        tunnel = await pool.tunnel(key())
        tunnel.open()
        got.append(tunnel)

    async with trio.open_nursery() as callers:
        for _ in range(10):
            callers.start_soon(call)
    assert len(dialer.calls) == 1
    assert set(got) == {dialer.made[0]}


@pytest.mark.parametrize(
    "other",
    [key(source="other"), key(uid="uid-2"), key(ip="10.0.0.3"), key(expected=("spiffe://b",))],
    ids=["identity", "workload", "address", "expected"],
)
async def test_a_tunnel_is_never_shared_between_different_keys(autojump_clock, nursery, other):
    pool = make(nursery, Dialer())
    assert await pool.tunnel(key()) is not await pool.tunnel(other)


async def test_a_full_tunnel_is_not_used_until_a_stream_ends(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer, max_streams=2)
    first = await pool.tunnel(key())
    number = first.open()
    first.open()
    second = await pool.tunnel(key())
    assert second is not first
    first.close(number)
    second.open()
    second.open()
    assert await pool.tunnel(key()) is first
    assert len(dialer.calls) == 2


async def test_more_callers_than_one_tunnel_takes_get_more_tunnels(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer, max_streams=3)

    async def call():
        (await pool.tunnel(key())).open()

    async with trio.open_nursery() as callers:
        for _ in range(7):
            callers.start_soon(call)
    assert sorted(len(tunnel.streams) for tunnel in dialer.made) == [1, 3, 3]


async def test_a_failed_dial_is_told_to_all_who_waited_and_to_nobody_later(autojump_clock, nursery):
    dialer = Dialer()
    dialer.error = DialError("Connection refused (os error 111)")
    pool = make(nursery, dialer)
    failures = []

    async def call():
        try:
            await pool.tunnel(key())
        except DialError as error:
            failures.append(str(error))

    async with trio.open_nursery() as callers:
        for _ in range(5):
            callers.start_soon(call)
    assert failures == ["io error: Connection refused (os error 111)"] * 5
    assert len(dialer.calls) == 1
    assert not pool.workloads()
    dialer.error = None
    assert (await pool.tunnel(key())).can_open


async def test_a_caller_that_gives_up_leaves_the_dial_to_the_others(autojump_clock, nursery):
    dialer = Dialer(delay=10)
    pool = make(nursery, dialer)
    got = []

    async def patient():
        got.append(await pool.tunnel(key()))

    async with trio.open_nursery() as callers:
        with trio.move_on_after(1):
            callers.start_soon(patient)
            await pool.tunnel(key())
    assert got == dialer.made
    assert len(dialer.calls) == 1


async def test_a_dead_tunnel_is_not_handed_out(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    first = await pool.tunnel(key())
    first.can_open = False
    assert await pool.tunnel(key()) is not first


async def test_an_idle_tunnel_is_closed_after_the_timeout(autojump_clock, nursery):
    pool = make(nursery, Dialer(), idle_timeout=30)
    tunnel = await pool.tunnel(key())
    number = tunnel.open()
    await trio.sleep(100)
    assert not tunnel.stopped.is_set()
    tunnel.close(number)
    await trio.sleep(29)
    assert not tunnel.stopped.is_set()
    await trio.sleep(2)
    assert tunnel.stopped.is_set()
    await trio.testing.wait_all_tasks_blocked()
    assert not pool.workloads()


async def test_use_in_between_restarts_the_idle_time(autojump_clock, nursery):
    pool = make(nursery, Dialer(), idle_timeout=30)
    tunnel = await pool.tunnel(key())
    for _ in range(5):
        await trio.sleep(20)
        tunnel.close(tunnel.open())
    assert not tunnel.stopped.is_set()


async def test_eviction_keeps_streams_and_stops_new_ones(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    tunnel = await pool.tunnel(key())
    number = tunnel.open()
    assert pool.evict("uid-1") == [tunnel]
    assert not tunnel.stopped.is_set()
    assert await pool.tunnel(key()) is not tunnel
    tunnel.close(number)
    await trio.testing.wait_all_tasks_blocked()
    assert tunnel.stopped.is_set()


async def test_eviction_while_a_dial_is_under_way_does_not_lose_the_dial(autojump_clock, nursery):
    dialer = Dialer(delay=5)
    pool = make(nursery, dialer)
    with trio.move_on_after(1):
        await pool.tunnel(key())
    pool.evict("uid-1")
    fresh = await pool.tunnel(key())
    assert fresh.can_open
    await trio.sleep(10)
    assert [tunnel.stopped.is_set() for tunnel in dialer.made] == [True, False]


async def test_a_closed_pool_refuses(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    tunnel = await pool.tunnel(key())
    pool.close()
    assert tunnel.stopped.is_set()
    with pytest.raises(PoolDrainingError):
        await pool.tunnel(key())


async def test_cancelling_the_pool_wakes_those_who_wait():
    dialer = Dialer(delay=1000)
    failures = []

    async def call(pool):
        try:
            await pool.tunnel(key())
        except PoolDrainingError as error:
            failures.append(str(error))

    async with trio.open_nursery() as callers, trio.open_nursery() as tunnels:
        pool = make(tunnels, dialer)
        callers.start_soon(call, pool)
        await trio.testing.wait_all_tasks_blocked()
        pool.close()
        tunnels.cancel_scope.cancel()
    assert failures == ["pool draining"]


async def test_a_retired_tunnel_gets_no_new_stream_and_ends_with_its_last(autojump_clock, nursery):
    pool = make(nursery, Dialer())
    first = await pool.tunnel(key())
    number = first.open()
    pool.retire(key(), first)
    assert not first.stopped.is_set()
    assert await pool.tunnel(key()) is not first
    first.close(number)
    await trio.testing.wait_all_tasks_blocked()
    assert first.stopped.is_set()


async def test_a_retired_tunnel_without_streams_ends_at_once(autojump_clock, nursery):
    pool = make(nursery, Dialer())
    first = await pool.tunnel(key())
    pool.retire(key(), first)
    assert first.stopped.is_set()
    await trio.testing.wait_all_tasks_blocked()
    assert pool.tunnels() == []
    assert list(pool.workloads()) == []


async def test_tunnels_that_end_before_anybody_uses_them_are_not_dialled_for_ever(autojump_clock, nursery):
    class Stillborn(FakeTunnel):
        async def run(self) -> None:
            self.can_open = False
            self.failure = "rejected"

    dials = 0

    async def dial(wanted):
        nonlocal dials
        dials += 1
        await trio.sleep(0.1)
        return Stillborn()

    pool = make(nursery, dial)
    with pytest.raises(TunnelLostError, match="rejected"):
        await pool.tunnel(key())
    assert dials == 3


async def test_a_bug_in_a_tunnels_task_ends_that_tunnel_alone(autojump_clock, nursery, monkeypatch):
    pool = make(nursery, Dialer())
    neighbour = await pool.tunnel(key(uid="uid-2"))

    async def run() -> None:
        raise AssertionError("a bug on purpose")

    dialer = Dialer()
    monkeypatch.setattr(FakeTunnel, "run", lambda _: run())
    pool._dial = dialer
    with capture_logs("error") as lines:
        await pool.tunnel(key())
        await trio.testing.wait_all_tasks_blocked()
    assert [line.message for line in lines] == ["a tunnel's task failed; the tunnel is closed"]
    assert [held for held, _ in pool.tunnels()] == [key(uid="uid-2")]
    assert await pool.tunnel(key(uid="uid-2")) is neighbour


class Asking:
    """Callers that each take a tunnel, open a stream on it and keep it."""

    def __init__(self, pool: Any, nursery: trio.Nursery) -> None:
        self.pool = pool
        self.nursery = nursery
        self.served: list[tuple[FakeTunnel, int]] = []

    def start(self, count: int) -> None:
        for _ in range(count):
            self.nursery.start_soon(self._ask)

    async def _ask(self) -> None:
        tunnel = await self.pool.tunnel(key())
        self.served.append((tunnel, tunnel.open()))

    def most(self) -> int:
        return max(len(tunnel.streams) for tunnel, _ in self.served)


class Unknown(Dialer):
    """Dials tunnels whose SETTINGS come a while after them."""

    def __init__(self, limit: int, settings_after: float = 0.05) -> None:
        super().__init__(delay=0.1)
        self.limit = limit
        self.settings_after = settings_after
        self.at_once = 0
        self.most = 0

    async def __call__(self, wanted: PoolKey):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            tunnel = await super().__call__(wanted)
        finally:
            self.at_once -= 1
        tunnel.limit = None
        run = tunnel.run

        async def run_and_announce() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await trio.sleep(self.settings_after)
                tunnel.settings(self.limit)

        tunnel.run = run_and_announce
        return tunnel


async def test_sixteen_at_once_and_a_peer_that_takes_one_on_a_tunnel(autojump_clock, nursery):
    dialer = Unknown(limit=1)
    asking = Asking(make(nursery, dialer), nursery)
    asking.start(16)
    await trio.sleep(1)
    assert len(asking.served) == len(dialer.made) == 16
    assert asking.most() == 1
    # The limit is known after the first: from then on several are dialled at a time.
    assert dialer.most == 8


async def test_before_the_limit_is_known_one_goes_and_the_others_wait_for_it(autojump_clock, nursery):
    dialer = Unknown(limit=100, settings_after=0.5)
    asking = Asking(make(nursery, dialer), nursery)
    asking.start(16)
    await trio.sleep(0.2)
    assert len(asking.served) == 1
    await trio.sleep(0.5)
    assert len(asking.served) == 16
    assert len(dialer.made) == 1


async def test_settings_that_never_come_are_not_waited_for(autojump_clock, nursery):
    dialer = Unknown(limit=100, settings_after=1_000)
    asking = Asking(make(nursery, dialer), nursery)
    asking.start(2)
    await trio.sleep(5)
    assert len(asking.served) == len(dialer.made) == 2


async def test_a_limit_that_falls_and_rises_is_followed(autojump_clock, nursery):
    dialer = Dialer()
    asking = Asking(make(nursery, dialer), nursery)
    asking.start(3)
    await trio.sleep(1)
    [tunnel] = dialer.made
    tunnel.settings(3)
    asking.start(1)
    await trio.sleep(1)
    assert [len(made.streams) for made in dialer.made] == [3, 1]
    tunnel.settings(10)
    asking.start(3)
    await trio.sleep(1)
    assert [len(made.streams) for made in dialer.made] == [6, 1]


async def test_room_that_a_stream_leaves_is_used_by_who_waits(autojump_clock, nursery):
    dialer = Dialer()
    asking = Asking(make(nursery, dialer), nursery)
    asking.start(1)
    await trio.sleep(1)
    [tunnel] = dialer.made
    tunnel.settings(1)
    dialer.delay = 100
    asking.start(1)
    await trio.sleep(1)
    assert len(asking.served) == 1
    tunnel.close(1)
    await trio.sleep(1)
    assert len(asking.served) == 2
    assert asking.served[1][0] is tunnel


async def test_a_congested_tunnel_is_passed_by_after_a_moment(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    first = await pool.tunnel(key())
    first.open()
    first.congested = True
    began = trio.current_time()
    second = await pool.tunnel(key())
    second.open()
    assert second is not first
    assert 0.1 <= trio.current_time() - began < 0.3
    assert await pool.tunnel(key()) is second
    first.congested = False
    assert await pool.tunnel(key()) in {first, second}


async def test_a_tunnel_that_is_congested_for_a_moment_costs_no_dial(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    first = await pool.tunnel(key())
    first.open()
    first.congested = True

    async def move() -> None:
        await trio.sleep(0.03)
        first.congested = False

    nursery.start_soon(move)
    assert await pool.tunnel(key()) is first
    assert len(dialer.calls) == 1


async def test_a_congested_tunnel_is_better_than_a_dial_that_fails(autojump_clock, nursery):
    dialer = Dialer()
    pool = make(nursery, dialer)
    first = await pool.tunnel(key())
    first.open()
    first.congested = True
    dialer.error = DialError("Connection refused (os error 111)")
    assert await pool.tunnel(key()) is first
