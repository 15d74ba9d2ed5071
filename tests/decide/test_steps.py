"""The chart of docs/routing.md is what the code does: its ways are those that decisions take."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.decide.scenarios import SCENARIOS
from tests.support.fake_mesh import ILLEGAL_PORTS
from ztunnel.decide.plans import OutboundPlan
from ztunnel.decide.route import route
from ztunnel.decide.steps import WAYS, Step, mermaid

DRAWN = {(way.source, way.target) for way in WAYS}
PAGE = Path(__file__).parents[2] / "docs" / "routing.md"


@pytest.fixture(scope="module")
def taken() -> dict[str, list[Step]]:
    """The steps that each scenario comes through."""
    paths = {}
    for scenario in SCENARIOS:
        mesh, request = scenario.mesh_and_request()
        paths[scenario.name] = list(route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS).steps)
    return paths


def test_decisions_take_only_ways_that_are_drawn(taken):
    for name, steps in taken.items():
        assert not set(pairwise(steps)) - DRAWN, name


def test_every_way_that_is_drawn_is_taken_by_some_scenario(taken):
    assert {way for steps in taken.values() for way in pairwise(steps)} == DRAWN


def test_decisions_begin_at_the_start_and_end_where_nothing_leads_on(taken):
    leads_on = {source for source, _ in DRAWN}
    for name, steps in taken.items():
        assert steps[0] is Step.START, name
        assert steps[-1] not in leads_on, name


def test_plans_end_at_a_destination_and_refusals_at_a_refusal():
    for scenario in SCENARIOS:
        mesh, request = scenario.mesh_and_request()
        outcome = route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS)
        prefix = "TO_" if isinstance(outcome, OutboundPlan) else "REFUSE_"
        assert outcome.steps[-1].name.startswith(prefix), scenario.name


def test_no_way_is_drawn_twice_and_every_box_is_reached():
    assert len(DRAWN) == len(WAYS)
    assert {target for _, target in DRAWN} | {Step.START} == set(Step)


def test_the_page_shows_the_chart_of_the_code():
    assert f"```mermaid\n{mermaid()}```\n" in PAGE.read_text(encoding="utf-8")


def test_questions_branch_and_everything_else_does_not():
    for step in Step:
        ways = [way for way in WAYS if way.source is step]
        if step.value.endswith("?"):
            assert len(ways) > 1, step
            assert all(way.label for way in ways), step
        else:
            assert len(ways) <= 1, step
