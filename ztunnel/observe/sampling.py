"""Sampling of the access log: of the lines that the level allows, all, a part, or none are written.

A rule has an outcome, a direction and a workload (each may be left out), and a share from 0 to 1. The most
specific rule that matches a connection decides; without one the line is written. With a share of 0.01 every
hundredth line is written, counted for each rule and not by chance. Failures are always written, unless a rule
names them: a rule for all outcomes does not affect them.
"""

from __future__ import annotations

from typing import NamedTuple

OUTCOMES = ("success", "failure")
DIRECTIONS = ("inbound", "outbound")


class SamplingError(ValueError):
    """A rule is invalid. ``str()`` says what would be valid."""


class Rule(NamedTuple):
    """The share of lines to write for connections with this outcome, direction and workload ("": any)."""

    outcome: str
    direction: str
    workload: str
    share: float

    def __str__(self) -> str:
        return f"{self.outcome}:{self.direction}:{self.workload}={self.share:g}"

    @property
    def place(self) -> tuple[str, str, str]:
        """The key of the rule; a later rule with the same key replaces it."""
        return self.outcome, self.direction, self.workload


class Sampling:
    """The rules in force. `takes` is called for each line, and counts.

    ``str()`` gives a text that `parse` reads, for other processes.
    """

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        # the most specific first
        self.rules = tuple(sorted(rules, key=lambda rule: [not part for part in reversed(rule.place)]))
        self._due: dict[Rule, float] = {}

    def __str__(self) -> str:
        return ",".join(map(str, self.rules))

    @classmethod
    def parse(cls, text: str) -> Sampling:
        """Read what ``str()`` gave. Raises SamplingError."""
        return cls(tuple(_rule(item) for item in text.split(",") if item))

    def with_rule(self, rule: Rule) -> Sampling:
        """Returns the rules with one more. A share of 1 without another matching rule changes nothing."""
        kept = [one for one in self.rules if one.place != rule.place]
        return Sampling((*kept, rule))

    def takes(self, outcome: str, direction: str, workload: str) -> bool:
        """Returns whether the line of this connection is to be written."""
        for rule in self.rules:
            if rule.outcome not in ("", outcome) or rule.direction not in ("", direction):
                continue
            if rule.workload not in ("", workload) or (not rule.outcome and outcome == "failure"):
                continue
            if not rule.share:
                return False
            due = self._due.get(rule, 1.0 - rule.share) + rule.share
            taken = due >= 1.0 - 1e-9
            self._due[rule] = due - 1.0 if taken else due
            return taken
        return True


def make_rule(share: str, outcome: str, direction: str, workload: str) -> Rule:
    """Returns a rule of texts. Raises SamplingError."""
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise SamplingError(f"{share!r} is no share; expected a number from 0 (none) to 1 (all)")
    if outcome not in ("", *OUTCOMES):
        raise SamplingError(f"outcome {outcome!r} is neither success nor failure")
    if direction not in ("", *DIRECTIONS):
        raise SamplingError(f"direction {direction!r} is neither inbound nor outbound")
    if workload and (workload.count("/") != 1 or not all(c.isalnum() or c in "-./" for c in workload)):
        raise SamplingError(f"workload {workload!r} is not namespace/pod")
    return Rule(outcome, direction, workload, number)


def _rule(text: str) -> Rule:
    place, _, share = text.rpartition("=")
    parts = place.split(":")
    if len(parts) != 3:
        raise SamplingError(f"{text!r} is not outcome:direction:workload=share")
    return make_rule(share, *parts)
