"""The secret manager's tasks, over minutes and weeks of simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.support.logs import capture_logs
from ztunnel.certs.certificate_errors import CaError, CaUnreachableError, ForgottenIdentityError
from ztunnel.certs.manager import SecretManager
from ztunnel.certs.rotation import Priority
from ztunnel.messages import CertificateFailed, CertificateForgotten, CertificateIssued
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity

EPOCH = 1_700_000_000.0
HOUR = 3600.0
DAY = 24 * HOUR
WHO = Identity("cluster.local", "default", "client")
AWAY = CaUnreachableError("UNAVAILABLE", "The service is currently unavailable", "istiod is away")


def clock() -> float:
    return EPOCH + trio.current_time()


def who(number: int) -> Identity:
    return Identity("cluster.local", "default", f"sa-{number:03}")


class SimulatedCa:
    """Answers after ``latency`` as ``fails`` says, and keeps a book of who asked when."""

    def __init__(self, latency: float = 0.1, life: float = DAY, clock: Callable[[], float] = clock) -> None:
        self.clock = clock
        self.latency = latency
        self.life = life
        self.fails: Callable[[float], Exception | None] = lambda _: None
        self.asked: list[tuple[Identity, float]] = []
        self.under_way = 0
        self.most_under_way = 0

    async def issue(self, identity: Identity) -> Certificate:
        started = trio.current_time()
        self.asked.append((identity, started))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.latency)
        finally:
            self.under_way -= 1
        error = self.fails(started)
        if error is not None:
            raise error
        now = self.clock()
        return Certificate(identity, b"key", (b"%f" % now,), (b"root",), now, now + self.life)

    def times(self) -> list[float]:
        return [when for _, when in self.asked]


class Kit:
    def __init__(self, nursery: trio.Nursery, latency: float = 0.1) -> None:
        self.ca = SimulatedCa(latency)
        self.published: list[CertificateIssued | CertificateFailed | CertificateForgotten] = []
        self.nursery = nursery
        self.manager = SecretManager(self.ca, clock=clock, random=lambda: 0.5, publish=self.published.append)

    async def start(self) -> SecretManager:
        await self.nursery.start(self.manager.run)
        return self.manager

    def kinds(self) -> Sequence[str]:
        return [type(message).__name__ for message in self.published]


async def test_one_fetch_serves_all_who_ask_at_once(nursery, autojump_clock):
    kit = Kit(nursery)
    manager = await kit.start()
    got: list[Certificate] = []

    async def ask() -> None:
        got.append(await manager.fetch(WHO))

    async with trio.open_nursery() as callers:
        for _ in range(50):
            callers.start_soon(ask)
    assert len(kit.ca.asked) == 1
    assert len(set(map(id, got))) == 1
    assert kit.published == [CertificateIssued(got[0])]
    assert manager.current(WHO) is got[0]
    assert manager.want(WHO) == CertificateIssued(got[0])


async def test_eight_fetches_at_a_time_and_connections_first(nursery, autojump_clock):
    kit = Kit(nursery, latency=1.0)
    manager = await kit.start()
    for number in range(30):
        assert manager.want(who(number), Priority.WARMUP) is None
    await trio.sleep(0.5)
    await manager.fetch(who(29), Priority.REAL_TIME)
    # In the first batch after the one that was under way, before 21 others.
    assert dict(kit.ca.asked)[who(29)] == 1.0
    await trio.sleep(10)
    assert kit.ca.most_under_way == 8
    assert len(kit.ca.asked) == 30


async def test_four_weeks_of_renewals_at_half_life(nursery, autojump_clock):
    kit = Kit(nursery, latency=0.0)
    manager = await kit.start()
    start = trio.current_time()
    await manager.fetch(WHO)
    await trio.sleep(28 * DAY + 1)
    times = kit.ca.times()
    assert len(times) == 57
    assert all(abs(when - start - n * DAY / 2) < 1 for n, when in enumerate(times))
    current = manager.current(WHO)
    assert current is not None
    assert current.not_after > clock() + DAY / 2 - 1
    assert set(kit.kinds()) == {"CertificateIssued"}


async def test_an_outage_of_hours_is_survived_on_the_last_good_certificate(nursery, autojump_clock):
    kit = Kit(nursery, latency=0.0)
    manager = await kit.start()
    begin = trio.current_time()
    first = await manager.fetch(WHO)
    kit.ca.fails = lambda when: AWAY if 10 * HOUR < when - begin < 20 * HOUR else None
    with capture_logs("info") as logs:
        await trio.sleep(19 * HOUR)
        assert manager.current(WHO) is first
        assert kit.kinds() == ["CertificateIssued"]
        assert manager.expiries()[0].renewal_failing == str(AWAY)
        await trio.sleep(2 * HOUR)
    assert manager.current(WHO) is not first
    assert manager.expiries()[0].renewal_failing is None
    assert kit.kinds() == ["CertificateIssued", "CertificateIssued"]
    assert any("retaining existing valid certificate until 20" in record.message for record in logs)
    assert any("cannot be renewed" in record.message for record in logs)


async def test_an_outage_past_expiry_is_told_and_healed(nursery, autojump_clock):
    kit = Kit(nursery, latency=0.0)
    manager = await kit.start()
    begin = trio.current_time()
    await manager.fetch(WHO)
    kit.ca.fails = lambda when: AWAY if HOUR < when - begin < 30 * HOUR else None
    await trio.sleep(23.99 * HOUR)
    assert manager.current(WHO) is not None
    await trio.sleep(0.02 * HOUR)
    # The attempt at the very moment of expiry has failed.
    assert any(when - begin == pytest.approx(DAY) for when in kit.ca.times())
    assert manager.current(WHO) is None
    assert kit.published[1] == CertificateFailed(WHO, str(AWAY))
    with pytest.raises(CaUnreachableError):
        await manager.fetch(WHO)
    await trio.sleep(6 * HOUR + 151)
    assert manager.current(WHO) is not None
    assert kit.kinds()[-1] == "CertificateIssued"


async def test_backoff_from_one_second_to_two_and_a_half_minutes(nursery, autojump_clock):
    kit = Kit(nursery, latency=0.0)
    kit.ca.fails = lambda _: AWAY
    manager = await kit.start()
    with pytest.raises(CaUnreachableError) as caught:
        await manager.fetch(WHO)
    assert str(caught.value) == ("signing gRPC error (The service is currently unavailable): istiod is away")
    await trio.sleep(2 * HOUR)
    times = kit.ca.times()
    gaps = [round(b - a, 6) for a, b in pairwise(times)]
    assert gaps[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 150]
    assert set(gaps[9:]) == {150}


async def test_once_the_ca_is_back_connections_have_a_certificate_within_seconds(nursery, autojump_clock):
    kit = Kit(nursery)
    kit.ca.fails = lambda _: AWAY
    manager = await kit.start()
    manager.want(WHO, Priority.WARMUP)
    await trio.sleep(HOUR)
    attempts = len(kit.ca.asked)
    kit.ca.fails = lambda _: None
    back = trio.current_time()
    # The first ones are told the known error; it is their asking that brings the attempt.
    for _ in range(100):
        if isinstance(manager.want(WHO), CertificateIssued):
            break
        await trio.sleep(0.1)
    assert trio.current_time() - back <= 2.5
    assert len(kit.ca.asked) == attempts + 1


async def test_demand_gets_the_cached_error_at_once_and_before_the_next_attempt(nursery, autojump_clock):
    kit = Kit(nursery, latency=5.0)
    kit.ca.fails = lambda _: AWAY
    manager = await kit.start()
    with pytest.raises(CaUnreachableError):
        await manager.fetch(WHO)
    before = trio.current_time()
    for _ in range(20):
        with pytest.raises(CaUnreachableError):
            await manager.fetch(WHO)
        assert manager.want(WHO) == CertificateFailed(WHO, str(AWAY))
    assert trio.current_time() == before
    assert len(kit.ca.asked) == 1
    # Also while the retry is under way.
    await trio.sleep(2)
    assert kit.ca.under_way == 1
    with pytest.raises(CaUnreachableError):
        await manager.fetch(WHO)


async def test_forgetting_tells_the_waiting_and_cancels_the_fetch(nursery, autojump_clock):
    kit = Kit(nursery, latency=1000.0)
    manager = await kit.start()

    async def wait() -> None:
        with pytest.raises(ForgottenIdentityError, match="the identity is no longer needed"):
            await manager.fetch(WHO)

    async with trio.open_nursery() as callers:
        callers.start_soon(wait)
        await trio.sleep(1)
        manager.forget(WHO)
    await trio.sleep(2000)
    assert kit.ca.under_way == 0
    assert kit.published == [CertificateForgotten(WHO)]
    assert manager.current(WHO) is None
    manager.forget(WHO)
    assert len(kit.published) == 1


async def test_an_identity_that_comes_back_is_fetched_anew(nursery, autojump_clock):
    kit = Kit(nursery)
    manager = await kit.start()
    first = await manager.fetch(WHO)
    manager.forget(WHO)
    assert await manager.fetch(WHO) is not first
    await trio.sleep(3 * DAY + 10)
    # One task only rotates it: at most one fetch each half-life.
    assert len(kit.ca.asked) == 2 + 6


async def test_a_fault_of_ours_ends_one_attempt_not_the_manager(nursery, autojump_clock):
    kit = Kit(nursery, latency=0.0)
    kit.ca.fails = lambda when: RuntimeError("boom") if len(kit.ca.asked) == 1 else None
    manager = await kit.start()
    with pytest.raises(CaError, match="internal error"):
        await manager.fetch(WHO)
    await manager.fetch(who(1))
    await trio.sleep(2)
    assert manager.current(WHO) is not None


async def test_a_wall_clock_that_is_set_forward_is_noticed(nursery, autojump_clock):
    offset = 0.0
    ca = SimulatedCa(latency=0.0, clock=lambda: clock() + offset)
    manager = SecretManager(ca, clock=ca.clock, random=lambda: 0.5, publish=lambda _: None)
    await nursery.start(manager.run)
    await manager.fetch(WHO)
    offset = 13 * HOUR
    await trio.sleep(1.1 * HOUR)
    assert len(ca.asked) == 2


async def test_a_wall_clock_that_was_ahead_for_a_while_keeps_no_pod_without_a_certificate(
    nursery, autojump_clock
):
    offset = 0.0
    ca = SimulatedCa(latency=0.0, life=600, clock=clock)
    manager = SecretManager(ca, clock=lambda: clock() + offset, random=lambda: 0.5, publish=lambda _: None)
    await nursery.start(manager.run)
    await manager.fetch(WHO)
    offset = DAY
    await trio.sleep(400)  # the renewal brings nothing that is valid by this clock
    offset = 0.0
    await trio.sleep(400)  # the certificate from before has expired
    assert isinstance(manager.want(WHO), CertificateIssued)


async def test_each_rotation_is_a_named_task(nursery, autojump_clock):
    kit = Kit(nursery)
    manager = await kit.start()
    await manager.fetch(WHO)
    names = set()

    def walk(task: trio.lowlevel.Task) -> None:
        names.add(task.name)
        for child in task.child_nurseries:
            for one in child.child_tasks:
                walk(one)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    walk(root)
    assert f"certificate {WHO}" in names


async def test_a_caller_that_gives_up_disturbs_nobody(nursery, autojump_clock):
    kit = Kit(nursery, latency=10.0)
    manager = await kit.start()
    with trio.move_on_after(1) as scope:
        await manager.fetch(WHO)
    assert scope.cancelled_caught
    await manager.fetch(WHO)
    assert len(kit.ca.asked) == 1


async def test_it_says_so_when_it_does_not_run():
    manager = SecretManager(SimulatedCa(), clock=clock, random=lambda: 0.5, publish=lambda _: None)
    with pytest.raises(RuntimeError, match="does not run"):
        manager.want(WHO)


async def test_when_it_ends_nobody_is_left_waiting(autojump_clock):
    async with trio.open_nursery() as nursery:
        kit = Kit(nursery, latency=1000.0)
        manager = await kit.start()

        async def wait() -> None:
            with pytest.raises(ForgottenIdentityError):
                await manager.fetch(WHO)

        async with trio.open_nursery() as callers:
            callers.start_soon(wait)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            callers.cancel_scope.cancel()
