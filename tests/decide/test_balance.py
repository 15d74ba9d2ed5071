"""Which service, which endpoint, which port, which address (docs/protocol/state-and-xds.md#lookups)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_mesh import HBONE, FakeMesh, balancer, by_address
from ztunnel.decide.balance import (
    Selected,
    SelectionMode,
    best_service,
    choose_ip,
    find_address,
    select_endpoint,
    service_by_address,
    target_port,
)
from ztunnel.decide.plans import Resolve
from ztunnel.model.service import (
    Endpoint,
    HealthPolicy,
    IpFamilies,
    LoadBalancerMode,
    LoadBalancerScope,
    Service,
    Visibility,
)
from ztunnel.model.workload import (
    ApplicationTunnel,
    AppTunnelProtocol,
    HealthStatus,
    Locality,
    Workload,
)

REGION, ZONE, SUBZONE = LoadBalancerScope.REGION, LoadBalancerScope.ZONE, LoadBalancerScope.SUBZONE
NODE, CLUSTER, NETWORK = LoadBalancerScope.NODE, LoadBalancerScope.CLUSTER, LoadBalancerScope.NETWORK
STRICT, FAILOVER = LoadBalancerMode.STRICT, LoadBalancerMode.FAILOVER
STANDARD, PASSTHROUGH = LoadBalancerMode.STANDARD, LoadBalancerMode.PASSTHROUGH


def service(namespace: str, *, canonical: bool = False, hidden: bool = False) -> Service:
    visibility = Visibility.NAMESPACE if hidden else Visibility.PUBLIC
    return Service("web", namespace, "web.example.com", canonical=canonical, visibility=visibility)


# Best service


@pytest.mark.parametrize(
    ("candidates", "client", "preferred", "best"),
    [
        ([], "a", None, None),
        ([service("x")], "a", None, "x"),
        ([service("x"), service("y")], "a", None, "x"),
        ([service("x"), service("a")], "a", None, "a"),
        ([service("x", canonical=True), service("a")], "a", None, "a"),
        ([service("x"), service("y", canonical=True), service("z")], "a", None, "y"),
        ([service("x", canonical=True), service("y", canonical=True)], "a", None, "y"),
        ([service("x"), service("y"), service("p")], "a", "p", "p"),
        ([service("x"), service("p"), service("y", canonical=True)], "a", "p", "y"),
        ([service("x", hidden=True), service("y")], "a", None, "y"),
        ([service("x", hidden=True)], "a", None, None),
        ([service("a", hidden=True)], "a", None, "a"),
        ([service("x", hidden=True, canonical=True), service("y")], "a", None, "y"),
        ([service("x", hidden=True)], None, None, "x"),
    ],
)
def test_the_best_service(candidates, client, preferred, best):
    found = best_service(candidates, client, preferred)
    assert (found and found.namespace) == best


def test_ranges_are_ranked_by_namespace_then_length_then_canonical():
    mesh = FakeMesh()
    ip = ip_address("10.1.2.3")

    def found() -> str | None:
        best = service_by_address(mesh, "", ip, "mine")
        return best.name if best else None

    assert found() is None
    mesh.add_service("elsewhere", cidrs="10.0.0.0/8", network="far")
    assert found() is None
    mesh.add_service("wide", cidrs="10.0.0.0/8")
    mesh.add_service("wide2", cidrs="10.0.0.0/8")
    assert found() == "wide"
    mesh.add_service("canonical", cidrs="10.0.0.0/8", canonical=True)
    assert found() == "canonical"
    mesh.add_service("narrow", cidrs="10.1.0.0/16")
    assert found() == "narrow"
    mesh.add_service("hidden", cidrs="10.1.2.0/24", visibility=Visibility.NAMESPACE)
    assert found() == "narrow"
    mesh.add_service("mine", cidrs="0.0.0.0/0", namespace="mine")
    assert found() == "mine"
    mesh.add_service("exact-but-hidden", "10.1.2.3", visibility=Visibility.NAMESPACE)
    assert found() == "mine"
    mesh.add_service("exact", "10.1.2.3")
    assert found() == "exact"


def test_an_address_is_the_workload_before_the_service():
    mesh = FakeMesh()
    web = mesh.add_service("web", "10.0.0.2")
    ip = ip_address("10.0.0.2")
    assert find_address(mesh, "", ip, "default") is web
    pod = mesh.add_workload("pod", "10.0.0.2")
    assert find_address(mesh, "", ip, "default") is pod
    assert find_address(mesh, "far", ip, "default") is None


# Ports

TUNNEL = ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)
TUNNEL_WITHOUT_PORT = ApplicationTunnel(AppTunnelProtocol.NONE, None)


@pytest.mark.parametrize(
    ("service_ports", "own_ports", "tunnel", "port"),
    [
        ({80: 8080}, {}, None, 8080),
        ({80: 8080}, {80: 9090}, None, 9090),
        ({80: 8080}, {81: 9090}, None, 8080),
        ({80: 0}, {80: 9090}, None, 9090),
        ({80: 0}, {}, None, None),
        ({80: 0}, {80: 0}, None, None),
        ({}, {}, None, None),
        ({}, {}, TUNNEL, 80),
        ({}, {}, TUNNEL_WITHOUT_PORT, None),
        ({80: 8080}, {}, TUNNEL, 8080),
    ],
)
def test_the_target_port(service_ports, own_ports, tunnel, port):
    web = Service("web", "default", "web", ports=service_ports)
    workload = Workload("w", application_tunnel=tunnel)
    assert target_port(web, Endpoint("w", own_ports), workload, 80) == port


# Who is an endpoint at all


@pytest.mark.parametrize(
    ("fields", "standard", "waypoint"),
    [
        ({}, True, True),
        ({"addresses": ""}, False, False),
        ({"addresses": "", "hostname": "h"}, True, True),
        ({"addresses": "", "network": "far"}, False, False),
        ({"addresses": "", "network": "far", "network_gateway": by_address("1.1.1.1")}, True, True),
        ({"addresses": "", "network_gateway": by_address("1.1.1.1")}, False, False),
        ({"service_ports": {81: 81}}, False, False),
        ({"service_ports": {81: 81}, "application_tunnel": TUNNEL}, False, True),
        ({"service_ports": {80: 0}}, False, False),
        ({"service_ports": {80: 0}, "ports": {80: 9}}, True, True),
        ({"service_ports": {80: 0}, "application_tunnel": TUNNEL}, False, True),
        ({"service_ports": {81: 81}, "ports": {80: 9}}, False, False),
        ({"service_ports": {81: 81}, "application_tunnel": TUNNEL_WITHOUT_PORT}, False, False),
        ({"status": HealthStatus.UNHEALTHY}, False, False),
        ({"capacity": 0}, False, False),
    ],
)
def test_which_workloads_are_endpoints(fields, standard, waypoint):
    fields = dict(fields)
    mesh = FakeMesh()
    web = mesh.add_service("web", ports=fields.pop("service_ports", {80: 8080}))
    mesh.add_workload("pod", fields.pop("addresses", "10.0.0.2"), behind=web, **fields)
    client = mesh.add_workload("client", "10.0.0.1")

    def found(mode: SelectionMode) -> bool:
        return isinstance(select_endpoint(mesh, web, 80, client, mode, random=Random(1)), Selected)

    assert (found(SelectionMode.STANDARD), found(SelectionMode.WAYPOINT)) == (standard, waypoint)


def test_unhealthy_endpoints_serve_a_service_that_allows_them():
    mesh = FakeMesh()
    web = mesh.add_service("web", load_balancer=balancer(STANDARD, health_policy=HealthPolicy.ALLOW_ALL))
    mesh.add_workload("pod", "10.0.0.2", behind=web, status=HealthStatus.UNHEALTHY)
    client = mesh.add_workload("client", "10.0.0.1")
    assert isinstance(
        select_endpoint(mesh, web, 80, client, SelectionMode.STANDARD, random=Random(1)), Selected
    )


def test_an_endpoint_whose_workload_is_gone_is_skipped():
    mesh = FakeMesh()
    web = mesh.add_service("web")
    pod = mesh.add_workload("pod", "10.0.0.2", behind=web)
    client = mesh.add_workload("client", "10.0.0.1")
    del mesh.workloads[pod.uid]
    reason = select_endpoint(mesh, web, 80, client, SelectionMode.STANDARD, random=Random(1))
    assert reason == (
        "None of the 1 endpoints of service default/web.default.svc.cluster.local can serve its port 80."
    )


# Ranks


def chosen_by(
    load_balancer,
    client_fields: dict[str, Any],
    *endpoints: dict[str, Any],
    avoid: tuple[str, ...] = (),
    rounds: int = 200,
) -> set[int]:
    """Which of the endpoints (by their index) a client gets."""
    mesh = FakeMesh()
    web = mesh.add_service("web", load_balancer=load_balancer)
    for index, fields in enumerate(endpoints):
        mesh.add_workload(f"pod-{index}", f"10.0.0.{index + 2}", HBONE, uid=str(index), behind=web, **fields)
    client = mesh.add_workload("client", "10.0.0.1", **client_fields)
    random = Random(5)
    return {
        int(one.workload.uid)
        for _ in range(rounds)
        if isinstance(
            one := select_endpoint(mesh, web, 80, client, SelectionMode.STANDARD, random=random, avoid=avoid),
            Selected,
        )
    }


def place(region: str = "", zone: str = "", subzone: str = "", **fields: Any) -> dict[str, Any]:
    return {"locality": Locality(region, zone, subzone), **fields}


HERE = place("r", "z", "s", network="n", node="node", cluster_id="c")


@pytest.mark.parametrize(
    ("scope", "other"),
    [
        (REGION, place("x", "z", "s", network="n", node="node", cluster_id="c")),
        (ZONE, place("r", "x", "s", network="n", node="node", cluster_id="c")),
        (SUBZONE, place("r", "z", "x", network="n", node="node", cluster_id="c")),
        (NODE, place("r", "z", "s", network="n", node="x", cluster_id="c")),
        (CLUSTER, place("r", "z", "s", network="n", node="node", cluster_id="x")),
        (NETWORK, place("r", "z", "s", network="x", node="node", cluster_id="c")),
    ],
)
def test_each_scope_compares_one_property(scope, other):
    for mode in (STRICT, FAILOVER, PASSTHROUGH):
        assert chosen_by(balancer(mode, scope), HERE, other, HERE) == {1}
    assert chosen_by(balancer(STRICT, scope), HERE, other) == set()
    assert chosen_by(balancer(FAILOVER, scope), HERE, other) == {0}
    others = set(LoadBalancerScope) - {scope}
    assert chosen_by(balancer(STRICT, *others), HERE, other) == {0}


@pytest.mark.parametrize("load_balancer", [None, balancer(STANDARD, NETWORK, REGION)])
def test_without_a_mode_preferences_do_not_count(load_balancer):
    assert chosen_by(load_balancer, HERE, place("x", network="far"), HERE) == {0, 1}


# From best to worst for [network, region, zone]; each beats all that come after it.
RANKED = [
    place("r", "z", network="n"),
    place("r", "x", network="n"),
    place("x", "x", network="n"),
    place("r", "z", network="far"),
    place("r", "x", network="far"),
    place("x", "x", network="far"),
]


@pytest.mark.parametrize("best", range(len(RANKED)))
def test_network_as_first_preference_outweighs_all_others(best):
    load_balancer = balancer(FAILOVER, NETWORK, REGION, ZONE)
    left = list(reversed(RANKED[best:]))
    assert chosen_by(load_balancer, HERE, *left) == {len(left) - 1}


def test_strict_with_network_first_wants_a_full_match():
    load_balancer = balancer(STRICT, NETWORK, REGION, ZONE)
    assert chosen_by(load_balancer, HERE, *RANKED) == {0}
    assert chosen_by(load_balancer, HERE, *RANKED[1:]) == set()


def test_network_elsewhere_is_an_ordinary_scope():
    load_balancer = balancer(FAILOVER, REGION, NETWORK, ZONE)
    near, far = place("r", "x", network="n"), place("r", "z", network="far")
    assert chosen_by(load_balancer, HERE, far, near) == {1}
    stops_at_network = place("r", "z", network="far"), place("r", "y", network="far")
    assert chosen_by(load_balancer, HERE, *stops_at_network) == {0, 1}


def test_the_first_mismatch_ends_the_count():
    load_balancer = balancer(FAILOVER, REGION, ZONE, SUBZONE)
    assert chosen_by(load_balancer, HERE, place("x", "z", "s"), place("r", "x", "x")) == {1}
    assert chosen_by(load_balancer, HERE, place("x", "z", "s"), place("x", "y", "y")) == {0, 1}


def test_scopes_are_not_nested_and_empty_equals_empty():
    assert chosen_by(balancer(FAILOVER, ZONE), HERE, place("x", "z"), place("r", "x")) == {0}
    assert chosen_by(balancer(STRICT, NODE), place(), place("r"), place(node="x")) == {0}


def test_strict_without_preferences_drops_nobody():
    assert chosen_by(balancer(STRICT), HERE, place("x"), place("y")) == {0, 1}


# Endpoints to be avoided


def test_failover_goes_on_to_the_next_rank_and_strict_does_not():
    near, far = HERE, place("x")
    assert chosen_by(balancer(FAILOVER, REGION), HERE, near, far, avoid=("0",)) == {1}
    assert chosen_by(balancer(STRICT, REGION), HERE, near, far, avoid=("0",)) == {0}
    assert chosen_by(balancer(STRICT, REGION), HERE, near, near, far, avoid=("0",)) == {1}


def test_an_endpoint_without_capacity_is_no_alternative():
    assert chosen_by(None, HERE, HERE, {**HERE, "capacity": 0}, avoid=("0",)) == {0}


# Weights


def expected_within(counted: Counter[str], weights: dict[str, int], rounds: int) -> None:
    """Each share is within five standard deviations: one failure in a million, and the seed is fixed."""
    total = sum(weights.values())
    for uid, weight in weights.items():
        share = weight / total
        deviation = (rounds * share * (1 - share)) ** 0.5
        assert abs(counted[uid] - rounds * share) <= 5 * deviation, (uid, counted, weights)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=6).filter(any), st.integers(0, 2**32))
def test_endpoints_get_their_share_by_capacity(capacities, seed):
    mesh = FakeMesh()
    web = mesh.add_service("web")
    client = mesh.add_workload("client", "10.0.0.1")
    for index, capacity in enumerate(capacities):
        mesh.add_workload(f"pod-{index}", f"10.0.1.{index}", uid=str(index), behind=web, capacity=capacity)
    random = Random(seed)
    rounds = 1500
    counted: Counter[str] = Counter()
    for _ in range(rounds):
        one = select_endpoint(mesh, web, 80, client, SelectionMode.STANDARD, random=random)
        assert isinstance(one, Selected)
        counted[one.workload.uid] += 1
    weights = {str(index): capacity for index, capacity in enumerate(capacities)}
    expected_within(counted, weights, rounds)
    assert all(counted[uid] == 0 for uid, weight in weights.items() if weight == 0)


# Addresses


@pytest.mark.parametrize(
    ("addresses", "families", "target", "chosen"),
    [
        ("10.0.0.1", None, "10.96.0.1", "10.0.0.1"),
        ("10.0.0.1 10.0.0.2", None, "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1 fd00::1", None, "fd96::1", "fd00::1"),
        ("fd00::1 10.0.0.1 10.0.0.2", None, "10.96.0.1", "10.0.0.1"),
        ("10.0.0.1", None, "fd96::1", "10.0.0.1"),
        ("10.0.0.1 fd00::1", IpFamilies.IPV4, "fd96::1", "10.0.0.1"),
        ("10.0.0.1 fd00::1", IpFamilies.IPV6, "10.96.0.1", "fd00::1"),
        ("10.0.0.1 fd00::1", IpFamilies.DUAL, "10.96.0.1", "10.0.0.1"),
        ("10.0.0.1", IpFamilies.IPV6, "10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", IpFamilies.IPV6, "10.96.0.1", None),
        ("", None, "10.96.0.1", None),
    ],
)
def test_the_address_of_a_workload(addresses, families, target, chosen):
    mesh = FakeMesh()
    workload = mesh.add_workload("w", addresses)
    found = choose_ip(workload, families, ip_address(target))
    assert found == (ip_address(chosen) if chosen else None)
    named = replace(workload, hostname="h.example.com")
    if chosen is None:
        assert choose_ip(named, families, ip_address(target)) == Resolve(
            "h.example.com", workload.uid, 4, families
        )
    else:
        assert choose_ip(named, families, ip_address(target)) == ip_address(chosen)
