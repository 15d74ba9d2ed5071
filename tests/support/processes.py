"""CPU time and memory of processes and all that they have started, and the lines that they print."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from ztunnel.demo.processes import Process

_TICKS = os.sysconf("SC_CLK_TCK")
# Fields of proc(5)'s stat behind the program's name: parent, user and system time, the same of dead children.
_PARENT = 1
_TIMES = slice(11, 15)


class Memory(NamedTuple):
    """In KiB. pss: a page that several processes share counts for each in part."""

    rss: int
    pss: int


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def families(roots: Iterable[int]) -> list[int]:
    """Returns these processes and their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """Returns the CPU time of these processes and all descendants so far, also of those that have ended."""
    ticks = 0
    for pid in families(roots):
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(map(int, fields[_TIMES]))
    return ticks / _TICKS


def waited_for_a_core(roots: Iterable[int]) -> float:
    """Seconds for which the threads of these processes and their descendants were ready and had no core.

    Those of threads that have ended are not in it. 0 where the kernel does not count them
    (/proc/PID/task/TID/schedstat).
    """
    nanoseconds = 0
    for pid in families(roots):
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                nanoseconds += int(path.read_text().split()[1])
    return nanoseconds / 1e9


def memory(roots: Iterable[int]) -> Memory:
    """Returns the memory of these processes and their descendants."""
    rss = pss = 0
    for pid in families(roots):
        values = _rollup(pid)
        rss += values["Rss"]
        pss += values["Pss"]
    return Memory(rss, pss)


def own_memory(pid: int) -> int:
    """Returns KiB of a process's anonymous memory, shared pages in part; 0 when it is gone."""
    try:
        values = _rollup(pid)
    except OSError:
        return 0
    return values["Pss_Anon"] + values["Pss_Shmem"]


def _rollup(pid: int) -> dict[str, int]:
    """Returns KiB of each kind of a process's memory. Raises OSError."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        values[name] = int(value.split()[0])
    return values


async def said(process: Process, text: str, timeout: float) -> None:
    """Wait for a line of a program. If it ends or hangs, the test fails with its output."""
    wait = partial(process.wait_until, lambda: text in process.output(), what=text, timeout=timeout)
    await trio.to_thread.run_sync(wait)
