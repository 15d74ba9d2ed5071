"""Each wait in docs/waits.md names tests, and they exist; so do the bounds that it names."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from tests.support.named_tests import cells, defined, rows
from ztunnel.bounds import DEFAULTS

ROWS = rows("waits.md", "wait |")
ELSEWHERE = {"WORKLOAD_WAIT"}
"""Bounds of the configuration."""


def bounds() -> set[str]:
    return {bound.name for part in fields(DEFAULTS) for bound in fields(getattr(DEFAULTS, part.name))}


def test_the_page_has_its_table() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(cells(row)[:2]))
def test_a_wait_has_tests_that_exist(row: str) -> None:
    wait, where, ended, bounded, tests = cells(row)
    assert wait
    assert where
    assert ended
    assert set(re.findall(r"`(\w+)`", bounded + ended)) <= bounds() | ELSEWHERE
    named = re.findall(r"`(\w+)(?:\[([^]]+)\])?`", tests)
    assert named
    known = defined()
    for name, case in named:
        assert name in known
        assert f'"{case}"' in known[name] or not case, f"{name} has no case {case}"
