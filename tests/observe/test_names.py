"""Our metrics keep to Prometheus' conventions for names and units."""

from __future__ import annotations

import pytest

from ztunnel.observe.families import CATALOGUE, Family, MetricKind

OURS = [family for family in CATALOGUE if family.name.startswith("ztunnel_")]


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.name)
def test_our_families_are_named_by_the_conventions(family: Family):
    assert not family.name.endswith("_total")
    assert family.help.endswith((".", ";"))
    if family.unit:
        assert family.name.endswith(f"_{family.unit}")
    if family.kind is MetricKind.HISTOGRAM:
        assert family.unit == "seconds"
    assert len(set(family.labels)) == len(family.labels)
