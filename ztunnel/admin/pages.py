"""The admin server's pages and commands."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import trio

from ztunnel.admin.config_dump import AdminProviders, config_dump
from ztunnel.admin.front_page import FrontPage
from ztunnel.admin.http import Request, Response
from ztunnel.admin.levels import LogLevelControl
from ztunnel.admin.page import Page
from ztunnel.admin.pprof import TRACED_FRAMES, CpuProfile, encode_cpu, encode_heap
from ztunnel.config.spelling import nearest
from ztunnel.observe.logging import get_logger
from ztunnel.observe.task_tree import TaskAges, task_tree

_TEXT = "text/plain"
_BINARY = "application/octet-stream"
_HEAP_OFF = "heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true"
_LINES = 500

log = get_logger("admin")


class Admin:
    """Serves the admin port.

    shutdown: starts the drain as SIGTERM does, and returns at once.
    ages: when tasks were spawned, for ``/debug/tasks``.
    pages: further pages by path.
    """

    def __init__(
        self,
        providers: AdminProviders,
        *,
        levels: LogLevelControl,
        shutdown: Callable[[], None],
        ages: TaskAges | None = None,
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        self._providers = providers
        self._shutdown = shutdown
        self._ages = ages
        self._profiling = trio.Lock()
        self._pages = {
            "/config_dump": Page("Dump the configuration and all that is known", self._config_dump),
            "/logging": Page("Query or change log levels (POST)", levels.handle),
            "/quitquitquit": Page("Drain and exit (POST)", self._quit),
            "/debug/pprof/profile": Page("Take a CPU profile (pprof)", self._cpu_profile),
            "/debug/pprof/heap": Page("Take a heap profile (pprof)", self._heap_profile),
            "/debug/pprof/heap/profiling": Page(
                "Switch heap profiling on or off (?activate=true)", self._heap_switch
            ),
            "/debug/tasks": Page("Show the tree of tasks", self._tasks),
            **(pages or {}),
        }
        self._front = FrontPage(self._pages)

    async def handle(self, request: Request) -> Response:
        """Any path; unknown ones are 404."""
        front = self._front.answer(request)
        if front is not None:
            return front
        page = self._pages.get(request.path)
        return self._not_found(request.path) if page is None else await page.handler(request)

    def _not_found(self, path: str) -> Response:
        pages = "".join(f"  {path:<28} {page.description}\n" for path, page in self._pages.items())
        meant = nearest(path, self._pages, 0.6)
        hint = f"; did you mean {meant}?" if meant else "."
        first = f"  {'/':<28} The node live, and this list with links"
        text = f"There is no page {path[:200]}{hint} There are:\n\n{first}\n{pages}"
        return Response(404, text.encode("utf-8", "backslashreplace"), "text/plain; charset=utf-8")

    async def _config_dump(self, _request: Request) -> Response:
        return Response(200, config_dump(self._providers), "application/json")

    async def _quit(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(405)
        log.info("received explicit shutdown signal")
        self._shutdown()
        return Response(200, b"shutdown now\n", _TEXT)

    async def _tasks(self, _request: Request) -> Response:
        return Response(200, _in_slices(task_tree(self._ages)), "text/plain; charset=utf-8")

    async def _cpu_profile(self, request: Request) -> Response:
        seconds = _whole(request.query.get("seconds", "10"), 300)
        if seconds is None:
            return Response(400, b"invalid seconds value; expected 1-300\n", _TEXT)
        frequency = _whole(request.query.get("frequency", "100"), 1000)
        if frequency is None:
            return Response(400, b"invalid frequency value; expected 1-1000\n", _TEXT)
        async with self._profiling:
            profile = CpuProfile()
            began = time.time_ns()
            with profile.sampling(frequency):
                await trio.sleep(seconds)
        return Response(200, encode_cpu(profile.stacks(), frequency, seconds, began), _BINARY)

    async def _heap_profile(self, _request: Request) -> Response:
        if not tracemalloc.is_tracing():
            return Response(500, _HEAP_OFF.encode(), _TEXT)
        return Response(200, encode_heap(tracemalloc.take_snapshot(), time.time_ns()), _BINARY)

    async def _heap_switch(self, request: Request) -> Response:
        wanted = request.query.get("activate", "")
        if wanted not in ("true", "false"):
            return Response(400, b"invalid activate value; expected true or false\n", _TEXT)
        if wanted == "false":
            tracemalloc.stop()
        elif not tracemalloc.is_tracing():
            tracemalloc.start(TRACED_FRAMES)
        return Response(200, f"heap profiling active: {wanted}\n".encode(), _TEXT)


def _whole(text: str, largest: int) -> int | None:
    if text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= largest:
        return int(text)
    return None


def _in_slices(lines: Iterator[str]) -> Iterator[bytes]:
    while part := list(islice(lines, _LINES)):
        yield ("\n".join(part) + "\n").encode("utf-8", "backslashreplace")
