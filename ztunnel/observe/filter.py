"""Which log lines are wanted: the language of ``RUST_LOG`` and of ``POST /logging``, as a pure value.

A filter is a set of directives, each a scope and a level. The directive with the longest scope that is a
prefix of a line's module path decides; a directive without a scope fits every path; when none fits, the
line is off. Our addition are directives for one workload, ``[namespace/pod]scope=level``: those that fit
are asked first. They come only from ``/logging``, and are printed with the rest, so that one text carries
the whole filter to other processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

DEFAULT_FILTER = "hickory_server::server=off"


class Level(IntEnum):
    """How important a line is, and how much a filter lets through."""

    OFF = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4
    TRACE = 5


_BY_NAME = {level.name.lower(): level for level in Level}


class FilterError(ValueError):
    """A filter's text cannot be read. ``str()`` says which item."""


class Directive(NamedTuple):
    """Lines of this scope (empty: all), of this workload (empty: any), are let through up to this level."""

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
        """Up to which level lines of a module path are wanted, where they concern this workload."""
        for directive in self.directives:
            if path.startswith(directive.scope) and directive.workload in ("", workload):
                return directive.level
        return Level.OFF

    def extended(self, other: Filter) -> Filter:
        """Returns the filter with the other's directives on top."""
        return _filter((*self.directives, *other.directives))

    def for_workload(self, workload: str) -> Filter:
        """These directives, for one workload only."""
        return Filter(tuple(d._replace(workload=workload) for d in self.directives))

    def without_workload(self, workload: str) -> Filter:
        """Returns the filter as if the workload had never been named."""
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
    """``RUST_LOG`` (unset: ``info``) with what is always added in front. Raises FilterError."""
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
