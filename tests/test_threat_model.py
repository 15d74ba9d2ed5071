"""Each row of the threat model names tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"
_DEFINITION = re.compile(r"^(?:    )?(?:async )?def (test_\w+)", re.MULTILINE)


def rows() -> list[str]:
    """The rows of the page's tables, without their heads."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| it must not")]


def defined() -> set[str]:
    return {
        name
        for file in TESTS.rglob("test_*.py")
        for name in _DEFINITION.findall(file.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_row_has_tests_that_exist(row: str) -> None:
    threat, what_stops_it, tests = (cell.strip() for cell in row.strip("|").split("|"))
    assert threat
    assert what_stops_it
    named = re.findall(r"`(\w+)`", tests)
    assert named
    assert set(named) <= defined(), set(named) - defined()


def test_there_is_a_table_for_everybody_who_sends_us_something() -> None:
    assert len(rows()) > 25
    text = PAGE.read_text(encoding="utf-8")
    for who in ("pod on the node", "pod elsewhere", "peer ztunnel", "istiod", "CNI agent", "resolver"):
        assert who in text
