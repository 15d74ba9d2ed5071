from __future__ import annotations

import pytest
import trio

from tests.support.logs import capture_logs
from ztunnel.admin.http import Request
from ztunnel.admin.readiness import Readiness
from ztunnel.bounds import DEFAULTS

START, HOLD = DEFAULTS.admin.probe_start, DEFAULTS.admin.probe_hold


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def answer(
    readiness: Readiness, method: str = "GET", path: str = "/healthz/ready", **query: str
) -> tuple[int, str]:
    response = await readiness.handle(Request(method, path, query))
    assert isinstance(response.body, bytes)
    return response.status, response.body.decode()


async def test_ready_when_nothing_is_pending():
    assert await answer(Readiness()) == (200, "ready\n")


async def test_pending_tasks_are_named_in_order():
    readiness = Readiness()
    for name in ["workload proxy manager", "state manager"]:
        readiness.register(name)
    assert await answer(readiness) == (500, "not ready, pending: state manager, workload proxy manager\n")
    readiness.complete("state manager")
    readiness.complete("workload proxy manager")
    assert await answer(readiness) == (200, "ready\n")


async def test_readiness_goes_back():
    readiness = Readiness()
    readiness.register("a")
    readiness.complete("a")
    readiness.uncomplete("a", "connection lost")
    assert (await answer(readiness))[0] == 500


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT"])
async def test_other_methods_are_405(method):
    assert await answer(Readiness(), method) == (405, "")


async def test_other_paths_are_404():
    assert await answer(Readiness(), path="/healthz") == (404, "")


async def test_verbose_says_how_long_and_why():
    clock = Clock()
    readiness = Readiness(clock)
    readiness.register("state manager")
    clock.now = 12.25
    readiness.failed("state manager", "connection refused")
    readiness.register("proxy")
    assert (await answer(readiness, verbose=""))[1] == (
        "not ready, pending: proxy, state manager\n"
        "proxy: pending for 0ns\n"
        "state manager: pending for 12.2s, last error: connection refused\n"
    )


def test_completion_is_logged_as_the_reference_has_it():
    clock = Clock()
    readiness = Readiness(clock)
    readiness.register("state manager")
    readiness.register("proxy")
    with capture_logs() as records:
        clock.now = 0.0117
        readiness.complete("state manager")
        clock.now = 2.0
        readiness.complete("proxy")
        readiness.complete("proxy")
        readiness.complete("never registered")
    assert [record.message for record in records] == [
        "Task 'state manager' complete (11.7ms), still awaiting 1 tasks",
        "Task 'proxy' complete (2s), marking server ready",
    ]
    assert records[0].scope == "ztunnel::readiness"


def test_registering_twice_keeps_the_age_and_a_failure_of_no_task_is_ignored():
    clock = Clock()
    readiness = Readiness(clock)
    readiness.register("a")
    clock.now = 5.0
    readiness.register("a")
    readiness.failed("b", "x")
    assert readiness.report() == "a: pending for 5s\n"
    assert readiness.pending == ["a"]


async def test_verbose_has_remarks_that_do_not_keep_it_from_being_ready():
    readiness = Readiness()
    readiness.remark("control plane", "not connected")
    assert await answer(readiness) == (200, "ready\n")
    assert await answer(readiness, verbose="") == (200, "ready\ncontrol plane: not connected\n")
    readiness.remark("certificates", "1 cannot be renewed")
    readiness.remark("control plane", None)
    readiness.remark("never", None)
    assert await answer(readiness, verbose="") == (200, "ready\ncertificates: 1 cannot be renewed\n")


async def test_during_the_start_a_probe_waits_for_the_outcome(autojump_clock):
    readiness = Readiness(trio.current_time, hold=HOLD)
    readiness.register("a")

    async def complete() -> None:
        await trio.sleep(0.5)
        readiness.complete("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(complete)
        assert await answer(readiness) == (200, "ready\n")
        assert trio.current_time() == pytest.approx(0.5)
    # Whatever happens later, nobody is kept waiting.
    readiness.uncomplete("a")
    assert (await answer(readiness))[0] == 500
    assert trio.current_time() == pytest.approx(0.5)


async def test_a_start_that_takes_longer_is_told_before_the_kubelet_gives_up(autojump_clock):
    readiness = Readiness(trio.current_time, hold=HOLD)
    readiness.register("a")
    times = []
    for _ in range(4):
        before = trio.current_time()
        assert (await answer(readiness))[0] == 500
        times.append(trio.current_time() - before)
    assert times == pytest.approx([HOLD, HOLD, START - 2 * HOLD, 0.0])


async def test_who_looks_at_the_details_waits_for_nothing(autojump_clock):
    readiness = Readiness(trio.current_time, hold=HOLD)
    readiness.register("a")
    assert (await answer(readiness, verbose=""))[0] == 500
    assert trio.current_time() == 0
