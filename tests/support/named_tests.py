"""Tests that pages of the documentation name."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
DOCS = TESTS.parent / "docs"
_DEFINITION = re.compile(r"^(?:    )?(?:async )?def (test_\w+)", re.MULTILINE)


def defined() -> dict[str, str]:
    """Returns all tests by name, with the text of the file that each is in."""
    found: dict[str, str] = {}
    for file in TESTS.rglob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        found |= dict.fromkeys(_DEFINITION.findall(text), text)
    return found


def rows(page: str, head: str) -> list[str]:
    """Returns the rows of a page's tables, without their heads, which begin with ``head``."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith(f"| {head}")]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]
