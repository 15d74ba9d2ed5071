"""Loggers: `get_logger(scope)` returns one, based on structlog's bound loggers.

How a line is made. Each logger has a `_Threshold`, shared by all loggers of the same scope (and workload):
one integer, the level up to which lines are written. A call above it returns after one comparison. Changing
the filter recomputes all thresholds, so a call never evaluates the filter. Other lines go through structlog's
processors; there is one, which adds the time and renders. The text goes to the `Sink`.

Spans (`Logger.bind_span`) are rendered when they are bound, not for each line. A logger with the span
``proxy{wl=namespace/pod}`` belongs to that workload, whose level can be changed at run time.
"""

from __future__ import annotations

import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import structlog
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
from ztunnel.observe.render import Clock, Span, json_line, make_span, plain_line
from ztunnel.observe.sink import Sink

_OUTER_SCOPES = ("access", "ztunnel")
_WORKLOAD_SPANS = ("proxy", "dns_proxy")
_ORIGIN = "\0origin"
_MESSAGE = "\0message"


class _Threshold:
    """The level up to which lines of a module path, and perhaps of one workload, are written."""

    __slots__ = ("__weakref__", "level", "path", "workload")

    def __init__(self, path: str, workload: str, level: Level) -> None:
        self.path = path
        self.workload = workload
        self.level = level


class _Origin(NamedTuple):
    threshold: _Threshold
    spans: tuple[Span, ...]


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


class _Lines:
    """The object that structlog calls with a rendered line, which contains the level already."""

    __slots__ = ("debug", "error", "info", "trace", "warn")

    def __init__(self) -> None:
        self.send_to(None)

    def send_to(self, output: Output | None) -> None:
        write: Callable[[str], None] = _drop if output is None else output.write
        self.trace = self.debug = self.info = self.warn = self.error = write


def _drop(line: str) -> None:
    del line


class Logger(structlog.BoundLoggerBase):
    """Writes lines of one scope. `get_logger` makes it; it is immutable, each ``bind`` returns a new one.

    Strings among the fields are quoted, None is left out, other objects are printed with ``str()``.
    ``exc_info=`` takes an exception; its traceback becomes the field ``backtrace``.
    """

    def __init__(self, logger: Any, processors: Any, context: Any) -> None:
        super().__init__(logger, processors, context)
        self._threshold: _Threshold = context[_ORIGIN].threshold

    def trace(self, message: str, /, **fields: Any) -> None:
        """Write at level trace."""
        if self._threshold.level >= 5:
            self._emit("trace", message, fields)

    def debug(self, message: str, /, **fields: Any) -> None:
        """Write at level debug."""
        if self._threshold.level >= 4:
            self._emit("debug", message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """Write at level info."""
        if self._threshold.level >= 3:
            self._emit("info", message, fields)

    def warn(self, message: str, /, **fields: Any) -> None:
        """Write at level warn."""
        if self._threshold.level >= 2:
            self._emit("warn", message, fields)

    warning = warn

    def error(self, message: str, /, **fields: Any) -> None:
        """Write at level error."""
        if self._threshold.level >= 1:
            self._emit("error", message, fields)

    def exception(self, message: str, /, **fields: Any) -> None:
        """Write at level error, with the traceback of the exception that is being handled."""
        if self._threshold.level >= 1:
            self._emit("error", message, {"exc_info": sys.exception(), **fields})

    def log(self, level: Level, message: str, fields: Mapping[str, Any]) -> None:
        """Write at a level that is given as an argument, with the fields in a mapping."""
        if 0 < level <= self._threshold.level:
            self._emit(_METHODS[level], message, fields)

    def log_later(self, level: Level, message: str, fields: Callable[[], Mapping[str, Any]]) -> None:
        """As `log`, for lines of which there are many: they are rendered when they are written, together.

        fields: called then, perhaps in another thread; it must return what it would return now.
        """
        if not 0 < level <= self._threshold.level:
            return
        if _hub.sink is None or _hub.records is not None:
            self._emit(_METHODS[level], message, fields())
        else:
            origin: _Origin = self._context[_ORIGIN]
            _hub.sink.write(partial(_hub.line, _hub.clock_ns(), level, origin, message, fields))

    def _emit(self, method: str, message: str, fields: Mapping[str, Any]) -> None:
        # structlog's own way reserves the field name "event"
        event: Any = {**self._context, **fields, _MESSAGE: message}
        for processor in self._processors:
            event = processor(self._logger, method, event)
        getattr(self._logger, method)(event)

    def is_enabled(self, level: Level) -> bool:
        """Returns whether a line of this level would be written.

        Ask it before collecting expensive fields.
        """
        return level <= self._threshold.level

    def bind_span(self, name: str, /, **fields: Any) -> Logger:
        """Returns a logger whose lines have one more span.

        ``wl`` of a proxy span makes it the workload's logger.
        """
        origin: _Origin = self._context[_ORIGIN]
        threshold = origin.threshold
        if name in _WORKLOAD_SPANS and "wl" in fields:
            threshold = _hub.threshold(threshold.path, str(fields["wl"]))
        return self._derived(_Origin(threshold, (*origin.spans, make_span(name, fields))))

    def for_workload(self, workload: str) -> Logger:
        """Returns a logger with the level of a workload (``namespace/pod``), without a span."""
        origin: _Origin = self._context[_ORIGIN]
        return self._derived(origin._replace(threshold=_hub.threshold(origin.threshold.path, workload)))

    def _derived(self, origin: _Origin) -> Logger:
        return Logger(self._logger, self._processors, {**self._context, _ORIGIN: origin})


_METHODS = {level: level.name.lower() for level in Level}
_LEVELS = {name: level for level, name in _METHODS.items()}


class _Hub:
    """What all loggers share: thresholds, format, destination."""

    def __init__(self) -> None:
        self.lines = _Lines()
        self.clock_ns: Callable[[], int] = time.time_ns
        self.startup_filter = self.filter = parse_startup_filter(None)
        self.sink: Sink | None = None
        self.records: list[LogRecord] | None = None
        self._clock = Clock()
        self._line = plain_line
        self._thresholds: weakref.WeakValueDictionary[tuple[str, str], _Threshold] = (
            weakref.WeakValueDictionary()
        )
        self.processors = [self._render]

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

    def _render(self, _logger: Any, method: str, event: Any) -> str:
        threshold, spans = event.pop(_ORIGIN)
        message = event.pop(_MESSAGE)
        if "exc_info" in event:
            error = event.pop("exc_info")
            if isinstance(error, BaseException):
                event["backtrace"] = "".join(traceback.format_exception(error))
        level = _LEVELS[method]
        if self.records is not None:
            self.records.append(LogRecord(level, threshold.path, message, event, spans))
        return self._line(self._clock.text(self.clock_ns()), level, threshold.path, spans, (message, event))

    def line(
        self,
        time_ns: int,
        level: Level,
        origin: _Origin,
        message: str,
        fields: Callable[[], Mapping[str, Any]],
    ) -> str:
        """Returns a line of `Logger.log_later`, rendered."""
        threshold, spans = origin
        return self._line(self._clock.text(time_ns), level, threshold.path, spans, (message, fields()))


_hub = _Hub()


def get_logger(scope: str) -> Logger:
    """Returns the logger of a scope.

    The scope is without ``ztunnel::`` (``proxy::inbound``; ``access`` is a root itself).

    May be called while modules are imported. Nothing is written before `setup_logging`.
    """
    path = scope if scope in _OUTER_SCOPES or scope.startswith("ztunnel::") else f"ztunnel::{scope}"
    origin = _Origin(_hub.threshold(path, ""), ())
    return Logger(_hub.lines, _hub.processors, {_ORIGIN: origin})


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
    _hub.lines.send_to(_hub.sink)


def shutdown_logging() -> None:
    """Write what is queued, for up to a second; after that, write nothing."""
    sink, _hub.sink = _hub.sink, None
    if sink is not None:
        _hub.lines.send_to(None)
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
    Logger(_hub.lines, _hub.processors, {_ORIGIN: _Origin(threshold, ())}).warn(message)


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
