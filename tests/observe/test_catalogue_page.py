"""docs/metrics.md is what the catalogue says, and our families keep to Prometheus' conventions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.observe.families import CATALOGUE, Family, Kind

ROOT = Path(__file__).parents[2]
OURS = [family for family in CATALOGUE if family.name.startswith("ztunnel_")]


def test_the_page_is_made_from_the_catalogue():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "metrics", "--check"], check=False, timeout=120)
    assert done.returncode == 0


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.name)
def test_our_families_are_named_by_the_conventions(family: Family):
    assert not family.name.endswith("_total")
    assert family.help.endswith((".", ";"))
    if family.unit:
        assert family.name.endswith(f"_{family.unit}")
    if family.kind is Kind.HISTOGRAM:
        assert family.unit == "seconds"
    assert len(set(family.labels)) == len(family.labels)
