"""Runs make's targets one after another, all of them whatever fails, and sums up.

usage: python -m tests.everything [--coverage] TARGET...    --coverage: unit and e2e note lines and branches
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.needs import SUMMARY_VARIABLE, sum_up


@dataclass(frozen=True)
class Outcome:
    """How one target ended."""

    target: str
    status: int
    seconds: float


def run(targets: Sequence[str], summary: Path) -> list[Outcome]:
    """Run each target; pytest writes its skips to the summary file."""
    outcomes = []
    # The jobs of the make that called us are its own.
    environment = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MFLAGS"}}
    environment[SUMMARY_VARIABLE] = str(summary)
    for target in targets:
        sys.stdout.write(f"--- make {target}\n")
        sys.stdout.flush()
        begun = time.monotonic()
        status = subprocess.run(
            ["make", "--no-print-directory", target], env=environment, check=False
        ).returncode
        outcomes.append(Outcome(target, status, time.monotonic() - begun))
    return outcomes


def render(outcomes: Sequence[Outcome], reasons: Sequence[str]) -> str:
    """The last lines of a run."""
    text = "--- summary\n"
    for outcome in outcomes:
        state = "passed" if outcome.status == 0 else "FAILED"
        text += f"  {outcome.target:<10} {state}  {outcome.seconds:6.0f} s\n"
    return text + (sum_up(reasons) or "Nothing was skipped.\n")


def main(targets: Sequence[str]) -> int:
    """The exit status: 0 if all passed."""
    if targets[0] == "--coverage":
        os.environ["COVERAGE"] = "1"
        targets = ["coverage-begin", *targets[1:], "coverage-report"]
    with tempfile.NamedTemporaryFile(prefix="ztunnel-tests-") as file:
        outcomes = run(targets, Path(file.name))
        reasons = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
    sys.stdout.write(render(outcomes, reasons))
    return 1 if any(outcome.status for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
