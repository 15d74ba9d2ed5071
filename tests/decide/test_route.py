"""The outbound decision, row by row of its tables (docs/protocol/data-path.md#outbound-decision)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest

from tests.decide.scenarios import SCENARIOS, Goes, Refused, Scenario
from tests.support.fake_mesh import HBONE, ILLEGAL_PORTS, TCP, FakeMesh, at, by_hostname
from ztunnel.decide.plans import OutboundPlan, OutboundRequest, Refusal, RefusalKind
from ztunnel.decide.resolved import unresolved, with_ip
from ztunnel.decide.route import route
from ztunnel.model.service import IpFamilies
from ztunnel.model.workload import Protocol


def summary(plan: OutboundPlan) -> Goes:
    return Goes(
        plan.protocol,
        str(plan.next_hop),
        plan.authority,
        plan.expected,
        plan.inner_expected,
        None if plan.destination_workload is None else plan.destination_workload.name,
        None if plan.destination_service is None else str(plan.destination_service.key),
        plan.waypoint,
        None if plan.resolve is None else plan.resolve.hostname,
    )


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_row_of_the_tables(scenario: Scenario):
    mesh, request = scenario.mesh_and_request()
    outcome = route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS)
    if isinstance(outcome, Refusal):
        assert Refused(outcome.kind, outcome.text) == scenario.outcome
    else:
        assert summary(outcome) == scenario.outcome
        assert outcome.destination == request.destination
        assert outcome.source is request.source
    assert outcome.why
    assert all(re.fullmatch(r"[A-Z0-9\[f].*[.?]", sentence) for sentence in outcome.why)


def test_names_of_scenarios_are_unique():
    assert max(Counter(scenario.name for scenario in SCENARIOS).values()) == 1


def test_the_reasons_tell_the_story():
    mesh, request = next(
        scenario
        for scenario in SCENARIOS
        if scenario.name == "a service's waypoint: the authority stays the virtual address"
    ).mesh_and_request()
    assert route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS).why == (
        "10.96.0.1 is a virtual address of service default/web.default.svc.cluster.local.",
        "The service has the waypoint /10.0.0.9:15008.",
        "The waypoint is workload cluster//Pod/default/waypoint.",
    )


def test_a_service_of_all_addresses_takes_what_goes_to_pods_own_addresses():
    """As docs/routing.md says ("Which endpoint")."""
    mesh = FakeMesh()
    service = mesh.add_service("everything", "", cidrs="0.0.0.0/0")
    mesh.add_workload("endpoint", "10.0.1.1", HBONE, behind=service)
    mesh.add_workload("another", "10.0.1.2", HBONE)
    source = mesh.add_workload("client", "10.0.0.1", HBONE)
    request = OutboundRequest(source, at("10.0.0.1:4"), at("10.0.1.2:80"))
    plan = route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS)
    assert isinstance(plan, OutboundPlan)
    assert plan.destination_workload is not None
    assert plan.destination_workload.name == "endpoint"


# Endpoints that just failed


def ten_endpoints(mesh: FakeMesh) -> OutboundRequest:
    service = mesh.add_service("web", "10.96.0.1")
    for number in range(10):
        mesh.add_workload(f"pod-{number}", f"10.0.1.{number}", HBONE, behind=service)
    source = mesh.add_workload("client", "10.0.0.1", HBONE)
    return OutboundRequest(source, at("10.0.0.1:4"), at("10.96.0.1:80"))


def hops(mesh: FakeMesh, request: OutboundRequest, avoid: set[str]) -> set[str]:
    random = Random(7)
    plans = (route(mesh, request, random, illegal_ports=ILLEGAL_PORTS, avoid=avoid) for _ in range(300))
    return {str(plan.next_hop) for plan in plans if isinstance(plan, OutboundPlan)}


def test_what_is_to_be_avoided_is_passed_over_while_others_are_left():
    mesh = FakeMesh()
    request = ten_endpoints(mesh)
    everything = {f"10.0.1.{number}:15008" for number in range(10)}
    assert hops(mesh, request, set()) == everything
    by_uid = {"cluster//Pod/default/pod-3"}
    assert hops(mesh, request, by_uid) == everything - {"10.0.1.3:15008"}
    by_address = {"10.0.1.4:15008", "10.0.1.5:15008"}
    assert hops(mesh, request, by_address | by_uid) == everything - by_address - {"10.0.1.3:15008"}
    assert hops(mesh, request, everything) == everything


def test_an_address_outside_the_mesh_is_avoided_by_its_target_port():
    mesh = FakeMesh()
    service = mesh.add_service("web", "10.96.0.1")
    source = mesh.add_workload("client", "10.0.0.1", HBONE)
    for number in range(2):
        mesh.add_workload(f"pod-{number}", f"10.0.1.{number}", TCP, behind=service)
    request = OutboundRequest(source, at("10.0.0.1:4"), at("10.96.0.1:80"))
    assert hops(mesh, request, {"10.0.1.0:15008"}) == {"10.0.1.0:8080", "10.0.1.1:8080"}
    assert hops(mesh, request, {"10.0.1.0:8080"}) == {"10.0.1.1:8080"}


# Names that have to be resolved


def plan_for_hostname(protocol: Protocol = HBONE, **service_fields: Any) -> OutboundPlan:
    mesh = FakeMesh()
    service = mesh.add_service("web", "10.96.0.1", **service_fields)
    source = mesh.add_workload("client", "10.0.0.1", HBONE)
    mesh.add_workload("pod", "", protocol, hostname="db.example.com", behind=service)
    request = OutboundRequest(source, at("10.0.0.1:4"), at("10.96.0.1:80"))
    plan = route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS)
    assert isinstance(plan, OutboundPlan)
    return plan


@pytest.mark.parametrize(
    ("records", "families", "possible"),
    [
        (["1.1.1.1"], None, {"1.1.1.1"}),
        (["1.1.1.1", "2.2.2.2"], None, {"1.1.1.1", "2.2.2.2"}),
        (["fd00::1", "1.1.1.1"], None, {"1.1.1.1"}),
        (["fd00::1", "fd00::2"], None, {"fd00::1", "fd00::2"}),
        (["fd00::1", "1.1.1.1"], IpFamilies.DUAL, {"1.1.1.1"}),
        (["fd00::1", "1.1.1.1"], IpFamilies.IPV6, {"fd00::1"}),
        (["1.1.1.1"], IpFamilies.IPV6, {"1.1.1.1"}),
    ],
)
def test_a_resolved_address_is_of_the_wanted_family_if_there_is_one(records, families, possible):
    plan = plan_for_hostname(ip_families=families)
    random = Random(3)
    finished = [with_ip(plan, [ip_address(text) for text in records], random) for _ in range(50)]
    assert {str(one.next_hop.ip) for one in finished if isinstance(one, OutboundPlan)} == possible
    for one in finished:
        assert isinstance(one, OutboundPlan)
        assert one.resolve is None
        assert one.next_hop.port == 15008
        assert one.authority == str(one.next_hop._replace(port=8080))
        assert one.why[-1] == f"The name db.example.com resolves to {one.next_hop.ip}."


def test_a_waypoint_that_is_resolved_keeps_its_authority():
    mesh = FakeMesh()
    source = mesh.add_workload("client", "10.0.0.1", HBONE)
    mesh.add_workload("pod", "10.0.0.2", HBONE, waypoint=by_hostname("default", "wp.example.com"))
    mesh.add_workload("waypoint", "", HBONE, hostname="wp.example.com")
    request = OutboundRequest(source, at("10.0.0.1:4"), at("10.0.0.2:80"))
    plan = route(mesh, request, Random(1), illegal_ports=ILLEGAL_PORTS)
    assert isinstance(plan, OutboundPlan)
    finished = with_ip(plan, [ip_address("1.1.1.1")], Random(1))
    assert isinstance(finished, OutboundPlan)
    assert (str(finished.next_hop), finished.authority) == ("1.1.1.1:15008", "10.0.0.2:80")


def test_a_name_without_addresses_is_refused():
    refusal = with_ip(plan_for_hostname(), [], Random(1))
    assert isinstance(refusal, Refusal)
    assert refusal.kind is RefusalKind.NO_USABLE_ADDRESSES
    assert refusal.text == (
        "ip addresses were resolved for workload cluster//Pod/default/pod, "
        "but valid dns response had no A/AAAA records"
    )


def test_a_name_that_leads_back_to_us_is_refused():
    plan = plan_for_hostname(TCP, ports={80: 15006})
    refusal = with_ip(plan, [ip_address("127.0.0.1")], Random(1))
    assert isinstance(refusal, Refusal)
    assert refusal.kind is RefusalKind.LOOP
    assert isinstance(with_ip(plan, [ip_address("1.1.1.1")], Random(1)), OutboundPlan)


def test_a_failed_lookup_is_refused():
    refusal = unresolved(plan_for_hostname(), "timed out")
    assert refusal.kind is RefusalKind.NO_RESOLVED_ADDRESSES
    assert refusal.text == "no ip addresses were resolved for workload: cluster//Pod/default/pod"
    assert refusal.why[-1] == "The name db.example.com could not be resolved: timed out."


def test_a_plan_that_needs_no_address_is_finished():
    plan = replace(plan_for_hostname(), resolve=None)
    assert with_ip(plan, [], Random(1)) is plan
