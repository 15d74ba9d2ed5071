"""Every refusal has a row that says what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.decide.plans import RefusalKind

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("kind", list(RefusalKind))
def test_every_refusal_is_explained(kind):
    pages = [path.read_text(encoding="utf-8") for path in DOCS.glob("errors*/*.md")]
    if not pages:
        pages = [(DOCS / "errors.md").read_text(encoding="utf-8")]
    rows = [line for page in pages for line in page.splitlines() if line.startswith(f"| {kind.value} |")]
    assert len(rows) == 1
    assert rows[0].count(" | ") == 3
