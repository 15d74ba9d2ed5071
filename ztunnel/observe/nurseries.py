"""The tree of tasks as text: who runs in which nursery, for how long, and what it waits for.

Trio knows all of this but the ages, which `TaskAges` notes as tasks come. The tree is walked in one go or in
slices; walked in slices it changes underway, so a task may be missing that came or went meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType

import trio

_OURS = "/ztunnel/"
_TRIO = "/trio/"


class TaskAges(trio.abc.Instrument):
    """Notes when each task was spawned, once ``trio.lowlevel.add_instrument`` was called with it."""

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._spawned: dict[trio.lowlevel.Task, float] = {}

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        self._spawned[task] = self._now()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        self._spawned.pop(task, None)

    def age(self, task: trio.lowlevel.Task) -> float | None:
        """Seconds since the task was spawned, None for one that is older than this instrument."""
        spawned = self._spawned.get(task)
        return None if spawned is None else self._now() - spawned


def task_tree(ages: TaskAges | None = None, root: trio.lowlevel.Task | None = None) -> Iterator[str]:
    """Lines without line breaks, one a task, indented by two spaces a nursery."""
    top = root or trio.lowlevel.current_root_task()
    if top is None:
        return
    stack: list[tuple[int, trio.lowlevel.Task]] = [(0, top)]
    while stack:
        depth, task = stack.pop()
        yield "  " * depth + _line(task, ages)
        children: list[tuple[int, trio.lowlevel.Task]] = []
        for level, nursery in enumerate(task.child_nurseries):
            children += [(depth + 1 + level, child) for child in _by_name(nursery)]
        stack += reversed(children)


def _by_name(nursery: trio.Nursery) -> list[trio.lowlevel.Task]:
    return sorted(nursery.child_tasks, key=lambda task: task.name)


def _line(task: trio.lowlevel.Task, ages: TaskAges | None) -> str:
    age = None if ages is None else ages.age(task)
    aged = "" if age is None else f"  {age:.1f}s"
    return f"{_name(task)}{aged}  {_where(task)}"


def _name(task: trio.lowlevel.Task) -> str:
    return task.name if task.name.isprintable() else ascii(task.name)


def _where(task: trio.lowlevel.Task) -> str:
    frames: list[tuple[CodeType, int]] = [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    if not frames:
        return "running"
    # where our own code waits says more than where that ends inside trio; of trio, what was called
    own = [frame for frame in frames if _TRIO not in frame[0].co_filename] or frames[:1]
    code, line = own[-1]
    called = frames[frames.index(own[-1]) + 1 :]
    file = code.co_filename.rpartition(_OURS)[2] if _OURS in code.co_filename else _last_parts(code)
    waits = f" → {called[0][0].co_qualname}" if called else ""
    return f"{file}:{line} {code.co_qualname}{waits}"


def _last_parts(code: CodeType) -> str:
    return "/".join(code.co_filename.split("/")[-2:])
