"""The queries of docs/observability.md, for the tests that ask them of a real Prometheus and a real Loki."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")


def page_queries(language: str) -> list[str]:
    """The queries of one of the page's two tables of questions."""
    part = PAGE.partition("## Ten questions")[2].partition(f"{language}, for")[2]
    table = part.partition("| question | query |")[2].partition("\n\n")[0]
    return [row.replace("\\|", "|") for row in re.findall(r"^\| .*\? \| `(.*)` \|$", table, re.MULTILINE)]


LOG_QUERIES = page_queries("LogQL")
