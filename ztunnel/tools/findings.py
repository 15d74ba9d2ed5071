"""The results of the checks of a node, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

import msgspec


class Severity(Enum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not for long or not for everything."""
    FAILURE = "failure"
    """Connections fail, or will fail."""
    SKIPPED = "skipped"
    """The check does not apply here."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result. ``advice``: what to do, "" if there is nothing to do."""

    check: str
    state: Severity
    text: str
    advice: str = ""


_MARKS = {Severity.OK: "ok", Severity.WARNING: "WARN", Severity.FAILURE: "FAIL", Severity.SKIPPED: "-"}


def ok(check: str, text: str) -> Finding:
    """Returns a finding without a problem."""
    return Finding(check, Severity.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """Returns a warning."""
    return Finding(check, Severity.WARNING, text, advice)


def failure(check: str, text: str, advice: str) -> Finding:
    """Returns a failure."""
    return Finding(check, Severity.FAILURE, text, advice)


def skipped(check: str, text: str) -> Finding:
    """Returns a finding of a check that does not apply."""
    return Finding(check, Severity.SKIPPED, text)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Returns the findings for a terminal: one line each, the advice below it, and a summary at the end."""
    count = dict.fromkeys(Severity, 0)
    for one in findings:
        count[one.state] += 1
        yield f"{_MARKS[one.state]:<4}  {one.check:<13} {one.text}"
        if one.advice:
            yield f"{'':<20}→ {one.advice}"
    yield ""
    yield (
        f"=> failures: {count[Severity.FAILURE]}, warnings: {count[Severity.WARNING]}, "
        f"well: {count[Severity.OK]}, not applicable here: {count[Severity.SKIPPED]}."
    )


def exit_status(findings: Iterable[Finding]) -> int:
    """Returns 0 unless there is a failure."""
    return int(any(one.state is Severity.FAILURE for one in findings))
