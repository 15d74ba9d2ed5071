"""A process that can do nothing any more ends by itself, with a code; one that only stood still goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest
import trio

from ztunnel.errors import ZtunnelError
from ztunnel.loop.watchdog import MISSES, Watchdog

NEVER = 3600.0
"""Seconds: the timer takes no part, the tests send its signal themselves."""


@pytest.fixture
def ends() -> list[ZtunnelError]:
    return []


@pytest.fixture
def watchdog(ends: list[ZtunnelError]) -> Iterator[Watchdog]:
    with Watchdog(NEVER, ends.append) as watchdog:
        yield watchdog


def alarm() -> None:
    os.kill(os.getpid(), signal.SIGALRM)


def test_without_a_turn_it_ends_after_so_many_signals(watchdog: Watchdog, ends: list[ZtunnelError]) -> None:
    for _ in range(MISSES):
        alarm()
    assert not ends  # the first one came after the turn with which it began
    alarm()
    assert [end.code for end in ends] == ["ZT-INT-007"]
    assert str(ends[0]).startswith("The event loop has not turned for 3600 s;")


async def test_each_turn_counts_from_the_beginning(
    watchdog: Watchdog, ends: list[ZtunnelError], autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        for _ in range(3):
            for _ in range(MISSES):
                alarm()
            await trio.sleep(NEVER / MISSES)
        nursery.cancel_scope.cancel()
    assert not ends


def test_afterwards_all_is_as_before() -> None:
    def before() -> list[object]:
        return [
            signal.getsignal(signal.SIGALRM),
            signal.getitimer(signal.ITIMER_REAL)[0] > 0,  # pytest may have set it
            threading.excepthook,
            sys.unraisablehook,
        ]

    found = before()
    with Watchdog(NEVER):
        assert signal.getitimer(signal.ITIMER_REAL)[1] == NEVER / MISSES
        assert threading.excepthook not in found
    assert before() == found


def test_what_cannot_be_raised_elsewhere_is_no_end(
    watchdog: Watchdog, ends: list[ZtunnelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(watchdog, "_hooks", (threading.excepthook, told.append))

    class Bad:
        def __del__(self) -> None:
            raise ValueError("in a finalizer")

    Bad()
    assert len(told) == 1
    assert not ends


PROGRAM = """
import threading, trio
from ztunnel.loop.watchdog import Watchdog

async def main(watchdog):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        await trio.lowlevel.checkpoint()
        hang()
        await trio.sleep_forever()

def fail(*_):
    raise MemoryError

def hang():
    {hang}

with Watchdog({limit}) as watchdog:
    trio.run(main, watchdog)
"""


@pytest.mark.parametrize(
    ("hang", "limit", "told"),
    [
        ("threading.Event().wait()", 0.6, "The event loop has not turned for 0.6 s"),
        (
            # What happens where the kernel gives a new thread no memory: `start` waits for ever.
            "threading.Thread._bootstrap_inner = fail; threading.Thread(target=print).start()",
            NEVER,
            "A thread that had not begun yet has died (MemoryError)",
        ),
        (
            "threading.Thread(target=fail, name='spin').start()",
            NEVER,
            "The thread spin has died (MemoryError)",
        ),
    ],
)
def test_a_program_that_hangs_ends_and_says_why(hang: str, limit: float, told: str) -> None:
    program = textwrap.dedent(PROGRAM).format(hang=hang, limit=limit)
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    first, _, rest = ended.stderr.partition("\n")
    assert first.startswith(f"Error: {told}")
    assert first.endswith(("(ZT-INT-007)", "(ZT-INT-008)"))
    assert "most recent call first" in rest, "where each thread was"
