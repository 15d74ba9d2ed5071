"""What a check of a node finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

import msgspec


class Severity(Enum):
    """How grave a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not for long or not for all."""
    FAILURE = "failure"
    """Connections fail, or will when they are made."""
    SKIPPED = "skipped"
    """There was nothing to check here."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. ``advice`` says what to do, "" when there is nothing to be done."""

    check: str
    state: Severity
    text: str
    advice: str = ""


_MARKS = {Severity.OK: "ok", Severity.WARNING: "WARN", Severity.FAILURE: "FAIL", Severity.SKIPPED: "-"}


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, Severity.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """It works for now."""
    return Finding(check, Severity.WARNING, text, advice)


def failure(check: str, text: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Severity.FAILURE, text, advice)


def skipped(check: str, text: str) -> Finding:
    """It does not apply."""
    return Finding(check, Severity.SKIPPED, text)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Returns the findings for a terminal: one line each, what to do below it, and the sum at the end."""
    count = dict.fromkeys(Severity, 0)
    for one in findings:
        count[one.state] += 1
        yield f"{_MARKS[one.state]:<4}  {one.check:<13} {one.text}"
        if one.advice:
            yield f"{'':<20}→ {one.advice}"
    yield ""
    yield (
        f"=> {count[Severity.FAILURE]} failures, {count[Severity.WARNING]} warnings, "
        f"{count[Severity.OK]} are well, {count[Severity.SKIPPED]} do not apply here."
    )


def exit_status(findings: Iterable[Finding]) -> int:
    """0 unless something fails."""
    return int(any(one.state is Severity.FAILURE for one in findings))
