"""What must hold of the outbound decision for any mesh, however odd (issue 5, point 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_mesh import HBONE, ILLEGAL_PORTS, TCP, FakeMesh, at, balancer, by_address, weighted
from tests.support.random_mesh import Builder, Case
from ztunnel.decide.plans import OutboundPlan, OutboundProtocol, OutboundRequest, Refusal, RefusalKind
from ztunnel.decide.resolved import with_ip
from ztunnel.decide.route import route
from ztunnel.decide.steps import WAYS, Step
from ztunnel.model.address import GatewayAddress, IPAddress, NamespacedHostname, NetworkAddress
from ztunnel.model.identity import Identity
from ztunnel.model.service import (
    LoadBalancerMode,
    Service,
    Visibility,
)

properties: list[Callable[[Case], None]] = []
"""What must hold of each case; each raises AssertionError where it does not."""


def naive_service_at(case: Case, network: str, ip: IPAddress) -> Service | None:
    """The best service with this address, from all candidates; None when there is none."""
    namespace = case.request.source.namespace
    visible = [
        service
        for service in case.mesh.services.values()
        if service.visibility is Visibility.PUBLIC or service.namespace == namespace
    ]
    exact = [service for service in visible if NetworkAddress(network, ip) in service.vips]
    mine = [service for service in exact if service.namespace == namespace]
    canonical = [service for service in exact if service.canonical]
    if exact:
        return (mine[:1] or canonical[-1:] or exact[:1])[0]
    ranges = [
        ((service.namespace == namespace, vip.cidr.prefixlen, service.canonical), service)
        for service in visible
        for vip in service.cidr_vips
        if vip.network == network and ip in vip.cidr
    ]
    return max(ranges, key=lambda pair: pair[0])[1] if ranges else None


def may_be_the_waypoint(case: Case, reference: GatewayAddress) -> bool:
    """Whether the client may be a workload behind the reference, by address and identity."""
    request = case.request
    return any(
        request.client.ip in workload.addresses
        and workload.identity == request.source.identity
        and (
            (
                isinstance(reference.destination, NetworkAddress)
                and reference.destination.ip in workload.addresses
            )
            or isinstance(reference.destination, NamespacedHostname)
            or workload.services
        )
        for workload in case.mesh.workloads.values()
    )


@properties.append
def plaintext_never_goes_where_the_destination_speaks_hbone(case: Case) -> None:
    outcome = case.route()
    if not isinstance(outcome, OutboundPlan) or outcome.protocol is not OutboundProtocol.TCP:
        return
    if outcome.destination_workload is not None:
        assert outcome.destination_workload.protocol is TCP
        assert outcome.destination_workload.network == case.request.source.network
    else:
        for network in (case.request.network, case.request.source.network):
            at_target = case.mesh.workload_by_address(network, outcome.next_hop.ip)
            assert at_target is None or at_target.protocol is TCP


@properties.append
def a_waypoint_that_applies_is_never_skipped(case: Case) -> None:
    outcome = case.route()
    if isinstance(outcome, Refusal):
        return
    request = case.request
    target = request.destination
    workload = case.mesh.workload_by_address(request.network, target.ip)
    service = None if workload else naive_service_at(case, request.network, target.ip)
    if service is not None:
        has_waypoint = service.waypoint is not None or any(one.weight for one in service.weighted_waypoints)
        assert outcome.waypoint is has_waypoint
        if has_waypoint:
            assert outcome.destination_service is service
    elif not outcome.waypoint:
        receives = outcome.destination_workload or workload
        if receives is not None and receives.waypoint is not None:
            assert may_be_the_waypoint(case, receives.waypoint)


@properties.append
def no_connection_comes_back_to_our_own_listeners(case: Case) -> None:
    outcome = case.route()
    if isinstance(outcome, OutboundPlan) and outcome.resolve is not None:
        answers = [ip_address("127.0.0.1"), ip_address("::1"), ip_address("0.0.0.0")]
        outcome = with_ip(outcome, answers, Random(case.seed))
    if isinstance(outcome, Refusal):
        return
    ip, port = outcome.next_hop
    if outcome.protocol is OutboundProtocol.TCP:
        ours = {case.request.client.ip, *case.request.source.addresses}
        if outcome.destination_workload is None or outcome.destination_workload.addresses:
            assert port not in ILLEGAL_PORTS or not (ip.is_loopback or ip in ours)
    # A tunnel to our own 15008 ends there, and admission refuses what it carries to one of our ports.
    if ip.is_loopback or ip.is_unspecified:
        assert port not in ILLEGAL_PORTS - {15008}


@properties.append
def a_tunnel_always_expects_an_identity_and_plain_tcp_none(case: Case) -> None:
    outcome = case.route()
    if isinstance(outcome, Refusal):
        return
    if outcome.protocol is OutboundProtocol.TCP:
        assert outcome.authority is None
        assert outcome.expected == outcome.inner_expected == ()
        assert not outcome.waypoint
        return
    assert outcome.authority
    assert outcome.destination_workload is not None
    assert str(outcome.destination_workload.identity) in outcome.expected
    assert len(set(outcome.expected)) == len(outcome.expected)
    for identity in (*outcome.expected, *outcome.inner_expected):
        assert str(Identity.parse(identity)) == identity
    if outcome.protocol is OutboundProtocol.DOUBLE_HBONE:
        assert outcome.destination_service is not None
        assert outcome.authority == f"{outcome.destination_service.hostname}:{outcome.destination.port}"
        # The workload's own identity is not enough across networks: only what the service vouches for.
        vouched = {name for service in case.mesh.services.values() for name in service.subject_alt_names}
        assert set(outcome.inner_expected) <= vouched
    else:
        assert outcome.inner_expected == ()


@properties.append
def a_decision_takes_only_drawn_ways_and_says_why(case: Case) -> None:
    outcome = case.route()
    assert set(pairwise(outcome.steps)) <= {(way.source, way.target) for way in WAYS}
    assert outcome.why
    assert outcome == case.route()


@properties.append
def avoiding_endpoints_never_refuses_what_would_go_otherwise(case: Case) -> None:
    plain = case.route()
    avoid = Builder(Random(case.seed)).some(list(case.mesh.workloads), 4)
    careful = route(case.mesh, case.request, Random(case.seed), illegal_ports=ILLEGAL_PORTS, avoid=avoid)
    if isinstance(careful, Refusal) and careful.kind is RefusalKind.NO_HEALTHY_UPSTREAM:
        assert isinstance(plain, Refusal)
        assert plain.kind is RefusalKind.NO_HEALTHY_UPSTREAM


@pytest.mark.parametrize("holds", properties, ids=lambda check: check.__name__)
@settings(max_examples=25, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_for_small_meshes(holds, random):
    holds(Builder(random).case())


def test_for_many_meshes():
    """The same, faster and without shrinking. The counts see to it that these meshes do lead somewhere."""
    reached: Counter[Step] = Counter()
    for seed in range(4000):
        case = Builder(Random(seed)).case()
        reached[case.route().steps[-1]] += 1
        for holds in properties:
            try:
                holds(case)
            except AssertionError as error:
                raise AssertionError(f"{holds.__name__} fails for seed {seed}: {case.request}") from error
    ends = {way.target for way in WAYS} - {way.source for way in WAYS}
    assert ends == {step for step in ends if reached[step] >= 5}, reached


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(any), st.integers(0, 2**32))
def test_weighted_waypoints_get_their_share(weights, seed):
    mesh = FakeMesh()
    source = mesh.add_workload("client", "10.0.0.1", HBONE)
    targets = []
    for index, weight in enumerate(weights):
        mesh.add_workload(f"waypoint-{index}", f"10.0.1.{index}", HBONE)
        targets.append((by_address(f"10.0.1.{index}"), weight))
    mesh.add_service(
        "web",
        "10.96.0.1",
        weighted_waypoints=weighted(*targets),
        load_balancer=balancer(LoadBalancerMode.STANDARD),
    )
    request = OutboundRequest(source, at("10.0.0.1:4"), at("10.96.0.1:80"))
    random = Random(seed)
    rounds = 1000
    counted: Counter[str] = Counter()
    for _ in range(rounds):
        plan = route(mesh, request, random, illegal_ports=ILLEGAL_PORTS)
        assert isinstance(plan, OutboundPlan)
        counted[str(plan.next_hop.ip)] += 1
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        # Five standard deviations: one failure in a million.
        assert abs(counted[f"10.0.1.{index}"] - rounds * share) <= 5 * (rounds * share * (1 - share)) ** 0.5
