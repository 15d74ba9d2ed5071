"""Each row of the threat model names tests, and they exist."""

from __future__ import annotations

import re

import pytest

from tests.support.named_tests import DOCS, cells, defined, rows

ROWS = rows("security.md", "it must not")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_row_has_tests_that_exist(row: str) -> None:
    threat, what_stops_it, tests = cells(row)
    assert threat
    assert what_stops_it
    named = re.findall(r"`(\w+)`", tests)
    assert named
    assert set(named) <= defined().keys(), set(named) - defined().keys()


def test_there_is_a_table_for_everybody_who_sends_us_something() -> None:
    assert len(ROWS) > 25
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    for who in ("pod on the node", "pod elsewhere", "peer ztunnel", "istiod", "CNI agent", "resolver"):
        assert who in text
