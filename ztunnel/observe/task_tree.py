"""The tree of tasks: which task runs in which nursery, for how long, and what it waits for.

Trio knows all of this except the ages, which `TaskAges` records, and the texts: for a function of ours that
waits for something known, the caller provides a function that reads its local variables (`Words`). So nothing
is stored for the tree while nobody asks.

The tree is read at once or in slices. In slices it may change meanwhile, so a task that started or ended may
be missing. A nursery is named by the variable that holds it and the function that opened it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import msgspec
import trio

_OURS = f"{Path(__file__).parents[1]}/"
_TRIO = f"{Path(trio.__file__).parent}/"

Words: TypeAlias = Mapping[str, Callable[[Mapping[str, Any]], str | None]]
"""By a function's qualified name: a function that describes its local variables while it waits."""


class TaskAges(trio.abc.Instrument):
    """Records when each task was spawned, once it was added with ``trio.lowlevel.add_instrument``."""

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
        """Returns the seconds since a task was spawned, None for one that is older than this instrument."""
        spawned = self._spawned.get(task)
        return None if spawned is None else self._now() - spawned


class TaskNode(msgspec.Struct, omit_defaults=True):
    """A line of the tree: a task, or a nursery.

    depth: its level in the tree. kind: ``task`` or ``nursery``. where: the code that waits, or that opened
        the nursery. doing: what it waits for, in words, outermost first, if known.
    """

    depth: int
    kind: str
    name: str
    where: str = ""
    age_seconds: float | None = None
    doing: tuple[str, ...] = ()

    def __str__(self) -> str:
        aged = "" if self.age_seconds is None else f"  {self.age_seconds:.1f}s"
        words = f"  ({'; '.join(self.doing)})" if self.doing else ""
        where = f"  {self.where}" if self.where else ""
        name = f"[nursery {self.name}]" if self.kind == "nursery" else self.name
        return f"{'  ' * self.depth}{name}{aged}{words}{where}"


def task_nodes(
    ages: TaskAges | None = None, root: trio.lowlevel.Task | None = None, words: Words | None = None
) -> Iterator[TaskNode]:
    """Returns each task and each nursery, parents first; the children of a nursery are sorted by name."""
    top = root or trio.lowlevel.current_root_task()
    if top is None:
        return
    stack: list[tuple[int, trio.lowlevel.Task | TaskNode]] = [(0, top)]
    while stack:
        depth, task = stack.pop()
        if isinstance(task, TaskNode):
            yield task
            continue
        frames = list(task.iter_await_frames())
        yield _node(depth, task, frames, ages, words or {})
        below: list[tuple[int, trio.lowlevel.Task | TaskNode]] = []
        for level, nursery in enumerate(task.child_nurseries):
            inside = depth + 1 + level
            name, where = _nursery_name(nursery, frames)
            below.append((inside, TaskNode(inside, "nursery", name, where)))
            below += [(inside + 1, child) for child in sorted(nursery.child_tasks, key=lambda one: one.name)]
        stack += reversed(below)


def task_tree(
    ages: TaskAges | None = None, root: trio.lowlevel.Task | None = None, words: Words | None = None
) -> Iterator[str]:
    """Returns the same as lines without line breaks, indented by two spaces a level."""
    return map(str, task_nodes(ages, root, words))


def _node(
    depth: int,
    task: trio.lowlevel.Task,
    frames: list[tuple[FrameType, int]],
    ages: TaskAges | None,
    words: Words,
) -> TaskNode:
    age = None if ages is None else ages.age(task)
    doing = []
    for frame, _ in frames:
        speak = words.get(frame.f_code.co_qualname)
        try:
            said = speak(frame.f_locals) if speak is not None else None
        except (KeyError, AttributeError):  # the variable is not set yet
            continue
        if said:
            doing.append(_printable(said))
    rounded = None if age is None else round(age, 3)
    return TaskNode(depth, "task", _printable(task.name), _where(frames), rounded, tuple(doing))


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _nursery_name(nursery: trio.Nursery, frames: list[tuple[FrameType, int]]) -> tuple[str, str]:
    """Returns the variable that holds a nursery, and the function that opened it."""
    for frame, _ in frames:
        for name, value in frame.f_locals.items():
            if value is nursery:
                return name, f"{_file(frame)} {frame.f_code.co_qualname}"
    return "of a library", ""


def _where(frames: list[tuple[FrameType, int]]) -> str:
    if not frames:
        return "running"
    # the place in our own code says more than the place inside Trio where that ends; of Trio, the called
    # function
    own = [i for i, (frame, _) in enumerate(frames) if not frame.f_code.co_filename.startswith(_TRIO)]
    index = own[-1] if own else 0
    frame, line = frames[index]
    called = frames[index + 1 :]
    waits = f" → {called[0][0].f_code.co_qualname}" if called else ""
    return f"{_file(frame)}:{line} {frame.f_code.co_qualname}{waits}"


def _file(frame: FrameType) -> str:
    name = frame.f_code.co_filename
    return name.removeprefix(_OURS) if name.startswith(_OURS) else "/".join(name.split("/")[-2:])
