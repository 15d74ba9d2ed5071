"""Injects faults by count: at the n-th step of the scheduler, or the n-th system call on a socket.

A scenario is run again and again, with the fault at the first place, the second, and so on, until a run ends
before the fault comes. So every await and every call fails once, whatever the code looks like. Only calls of
ztunnel's modules count. A call through Trio's sockets and streams counts for the module that calls Trio.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import trio
from trio._socket import _SocketType

SOCKET_CALLS = (
    "accept",
    "bind",
    "connect",
    "connect_ex",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recv",
    "recv_into",
    "recvfrom",
    "send",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
)
OS_CALLS = ("pipe2", "splice")


def _caller(depth: int) -> str:
    """Returns the module that makes a call, directly or through Trio. Trio's own calls are Trio's."""
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame is not None:
        module: str = frame.f_globals.get("__name__", "")
        if not module.startswith(("trio.", "socket", __name__)) or module.startswith("trio._core"):
            return module
        frame = frame.f_back
    return ""


class Turn:
    """Counts places until the fault. ``at``: its number, from 1. ``reached``: it came. ``place``: where."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.place = ""

    @property
    def reached(self) -> bool:
        return self.count >= self.at

    def now(self, place: str) -> bool:
        """Count one more place. Returns whether the fault is due."""
        self.count += 1
        if self.count == self.at:
            self.place = place
            return True
        return False


class _Steps(trio.abc.Instrument):
    def __init__(self, turn: Turn, wanted: Callable[[str], bool], act: Callable[[], None]) -> None:
        self._turn = turn
        self._wanted = wanted
        self._act = act

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._wanted(task.name) and self._turn.now(task.name):
            self._act()


@contextmanager
def at_step(turn: Turn, wanted: Callable[[str], bool], act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` after the turn's step of the tasks with ``wanted`` names: each step ends in an await."""
    instrument = _Steps(turn, wanted, act)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


@contextmanager
def at_call(
    turn: Turn, number: int, monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...]
) -> Iterator[None]:
    """Let the turn's system call of modules in ``packages`` fail with an errno. Closing never fails."""

    def failing(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            module = _caller(1)
            if module.startswith(packages) and turn.now(f"{module}: {name}"):
                if name == "connect_ex":
                    return number
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        return call

    trios = _SocketType._nonblocking_helper

    async def helped(self: Any, wait: Any, function: Any, *arguments: Any, **options: Any) -> Any:
        # Trio has got hold of the standard library's methods before any of this.
        name = function.__name__
        return await trios(self, wait, failing(name, function), *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_SocketType, "_nonblocking_helper", helped)
        for name in SOCKET_CALLS:
            patch.setattr(socket.socket, name, failing(name, getattr(socket.socket, name)))
        for name in OS_CALLS:
            patch.setattr(os, name, failing(name, getattr(os, name)))
        yield


class Census(Counter[str]):
    """What a process holds: its descriptors by kind, and its tasks by the beginnings of their names."""

    @classmethod
    def take(cls) -> Census:
        census = cls()
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            census["descriptor " + target.partition(":")[0]] += 1
        root = trio.lowlevel.current_root_task()
        waiting = [root] if root is not None else []
        while waiting:
            task = waiting.pop()
            census["task " + task.name.split()[0].rpartition(".")[2]] += 1
            for nursery in task.child_nurseries:
                waiting += nursery.child_tasks
        return census


async def steady() -> Census:
    """Returns the census once it no longer changes: what has ended is gone, what is cached is open."""
    previous = Census()
    while (census := Census.take()) != previous:
        previous = census
        await trio.sleep(0.5)
    return census


async def settled(base: Census, timeout: float = 30) -> Census:
    """Returns the census once it equals the base, at the latest after ``timeout`` seconds."""
    with trio.move_on_after(timeout):
        while True:
            if Census.take() == base:
                break
            await trio.sleep(0.01)
    return Census.take()
