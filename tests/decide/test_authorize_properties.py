"""The engine against a second, deliberately naive evaluation, and what must hold for any policies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decide import naive_policy
from tests.support.fake_mesh import FakeMesh
from ztunnel.decide.authorize import authorize, explain_policy
from ztunnel.decide.plans import PolicyFacts
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.model.policy import (
    Action,
    Authorization,
    Match,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)

# Few values, so that they often meet.
names = st.sampled_from(["", "a", "b", "ab", "ba"])
addresses = st.sampled_from(
    [ip_address(text) for text in ("10.0.0.1", "10.0.1.2", "11.0.0.1", "fd00::1", "fd01::1")]
)
networks = st.sampled_from(
    [
        ip_network(text)
        for text in ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "::/0", "fd00::/64")
    ]
)
ports = st.sampled_from([80, 8080, 15088])
identities = st.builds(Identity, st.sampled_from(["td", "other"]), names, names)
principals = identities.map(lambda identity: identity.principal)


def string_matches(values: st.SearchStrategy[str]) -> st.SearchStrategy[StringMatch]:
    constrained = st.builds(
        StringMatch,
        st.sampled_from([StringMatchKind.EXACT, StringMatchKind.PREFIX, StringMatchKind.SUFFIX]),
        st.one_of(values, values.map(lambda text: text[:6]), values.map(lambda text: text[-4:])),
    )
    return st.one_of(constrained, st.just(StringMatch(StringMatchKind.PRESENCE)))


def few(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.one_of(st.just(()), st.lists(values, max_size=2).map(tuple))


matches = st.builds(
    Match,
    namespaces=few(string_matches(names)),
    not_namespaces=few(string_matches(names)),
    service_accounts=few(st.builds(ServiceAccountMatch, names, names)),
    not_service_accounts=few(st.builds(ServiceAccountMatch, names, names)),
    principals=few(string_matches(principals)),
    not_principals=few(string_matches(principals)),
    source_ips=few(networks),
    not_source_ips=few(networks),
    destination_ips=few(networks),
    not_destination_ips=few(networks),
    destination_ports=few(ports),
    not_destination_ports=few(ports),
)
# Most matches constrain one field, or they would hardly ever hold.
single_field_matches = st.builds(
    lambda match, field: Match(**{field: getattr(match, field)}), matches, st.sampled_from(Match.__slots__)
)
rules = few(few(st.one_of(matches, single_field_matches)))
policies = st.builds(
    Authorization,
    name=st.sampled_from(["p", "q", "r", "s"]),
    namespace=st.sampled_from(["default", "root"]),
    scope=st.sampled_from(Scope),
    action=st.sampled_from(Action),
    rules=few(rules),
    dry_run=st.booleans(),
)
all_facts = st.builds(
    PolicyFacts,
    source=st.builds(SocketAddress, addresses, ports),
    destination=st.builds(SocketAddress, addresses, ports),
    identity=st.one_of(st.none(), identities),
)
references = st.lists(
    st.sampled_from(["default/p", "default/q", "root/r", "root/s", "default/gone"]), max_size=3
).map(tuple)


def mesh_of(some: list[Authorization]) -> FakeMesh:
    mesh = FakeMesh()
    mesh.policies = {policy.key: policy for policy in some}
    return mesh


@settings(max_examples=100, deadline=None)
@given(st.lists(policies, max_size=5), references, all_facts)
def test_the_engine_agrees_with_the_naive_evaluation(some, referred, facts):
    mesh = mesh_of(some)
    server = mesh.add_workload("server", "10.0.0.1", authorization_policies=referred)
    assert authorize(mesh, server, facts).allowed is naive_policy.allows(mesh, server, facts)


@settings(max_examples=100, deadline=None)
@given(policies, all_facts)
def test_one_policy_matches_as_the_naive_evaluation_says(policy, facts):
    matched, clues = explain_policy(policy, facts)
    assert matched is naive_policy.policy_matches(policy, facts)
    assert all(clue.policy == policy.key and clue.text.endswith(".") for clue in clues)
    assert clues


@settings(max_examples=100, deadline=None)
@given(st.lists(policies, max_size=5), references, all_facts)
def test_dry_run_policies_never_change_the_answer(some, referred, facts):
    mesh = mesh_of(some)
    server = mesh.add_workload("server", "10.0.0.1", authorization_policies=referred)
    enforced = mesh_of([policy for policy in mesh.policies.values() if not policy.dry_run])
    assert authorize(mesh, server, facts).allowed is authorize(enforced, server, facts).allowed


@settings(max_examples=100, deadline=None)
@given(st.lists(policies, max_size=5), references, all_facts)
def test_a_verdict_is_complete(some, referred, facts):
    mesh = mesh_of(some)
    server = mesh.add_workload("server", "10.0.0.1", authorization_policies=referred)
    verdict = authorize(mesh, server, facts)
    assert (verdict.reason is None) is verdict.allowed
    assert verdict.log
    if not verdict.allowed:
        assert verdict.clues
    if verdict.policy is not None:
        policy = mesh.policies[verdict.policy]
        assert not policy.dry_run
        assert naive_policy.policy_matches(policy, facts)
        assert (policy.action is Action.ALLOW) is verdict.allowed
    assert set(verdict.missing) == set(referred) - set(mesh.policies)


@settings(max_examples=100, deadline=None)
@given(st.lists(policies, max_size=4), all_facts)
def test_one_more_enforced_deny_never_allows_more(some, facts):
    mesh = mesh_of(some)
    server = mesh.add_workload("server", "10.0.0.1")
    before = authorize(mesh, server, facts).allowed
    for policy in some:
        if policy.action is Action.DENY:
            mesh.policies["default/more"] = replace(
                policy, name="more", namespace="default", scope=Scope.GLOBAL, dry_run=False
            )
            assert authorize(mesh, server, facts).allowed <= before
