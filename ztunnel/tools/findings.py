"""What a check of a node finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

import msgspec


class State(Enum):
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
    state: State
    text: str
    advice: str = ""


_MARKS = {State.OK: "ok", State.WARNING: "WARN", State.FAILURE: "FAIL", State.SKIPPED: "-"}


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, State.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """It works for now."""
    return Finding(check, State.WARNING, text, advice)


def failure(check: str, text: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, State.FAILURE, text, advice)


def skipped(check: str, text: str) -> Finding:
    """It does not apply."""
    return Finding(check, State.SKIPPED, text)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """The findings for a terminal: one line each, what to do below it, and the sum at the end."""
    count = dict.fromkeys(State, 0)
    for one in findings:
        count[one.state] += 1
        yield f"{_MARKS[one.state]:<4}  {one.check:<13} {one.text}"
        if one.advice:
            yield f"{'':<20}→ {one.advice}"
    yield ""
    yield (
        f"=> {count[State.FAILURE]} failures, {count[State.WARNING]} warnings, {count[State.OK]} are well, "
        f"{count[State.SKIPPED]} do not apply here."
    )


def exit_status(findings: Iterable[Finding]) -> int:
    """0 unless something fails."""
    return int(any(one.state is State.FAILURE for one in findings))
