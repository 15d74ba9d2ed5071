"""What a test needs and a machine may lack: a skip that names it, and in the end one summary.

A test that lacks a program of ``scripts/packages`` is skipped, however it came to notice; with ``CI=true`` it
fails instead. A test that calls a program through a shell says so beforehand with `needs_programs`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.scripts import load_script
from ztunnel.demo.network import RedirectionUnavailableError

SUMMARY_VARIABLE = "TEST_SUMMARY_FILE"
_REASON = re.compile(r"needs the program ([\w-]+)")


deps = load_script("deps")


def in_ci() -> bool:
    """Whether nothing may be skipped."""
    return os.environ.get("CI") == "true"


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if in_ci():
        pytest.fail(reason)
    pytest.skip(reason)


def missing(program: str) -> str:
    """Why a test is skipped that lacks a program of the list."""
    debian, fedora = deps.read_list()[program]
    return f"needs the program {program} (Debian: {debian}, Fedora: {fedora}; make deps)"


def needs_programs(*programs: str) -> pytest.MarkDecorator:
    """Skip the test where one of these programs of ``scripts/packages`` is not installed."""
    return pytest.mark.programs(*programs)


def check_programs(item: pytest.Item) -> None:
    """End a test that is marked with a program that is not there."""
    for mark in item.iter_markers("programs"):
        for program in mark.args:
            if not deps.is_there(program):
                unavailable(missing(program))


def lack_behind(error: BaseException) -> str | None:
    """What this machine lacks, where that is what raised the error."""
    known = deps.read_list()
    for one in _leaves(error):
        if isinstance(one, FileNotFoundError) and one.filename is not None:
            program = Path(os.fsdecode(one.filename)).name
            if program in known and not deps.is_there(program):
                return missing(program)
        if isinstance(one, RedirectionUnavailableError):
            absent = [name for name in ("iptables", "nft") if not deps.is_there(name)]
            return missing(absent[0]) if absent else f"needs a kernel with these rules: {one}"
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def turn_into_skip(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Make a skip of a failure whose cause is that this machine lacks something. Not in CI."""
    if call.excinfo is None or not report.failed or in_ci():
        return
    lack = lack_behind(call.excinfo.value)
    if lack is not None:
        path, line, _ = item.location
        report.outcome = "skipped"
        report.longrepr = (path, (line or 0) + 1, f"Skipped: {lack}")


def write_summary(reasons: Iterable[str]) -> None:
    """Add a pytest run's skips to the file that `tests.everything` sums up."""
    file = os.environ.get(SUMMARY_VARIABLE)
    if file:
        with Path(file).open("a") as stream:
            stream.writelines(json.dumps(reason) + "\n" for reason in reasons)


def sum_up(reasons: Iterable[str]) -> str:
    """What was skipped for lack of what, and the commands that install it; empty if nothing was."""
    counted = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    if not counted:
        return ""
    programs: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for reason, number in counted.items():
        match = _REASON.match(reason)
        if match:
            programs[match[1]] += number
        else:
            others[reason] += number
    text = f"{counted.total()} tests were skipped.\n"
    for program, number in programs.most_common():
        text += f"  {number:4} for lack of {program}\n"
    for reason, number in others.most_common():
        text += f"  {number:4} {reason}\n"
    if programs:
        text += "The programs are in these packages (make deps):\n" + deps.explain(list(programs)) + "\n"
    return text
