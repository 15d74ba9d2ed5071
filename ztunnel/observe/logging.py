"""Loggers: `get_logger(scope)` returns one.

How a line is made. Each logger has a `_Threshold`, shared by all loggers of the same scope (and workload):
one integer, the level up to which lines are written. A call above it returns after one comparison. Changing
the filter recomputes all thresholds, so a call never evaluates the filter. Other lines are rendered with the
time, and the text goes to the `Sink`.

Spans (`Logger.bind_span`) are rendered when they are bound, not for each line. A logger with the span
``proxy{wl=namespace/pod}`` belongs to that workload, whose level can be changed at run time.
"""

from __future__ import annotations

import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import trio

from ztunnel.config.config_errors import InvalidVariableError
from ztunnel.config.spelling import nearest
from ztunnel.observe.filter import (
    DEFAULT_FILTER,
    Filter,
    FilterError,
    Level,
    parse_filter,
    parse_startup_filter,
)
from ztunnel.observe.render import Clock, Said, Span, json_line, make_span, plain_line
from ztunnel.observe.sink import Sink

_OUTER_SCOPES = ("access", "ztunnel")
_WORKLOAD_SPANS = ("proxy", "dns_proxy")


class _Threshold:
    """The level up to which lines of a module path, and perhaps of one workload, are written."""

    __slots__ = ("__weakref__", "level", "path", "workload")

    def __init__(self, path: str, workload: str, level: Level) -> None:
        self.path = path
        self.workload = workload
        self.level = level


class LogRecord(NamedTuple):
    """One line before it is rendered, as `capture_logs` returns it."""

    level: Level
    scope: str
    message: str
    fields: Mapping[str, Any]
    spans: tuple[Span, ...]


class Output(Protocol):
    """The destination of rendered lines."""

    def write(self, line: str) -> None:
        """Write one line, with its line break."""


def _drop(line: str) -> None:
    del line


class Logger:
    """Writes lines of one scope. `get_logger` makes it; it is immutable, `bind_span` returns a new one.

    Strings among the fields are quoted, None is left out, other objects are printed with ``str()``.
    ``exc_info=`` takes an exception; its traceback becomes the field ``backtrace``.
    """

    __slots__ = ("_spans", "_threshold")

    def __init__(self, threshold: _Threshold, spans: tuple[Span, ...] = ()) -> None:
        self._threshold = threshold
        self._spans = spans

    def trace(self, message: str, /, **fields: Any) -> None:
        """Write at level trace."""
        if self._threshold.level >= 5:
            self._emit(Level.TRACE, message, fields)

    def debug(self, message: str, /, **fields: Any) -> None:
        """Write at level debug."""
        if self._threshold.level >= 4:
            self._emit(Level.DEBUG, message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """Write at level info."""
        if self._threshold.level >= 3:
            self._emit(Level.INFO, message, fields)

    def warn(self, message: str, /, **fields: Any) -> None:
        """Write at level warn."""
        if self._threshold.level >= 2:
            self._emit(Level.WARN, message, fields)

    warning = warn

    def error(self, message: str, /, **fields: Any) -> None:
        """Write at level error."""
        if self._threshold.level >= 1:
            self._emit(Level.ERROR, message, fields)

    def exception(self, message: str, /, **fields: Any) -> None:
        """Write at level error, with the traceback of the exception that is being handled."""
        if self._threshold.level >= 1:
            self._emit(Level.ERROR, message, {"exc_info": sys.exception(), **fields})

    def log(self, level: Level, message: str, fields: Mapping[str, Any]) -> None:
        """Write at a level that is given as an argument, with the fields in a mapping."""
        if 0 < level <= self._threshold.level:
            self._emit(level, message, fields)

    def _emit(self, level: Level, message: str, fields: Mapping[str, Any]) -> None:
        if "exc_info" in fields:
            fields = dict(fields)
            error = fields.pop("exc_info")
            if isinstance(error, BaseException):
                fields["backtrace"] = "".join(traceback.format_exception(error))
        _hub.write(level, self._threshold.path, self._spans, (message, fields))

    def is_enabled(self, level: Level) -> bool:
        """Returns whether a line of this level would be written.

        Ask it before collecting expensive fields.
        """
        return level <= self._threshold.level

    def bind_span(self, name: str, /, **fields: Any) -> Logger:
        """Returns a logger whose lines have one more span.

        ``wl`` of a proxy span makes it the workload's logger.
        """
        threshold = self._threshold
        if name in _WORKLOAD_SPANS and "wl" in fields:
            threshold = _hub.threshold(threshold.path, str(fields["wl"]))
        return Logger(threshold, (*self._spans, make_span(name, fields)))

    def for_workload(self, workload: str) -> Logger:
        """Returns a logger with the level of a workload (``namespace/pod``), without a span."""
        return Logger(_hub.threshold(self._threshold.path, workload), self._spans)


class _Hub:
    """What all loggers share: thresholds, format, destination."""

    def __init__(self) -> None:
        self._write: Callable[[str], None] = _drop
        self.clock_ns: Callable[[], int] = time.time_ns
        self.startup_filter = self.filter = parse_startup_filter(None)
        self.sink: Sink | None = None
        self.records: list[LogRecord] | None = None
        self._clock = Clock()
        self._line = plain_line
        self._thresholds: weakref.WeakValueDictionary[tuple[str, str], _Threshold] = (
            weakref.WeakValueDictionary()
        )

    def threshold(self, path: str, workload: str) -> _Threshold:
        found = self._thresholds.get((path, workload))
        if found is None:
            found = _Threshold(path, workload, self.filter.level(path, workload))
            self._thresholds[path, workload] = found
        return found

    def paths(self) -> list[tuple[str, str]]:
        return list(self._thresholds)

    def set_filter(self, wanted: Filter) -> None:
        self.filter = wanted
        for threshold in list(self._thresholds.values()):
            threshold.level = wanted.level(threshold.path, threshold.workload)

    def set_format(self, *, as_json: bool) -> None:
        self._line = json_line if as_json else plain_line

    def send_to(self, output: Output | None) -> None:
        self._write = _drop if output is None else output.write

    def write(self, level: Level, path: str, spans: tuple[Span, ...], said: Said) -> None:
        if self.records is not None:
            self.records.append(LogRecord(level, path, said[0], said[1], spans))
        self._write(self._line(self._clock.text(self.clock_ns()), level, path, spans, said))


_hub = _Hub()


def get_logger(scope: str) -> Logger:
    """Returns the logger of a scope.

    The scope is without ``ztunnel::`` (``proxy::inbound``; ``access`` is a root itself).

    May be called while modules are imported. Nothing is written before `setup_logging`.
    """
    path = scope if scope in _OUTER_SCOPES or scope.startswith("ztunnel::") else f"ztunnel::{scope}"
    return Logger(_hub.threshold(path, ""))


def setup_logging(environ: Mapping[str, str], *, fd: int = 1) -> None:
    """Read filter and format from ``RUST_LOG`` and ``LOG_FORMAT``, and write to a descriptor from now on.

    Raises InvalidVariableError for an invalid filter. `shutdown_logging` ends it.
    """
    text = environ.get("RUST_LOG")
    try:
        wanted = parse_startup_filter(text)
    except FilterError as error:
        expected = f"{error} is neither a level (off, error, warn, info, debug, trace) nor scope=level"
        raise InvalidVariableError("RUST_LOG", text, expected) from error
    shutdown_logging()
    _hub.startup_filter = wanted
    _hub.set_filter(wanted)
    _hub.set_format(as_json=environ.get("LOG_FORMAT") == "json")
    _hub.sink = Sink(fd)
    _hub.send_to(_hub.sink)


def shutdown_logging() -> None:
    """Write what is queued, for up to a second; after that, write nothing."""
    sink, _hub.sink = _hub.sink, None
    if sink is not None:
        _hub.send_to(None)
        sink.close()


async def run_log_writer(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """The task that writes queued lines, until cancelled. Without `setup_logging` it ends at once.

    Start it first and cancel it last; lines logged while it does not run are written at once.
    """
    if _hub.sink is None:
        task_status.started()
        return
    await _hub.sink.run(task_status=task_status)


def current_filter() -> Filter:
    """Returns the filter in force."""
    return _hub.filter


def warn_regardless(message: str) -> None:
    """Write a warning that no filter suppresses: for errors in the filter itself."""
    threshold = _Threshold("ztunnel::app", "", Level.WARN)
    Logger(threshold).warn(message)


def unknown_scopes(wanted: Filter) -> list[str]:
    """Returns a warning for each scope of a filter that no logger has.

    Call it when all modules are loaded. The directives that are always added to ``RUST_LOG`` are left out.
    """
    own = parse_filter(DEFAULT_FILTER).directives
    paths = {path for path, _ in _hub.paths()} | set(_OUTER_SCOPES)  # access: its logger comes with a pod
    known = {"::".join(path.split("::")[:end]) for path in paths for end in range(1, path.count("::") + 2)}
    warnings = []
    for directive in wanted.directives:
        scope = directive.scope
        if not scope or directive in own or any(path.startswith(scope) for path in paths):
            continue
        level = nearest(scope, [level.name.lower() for level in Level], 0.7)
        meant = nearest(scope, known, 0.7)
        if level is not None and directive.level is Level.TRACE:
            hint = f"it is taken for the name of a scope; did you mean the level {level}?"
        elif meant is not None:
            hint = f"did you mean {meant}?"
        else:
            hint = "no logger here has such a scope."
        warnings.append(f"RUST_LOG: `{scope}` logs nothing; {hint}")
    return warnings


def startup_filter() -> Filter:
    """Returns the filter that ``RUST_LOG`` gave, which ``reset`` goes back to."""
    return _hub.startup_filter


def set_filter(wanted: Filter | str) -> None:
    """Replace the filter in force, for all loggers at once. Raises FilterError for a text that is none."""
    _hub.set_filter(parse_filter(wanted) if isinstance(wanted, str) else wanted)
