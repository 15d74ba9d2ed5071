"""``POST /logging``: changes the log filter at run time, for all or for one workload for a limited time."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from ztunnel.admin.http import Request, Response
from ztunnel.bounds import DEFAULTS, AdminBounds
from ztunnel.config.parse_values import parse_duration
from ztunnel.observe.access_log import current_sampling, set_sampling
from ztunnel.observe.filter import Filter, FilterError, parse_admin_levels
from ztunnel.observe.logging import current_filter, set_filter, startup_filter
from ztunnel.observe.sampling import Sampling, SamplingError, make_rule

USAGE = (
    "\nusage: POST /logging\t\t\t\t\t\t(To list current level)\n"
    "usage: POST /logging?level=<level>\t\t\t\t(To change global levels)\n"
    "usage: POST /logging?level={mod1}:{level1},{mod2}:{level2}\t(To change specific mods' logging level)\n"
    "\nhint: loglevel:\terror|warn|info|debug|trace|off\n"
    "hint: mod_name:\tthe module name, i.e. ztunnel::proxy\n"
)


class LogLevelControl:
    """Changes the filter of this process and informs the other processes.

    changed: called with each new filter. `run` resets the levels of single workloads when their time is over.
    """

    def __init__(
        self,
        changed: Callable[[Filter], None] = lambda _filter: None,
        bounds: AdminBounds = DEFAULTS.admin,
    ) -> None:
        self._bounds = bounds
        self._changed = changed
        self._expiries: dict[str, float] = {}
        self._wake = trio.Event()

    async def run(self) -> None:
        """Reset expired levels, until cancelled."""
        while True:
            self._wake = trio.Event()
            now = trio.current_time()
            for workload in [workload for workload, at in self._expiries.items() if at <= now]:
                del self._expiries[workload]
                self._set(current_filter().without_workload(workload))
            deadline = min(self._expiries.values(), default=math.inf)
            with trio.move_on_at(deadline):
                await self._wake.wait()

    async def handle(self, request: Request) -> Response:
        """Show or change the filter."""
        if request.method != "POST":
            return Response(405, f"Invalid HTTP method\n {USAGE}".encode(), "text/plain")
        if "access" in request.query:
            return self._access(request)
        if "workload" in request.query:
            return self._workload(request)
        level = request.query.get("level", "")
        base = current_filter()
        if "reset" in request.query:
            self._expiries.clear()
            base = startup_filter()
        if level:
            try:
                base = base.extended(parse_admin_levels(level))
            except FilterError:
                return _invalid(f"Invalid level provided: {level}")
        self._set(base)
        return _current()

    def _access(self, request: Request) -> Response:
        """``access=share``, perhaps with ``outcome=``, ``direction=``, ``workload=``; or ``access=reset``."""
        query = request.query
        if query["access"] == "reset":
            set_sampling(Sampling())
        else:
            names = ("outcome", "direction", "workload")
            try:
                rule = make_rule(query["access"], *(query.get(name, "") for name in names))
            except SamplingError as error:
                return _invalid(f"Invalid access provided: {error}")
            set_sampling(current_sampling().with_rule(rule))
        self._changed(current_filter())
        shown = str(current_sampling()) or "every access log line is written"
        return Response(200, f"{shown}\n".encode(), "text/plain")

    def _workload(self, request: Request) -> Response:
        """``workload=namespace/pod`` with ``level=`` and perhaps ``ttl=``, or with ``reset``."""
        workload = request.query["workload"]
        if workload.count("/") != 1 or not all(c.isalnum() or c in "-./" for c in workload):
            return _invalid(f"Invalid workload provided: {workload}; expected namespace/pod")
        base = current_filter().without_workload(workload)
        level = request.query.get("level", "")
        if level:
            try:
                levels = parse_admin_levels(level)
            except FilterError:
                return _invalid(f"Invalid level provided: {level}")
            try:
                ttl = (
                    parse_duration(request.query["ttl"]) if "ttl" in request.query else self._bounds.level_ttl
                )
            except ValueError as error:
                return _invalid(f"Invalid ttl provided: {request.query['ttl']}; {error}")
            if not 0 < ttl <= self._bounds.level_longest_ttl:
                return _invalid(f"Invalid ttl provided: {request.query['ttl']}; expected up to 1d")
            base = base.extended(levels.for_workload(workload))
            self._expiries[workload] = trio.current_time() + ttl
        elif "reset" in request.query:
            self._expiries.pop(workload, None)
        else:
            return _current()
        self._set(base)
        self._wake.set()
        return _current()

    def _set(self, wanted: Filter) -> None:
        if wanted != current_filter():
            set_filter(wanted)
            self._changed(wanted)


def _current() -> Response:
    return Response(200, f"current log level is {current_filter()}\n".encode(), "text/plain")


def _invalid(text: str) -> Response:
    return Response(400, f"{text}\n{USAGE}".encode(), "text/plain")
