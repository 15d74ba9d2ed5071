"""The log filter: the syntax of ``RUST_LOG`` and of ``POST /logging``, as a pure value.

A filter is a set of directives, each with a scope and a level. The directive with the longest scope that is a
prefix of a line's module path decides; a directive without a scope matches every path; if none matches, the
line is not written. In addition to the Rust ztunnel's there are directives for one workload,
``[namespace/pod]scope=level``, which are checked first. They come only from ``/logging``. They are printed
with the others, so one text can transfer the whole filter to other processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

DEFAULT_FILTER = "hickory_server::server=off"


class Level(IntEnum):
    """The importance of a line, and the level of a filter."""

    OFF = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4
    TRACE = 5


_BY_NAME = {level.name.lower(): level for level in Level}


class FilterError(ValueError):
    """The text of a filter cannot be read. ``str()`` says which item."""


class Directive(NamedTuple):
    """Lines of this scope ("": all), of this workload ("": any), are written up to this level."""

    workload: str
    scope: str
    level: Level

    def __str__(self) -> str:
        where = f"[{self.workload}]{self.scope}" if self.workload else self.scope
        level = self.level.name.lower()
        return f"{where}={level}" if where else level


@dataclass(frozen=True, slots=True)
class Filter:
    """Directives, the most specific first. ``str()`` gives a text that parses to the same filter."""

    directives: tuple[Directive, ...]

    def level(self, path: str, workload: str = "") -> Level:
        """Returns the level up to which lines of a module path and workload are written."""
        for directive in self.directives:
            if path.startswith(directive.scope) and directive.workload in ("", workload):
                return directive.level
        return Level.OFF

    def extended(self, other: Filter) -> Filter:
        """Returns the filter with the other's directives on top."""
        return _filter((*self.directives, *other.directives))

    def for_workload(self, workload: str) -> Filter:
        """Returns these directives for one workload only."""
        return Filter(tuple(d._replace(workload=workload) for d in self.directives))

    def without_workload(self, workload: str) -> Filter:
        """Returns the filter without the directives of a workload."""
        return Filter(tuple(d for d in self.directives if d.workload != workload))

    @property
    def workloads(self) -> frozenset[str]:
        """The workloads that have directives of their own."""
        return frozenset(d.workload for d in self.directives if d.workload)

    def __str__(self) -> str:
        return ",".join(map(str, self.directives))


def parse_filter(text: str) -> Filter:
    """Read a comma list of ``level``, ``scope=level`` and ``scope`` (which means trace).

    Levels ignore case; a later item replaces an earlier one of the same scope. Raises FilterError.
    """
    return _filter(tuple(_directive(item.strip()) for item in text.split(",") if item.strip()))


def parse_startup_filter(text: str | None) -> Filter:
    """Read ``RUST_LOG`` (default ``info``), with the directives that are always added before it.

    Raises FilterError.
    """
    return parse_filter(f"{DEFAULT_FILTER},{'info' if text is None else text}")


def parse_admin_levels(text: str) -> Filter:
    """Read ``level=`` of ``POST /logging``: lower-case levels, ``scope=level`` or ``scope:level``.

    Raises FilterError, also for a bare scope.
    """
    directives = []
    for item in text.split(","):
        if item in _BY_NAME:
            directives.append(Directive("", "", _BY_NAME[item]))
            continue
        scope, separator, level = item.rpartition("=")
        if not separator:
            scope, separator, level = item.rpartition(":")
            if scope.endswith(":") or level not in _BY_NAME:
                raise FilterError(text)
        if not separator or not scope:
            raise FilterError(text)
        directives.append(_directive(f"{scope}={level}"))
    return _filter(tuple(directives))


def _directive(item: str) -> Directive:
    workload = ""
    rest = item
    if rest.startswith("["):
        workload, bracket, rest = rest[1:].partition("]")
        if not bracket or workload.count("/") != 1:
            raise FilterError(item)
    scope, equals, level_name = rest.rpartition("=")
    if not equals:
        scope, level_name = ("", rest) if rest.lower() in _BY_NAME else (rest, "trace")
    level = _BY_NAME.get(level_name.lower())
    if level is None or not all(c.isalnum() or c in "_:-." for c in scope):
        raise FilterError(item)
    return Directive(workload, scope, level)


def _filter(directives: tuple[Directive, ...]) -> Filter:
    unique = {(d.workload, d.scope): d for d in directives}.values()
    # the order in which the Rust ztunnel prints them: the longer first
    return Filter(tuple(sorted(unique, key=lambda d: (bool(d.workload), len(d.scope), d), reverse=True)))
