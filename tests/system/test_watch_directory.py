"""Watching a directory: nothing is missed, nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio
import trio.testing

from ztunnel.system.watch_directory import watch_directory


class Looks:
    def __init__(self) -> None:
        self.count = 0

        self._looked = trio.Event()

    async def look(self) -> None:
        self.count += 1
        looked, self._looked = self._looked, trio.Event()
        looked.set()
        await trio.lowlevel.checkpoint()

    async def until(self, count: int) -> None:
        with trio.fail_after(10):
            while self.count < count:
                await self._looked.wait()


async def test_every_kind_of_change_is_noticed(tmp_path: Path, nursery, autojump_clock):
    looks = Looks()
    nursery.start_soon(partial(watch_directory, tmp_path, looks.look, quiet_seconds=0.02))
    await looks.until(1)
    file = tmp_path / "x"
    changes: list[Callable[[], object]] = [
        partial(file.write_text, "a"),
        partial(file.write_text, "b"),
        partial(file.chmod, 0o600),
        partial(file.rename, tmp_path / "y"),
        (tmp_path / "y").unlink,
    ]
    for change in changes:
        before = looks.count
        change()
        await looks.until(before + 1)
        await trio.sleep(0.05)
    nursery.cancel_scope.cancel()


async def test_many_changes_together_are_one_look(tmp_path: Path, nursery, autojump_clock):
    looks = Looks()
    nursery.start_soon(partial(watch_directory, tmp_path, looks.look, quiet_seconds=0.1))
    await looks.until(1)
    for number in range(200):
        (tmp_path / str(number)).write_text("x")
    await looks.until(2)
    await trio.sleep(0.3)
    assert looks.count == 2
    nursery.cancel_scope.cancel()


async def test_a_directory_that_is_replaced_is_watched_again(tmp_path: Path, nursery):
    watched = tmp_path / "d"
    watched.mkdir()
    looks = Looks()
    nursery.start_soon(partial(watch_directory, watched, looks.look, quiet_seconds=0.02))
    await looks.until(1)
    watched.rename(tmp_path / "old")
    watched.mkdir()
    await looks.until(2)
    await trio.testing.wait_all_tasks_blocked(0.05)
    before = looks.count
    (watched / "x").write_text("new")
    await looks.until(before + 1)
    nursery.cancel_scope.cancel()


async def test_a_missing_directory_is_looked_for(tmp_path: Path, nursery, autojump_clock):
    looks = Looks()
    nursery.start_soon(watch_directory, tmp_path / "later", looks.look)
    await trio.sleep(35)
    assert looks.count == 4
    nursery.cancel_scope.cancel()


async def test_cancellation_is_immediate_and_closes_the_descriptor(tmp_path: Path):
    before = set(os.listdir("/proc/self/fd"))
    looks = Looks()
    with trio.move_on_after(0.05):
        await watch_directory(tmp_path, looks.look)
    assert looks.count == 1
    assert set(os.listdir("/proc/self/fd")) <= before
