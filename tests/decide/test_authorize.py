"""Each rule of docs/protocol/state-and-xds.md#policy-matching has a test of its own."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_network
from typing import Any

import pytest

from tests.support.fake_mesh import FakeMesh, at
from ztunnel.bounds import ExplainBounds
from ztunnel.decide.authorize import _FIELDS, NONE_ALLOWED, authorize, explain_policy
from ztunnel.decide.plans import PolicyFacts, Verdict
from ztunnel.model.identity import Identity
from ztunnel.model.policy import (
    Action,
    Authorization,
    Match,
    Rule,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.model.workload import Workload

ALLOW, DENY = Action.ALLOW, Action.DENY
ALICE = Identity("cluster.local", "alpha", "alice")


def exact(value: str) -> StringMatch:
    return StringMatch(StringMatchKind.EXACT, value)


def prefix(value: str) -> StringMatch:
    return StringMatch(StringMatchKind.PREFIX, value)


def suffix(value: str) -> StringMatch:
    return StringMatch(StringMatchKind.SUFFIX, value)


PRESENCE = StringMatch(StringMatchKind.PRESENCE)
EVERYTHING: Rule = ()
FROM_ALPHA: Rule = ((Match(namespaces=(exact("alpha"),)),),)
FROM_BETA: Rule = ((Match(namespaces=(exact("beta"),)),),)


def facts(
    identity: Identity | None = ALICE, source: str = "10.0.0.1:40000", destination: str = "10.0.0.2:8080"
) -> PolicyFacts:
    return PolicyFacts(at(source), at(destination), identity)


@pytest.fixture
def mesh() -> FakeMesh:
    return FakeMesh()


@pytest.fixture
def server(mesh: FakeMesh) -> Workload:
    return mesh.add_workload("server", "10.0.0.2")


def messages(verdict: Verdict) -> list[tuple[str, str | None]]:
    return list(verdict.log)


# 4.1 Which policies


def test_no_policy_at_all_allows_plaintext_too(mesh, server):
    verdict = authorize(mesh, server, facts(identity=None))
    assert verdict.allowed
    assert verdict.policy is None
    assert messages(verdict) == [("no allow policies, allow", None)]


def test_namespace_policies_apply_in_their_own_namespace_only(mesh, server):
    mesh.add_policy("elsewhere", DENY, EVERYTHING, namespace="other")
    assert authorize(mesh, server, facts()).allowed
    mesh.add_policy("here", DENY, EVERYTHING)
    assert not authorize(mesh, server, facts()).allowed


def test_global_policies_apply_whatever_their_namespace(mesh, server):
    mesh.add_policy("root", DENY, EVERYTHING, scope=Scope.GLOBAL, namespace="istio-system")
    assert authorize(mesh, server, facts()).policy == "istio-system/root"


def test_selector_policies_apply_only_where_referred_to(mesh, server):
    mesh.add_policy("selected", DENY, EVERYTHING, scope=Scope.WORKLOAD_SELECTOR)
    assert authorize(mesh, server, facts()).allowed
    referring = replace(server, authorization_policies=("default/selected",))
    assert not authorize(mesh, referring, facts()).allowed


@pytest.mark.parametrize("scope", list(Scope))
def test_a_reference_counts_whatever_the_scope(mesh, server, scope):
    mesh.add_policy("far", DENY, EVERYTHING, scope=scope, namespace="far")
    referring = replace(server, authorization_policies=("far/far",))
    assert not authorize(mesh, referring, facts()).allowed


def test_a_policy_that_applies_twice_is_evaluated_once(mesh, server):
    mesh.add_policy("twice", DENY, EVERYTHING, dry_run=True)
    referring = replace(server, authorization_policies=("default/twice", "default/twice"))
    assert authorize(mesh, referring, facts()).dry_run == ("default/twice",)


def test_an_unknown_reference_is_reported_and_skipped(mesh, server):
    referring = replace(server, authorization_policies=("default/gone", "default/missing"))
    verdict = authorize(mesh, referring, facts())
    assert verdict.allowed
    assert verdict.missing == ("default/gone", "default/missing")


def test_an_unknown_reference_is_reported_beside_a_denial(mesh, server):
    mesh.add_policy("no", DENY, EVERYTHING)
    referring = replace(server, authorization_policies=("default/gone",))
    verdict = authorize(mesh, referring, facts())
    assert (verdict.allowed, verdict.missing) == (False, ("default/gone",))


# 4.2 Decision, in this order


def test_an_enforced_deny_that_matches_denies(mesh, server):
    mesh.add_policy("no-alpha", DENY, FROM_ALPHA)
    mesh.add_policy("yes", ALLOW, EVERYTHING)
    verdict = authorize(mesh, server, facts())
    assert not verdict.allowed
    assert verdict.reason == "explicitly denied by: default/no-alpha"
    assert verdict.policy == "default/no-alpha"
    assert messages(verdict) == [("deny policy match", "default/no-alpha")]


def test_an_allow_that_matches_allows(mesh, server):
    mesh.add_policy("no-beta", DENY, FROM_BETA)
    mesh.add_policy("yes-alpha", ALLOW, FROM_ALPHA)
    verdict = authorize(mesh, server, facts())
    assert verdict.allowed
    assert verdict.reason is None
    assert verdict.policy == "default/yes-alpha"
    assert messages(verdict) == [("allow policy match", "default/yes-alpha")]


def test_no_allow_that_matches_denies(mesh, server):
    mesh.add_policy("yes-beta", ALLOW, FROM_BETA)
    verdict = authorize(mesh, server, facts())
    assert not verdict.allowed
    assert verdict.reason == NONE_ALLOWED == "allow policies exist, but none allowed"
    assert verdict.policy is None
    assert messages(verdict) == [("no allow policies matched", None)]


def test_deny_policies_alone_leave_the_rest_allowed(mesh, server):
    mesh.add_policy("no-beta", DENY, FROM_BETA)
    verdict = authorize(mesh, server, facts())
    assert verdict.allowed
    assert messages(verdict) == [("no allow policies, allow", None)]


@pytest.mark.parametrize(
    ("policies", "allowed", "log", "dry_run"),
    [
        pytest.param(
            [("trial", DENY, EVERYTHING, True)],
            True,
            [("dry-run: deny policy match", "default/trial"), ("no allow policies, allow", None)],
            ("default/trial",),
            id="dry-run DENY never denies",
        ),
        pytest.param(
            [("trial", DENY, EVERYTHING, True), ("no", DENY, EVERYTHING, False)],
            False,
            [("dry-run: deny policy match", "default/trial"), ("deny policy match", "default/no")],
            ("default/trial",),
            id="dry-run DENY is logged before the one that denies",
        ),
        pytest.param(
            [("no", DENY, EVERYTHING, False), ("trial", DENY, EVERYTHING, True)],
            False,
            [("dry-run: deny policy match", "default/trial"), ("deny policy match", "default/no")],
            ("default/trial",),
            id="whatever the order of the policies",
        ),
        pytest.param(
            [("trial", ALLOW, EVERYTHING, True)],
            True,
            [("dry-run: allow policy match", "default/trial"), ("no allow policies, allow", None)],
            ("default/trial",),
            id="dry-run ALLOW that matches",
        ),
        pytest.param(
            [("trial", ALLOW, FROM_BETA, True)],
            True,
            [("dry-run: no allow policies match", None), ("no allow policies, allow", None)],
            (),
            id="dry-run ALLOW that does not match never denies",
        ),
        pytest.param(
            [("trial", ALLOW, FROM_BETA, True), ("yes", ALLOW, FROM_ALPHA, False)],
            True,
            [("allow policy match", "default/yes")],
            (),
            id="no dry-run miss is logged beside an enforced ALLOW",
        ),
        pytest.param(
            [("trial", ALLOW, EVERYTHING, True), ("yes", ALLOW, FROM_BETA, False)],
            False,
            [("dry-run: allow policy match", "default/trial"), ("no allow policies matched", None)],
            ("default/trial",),
            id="dry-run ALLOW never allows",
        ),
    ],
)
def test_dry_run_policies_are_reported_and_change_nothing(mesh, server, policies, *, allowed, log, dry_run):
    for name, action, rule, is_dry_run in policies:
        mesh.add_policy(name, action, rule, dry_run=is_dry_run)
    verdict = authorize(mesh, server, facts())
    assert (verdict.allowed, messages(verdict), verdict.dry_run) == (allowed, log, dry_run)


# 4.3 Matching one policy

NEVER = Match(namespaces=(exact("nobody"),))
ALWAYS = Match(destination_ports=(8080,))


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        pytest.param((), False, id="no rules never match"),
        pytest.param(((),), True, id="a rule without clauses matches everything"),
        pytest.param((((),),), True, id="a clause without matches is true"),
        pytest.param((((Match(),),),), False, id="a match without fields is false"),
        pytest.param((((Match(), ALWAYS),),), True, id="a match without fields is skipped"),
        pytest.param((((Match(),), (ALWAYS,)),), False, id="a clause of only such matches is false"),
        pytest.param((((NEVER,),), ((ALWAYS,),)), True, id="rules: any"),
        pytest.param((((ALWAYS,), (NEVER,)),), False, id="clauses: all"),
        pytest.param((((NEVER, ALWAYS),),), True, id="matches: any"),
        pytest.param(
            (((Match(namespaces=(exact("alpha"),), destination_ports=(81,)),),),),
            False,
            id="fields of a match: all",
        ),
        pytest.param((((Match(destination_ports=(81, 8080)),),),), True, id="values of a field: any"),
        pytest.param(
            (((Match(not_destination_ports=(81, 8080)),),),), False, id="values of a not-field: none"
        ),
        pytest.param(
            (((Match(not_destination_ports=(81, 82)),),),), True, id="values of a not-field: none is"
        ),
    ],
)
def test_the_shape_of_a_policy(mesh, server, rules, matches):
    mesh.add_policy("shape", DENY, *rules)
    assert authorize(mesh, server, facts()).allowed is not matches
    assert explain_policy(mesh.policies["default/shape"], facts())[0] is matches


def test_allow_without_rules_denies_everything(mesh, server):
    mesh.add_policy("nothing", ALLOW)
    assert authorize(mesh, server, facts()).reason == NONE_ALLOWED


# 4.4 Fields


def holds(match: Match, what: PolicyFacts) -> bool:
    return explain_policy(Authorization("p", "n", Scope.GLOBAL, DENY, (((match,),),)), what)[0]


PRINCIPAL = "cluster.local/ns/alpha/sa/alice"


@pytest.mark.parametrize(
    ("field", "value", "with_identity", "in_plaintext"),
    [
        ("namespaces", exact("alpha"), True, False),
        ("namespaces", exact("Alpha"), False, False),
        ("namespaces", prefix("al"), True, False),
        ("namespaces", suffix("ha"), True, False),
        ("namespaces", prefix("ha"), False, False),
        ("namespaces", PRESENCE, True, False),
        ("not_namespaces", exact("alpha"), False, True),
        ("not_namespaces", prefix("al"), False, True),
        ("not_namespaces", suffix("ha"), False, True),
        ("not_namespaces", PRESENCE, False, True),
        ("service_accounts", ServiceAccountMatch("alpha", "alice"), True, False),
        ("service_accounts", ServiceAccountMatch("beta", "alice"), False, False),
        ("service_accounts", ServiceAccountMatch("alpha", "bob"), False, False),
        ("service_accounts", ServiceAccountMatch("", ""), False, False),
        ("not_service_accounts", ServiceAccountMatch("alpha", "alice"), False, True),
        ("not_service_accounts", ServiceAccountMatch("alpha", "bob"), True, True),
        ("principals", exact(PRINCIPAL), True, False),
        ("principals", exact(f"spiffe://{PRINCIPAL}"), False, False),
        ("principals", prefix("cluster.local/ns/alpha/"), True, False),
        ("principals", suffix("/sa/alice"), True, False),
        ("principals", prefix(""), True, False),
        ("principals", PRESENCE, True, False),
        ("not_principals", exact(PRINCIPAL), False, True),
        ("not_principals", exact("cluster.local/ns/alpha/sa/bob"), True, True),
        ("not_principals", PRESENCE, False, True),
        ("not_principals", prefix(""), False, True),
    ],
)
def test_fields_of_the_identity(field, value, with_identity, in_plaintext):
    match = Match(**{field: (value,)})
    assert holds(match, facts()) is with_identity
    assert holds(match, facts(identity=None)) is in_plaintext


def test_accounts_are_compared_in_whatever_trust_domain():
    match = Match(service_accounts=(ServiceAccountMatch("alpha", "alice"),))
    assert holds(match, facts(Identity("other.domain", "alpha", "alice")))


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize(
    ("network", "address", "contained"),
    [
        ("10.0.0.0/8", "10.9.9.9:1", True),
        ("10.1.2.3/8", "10.9.9.9:1", True),
        ("10.0.0.9/32", "10.0.0.9:1", True),
        ("10.0.0.9/32", "10.0.0.8:1", False),
        ("0.0.0.0/0", "10.0.0.1:1", True),
        ("0.0.0.0/0", "[fd00::1]:1", False),
        ("::/0", "10.0.0.1:1", False),
        ("fd00::/64", "[fd00::77]:1", True),
        ("fd00::/64", "[fd01::77]:1", False),
        ("10.0.0.0/8", "[::ffff:10.1.1.1]:1", True),
        ("::ffff:0:0/96", "[::ffff:10.1.1.1]:1", False),
    ],
)
def test_fields_of_addresses(side, network, address, contained):
    value: Any = (ip_network(network, strict=False),)
    what = facts(**{side: address})
    assert holds(Match(**{f"{side}_ips": value}), what) is contained
    assert holds(Match(**{f"not_{side}_ips": value}), what) is not contained


def test_mapped_addresses_are_unmapped_even_if_the_caller_did_not():
    raw = PolicyFacts(at("1.1.1.1:1"), at("2.2.2.2:2"), None)
    mapped = replace(raw, source=raw.source._replace(ip=ip_network("::ffff:10.1.1.1/128")[0]))
    assert holds(Match(source_ips=(ip_network("10.0.0.0/8"),)), mapped)


@pytest.mark.parametrize(("port", "equal"), [(8080, True), (80, False), (0, False)])
def test_fields_of_ports(port, equal):
    assert holds(Match(destination_ports=(port,)), facts()) is equal
    assert holds(Match(not_destination_ports=(port,)), facts()) is not equal


def test_strict_mtls_as_istiod_sends_it(mesh, server):
    mesh.add_policy(
        "istio_converted_static_strict",
        DENY,
        ((Match(not_principals=(PRESENCE,)),),),
        scope=Scope.WORKLOAD_SELECTOR,
        namespace="istio-system",
    )
    strict = replace(server, authorization_policies=("istio-system/istio_converted_static_strict",))
    assert authorize(mesh, strict, facts()).allowed
    assert not authorize(mesh, strict, facts(identity=None)).allowed


def test_strict_mtls_with_an_exempt_port(mesh, server):
    mesh.add_policy(
        "strict-but-9090",
        DENY,
        ((Match(not_principals=(PRESENCE,)),), (Match(not_destination_ports=(9090,)),)),
    )
    assert authorize(mesh, server, facts(identity=None, destination="10.0.0.2:9090")).allowed
    assert not authorize(mesh, server, facts(identity=None)).allowed


# Clues


def test_a_denial_names_policy_and_rule_and_fields(mesh, server):
    mesh.add_policy(
        "no", DENY, FROM_BETA, ((Match(namespaces=(exact("alpha"),), destination_ports=(8080,)),),)
    )
    (clue,) = authorize(mesh, server, facts()).clues
    assert (clue.policy, clue.rule, clue.field) == ("default/no", 1, "destination_ports,namespaces")
    assert clue.text == (
        "Rule 1 of default/no denies it: all of its clauses hold (destination_ports, namespaces)."
    )


def test_a_match_of_everything_says_so(mesh, server):
    mesh.add_policy("no", DENY, EVERYTHING)
    (clue,) = authorize(mesh, server, facts()).clues
    assert clue.text == "Rule 0 of default/no has no clauses: it denies everything."
    policy = mesh.add_policy("yes", ALLOW, ((),))
    (clue,) = explain_policy(policy, facts())[1]
    assert clue.text == "Rule 0 of default/yes allows it: all of its clauses hold."


def test_an_allowed_connection_names_policy_and_rule(mesh, server):
    mesh.add_policy("yes", ALLOW, FROM_BETA, FROM_ALPHA)
    (clue,) = authorize(mesh, server, facts()).clues
    assert (clue.policy, clue.rule, clue.text) == ("default/yes", 1, "Rule 1 of default/yes allows it.")


@pytest.mark.parametrize(
    ("match", "field", "text"),
    [
        (
            Match(namespaces=(exact("beta"), prefix("x"), suffix("y"), PRESENCE, exact("z"))),
            None,
            None,
        ),
        (
            Match(namespaces=(exact("beta"), prefix("x"), suffix("y"))),
            "namespaces",
            "namespaces is [beta, x*, *y], but the peer is cluster.local/ns/alpha/sa/alice.",
        ),
        (
            Match(not_principals=(PRESENCE,)),
            "not_principals",
            "not_principals is [*], but the peer is cluster.local/ns/alpha/sa/alice.",
        ),
        (
            Match(service_accounts=(ServiceAccountMatch("a", "b"),)),
            "service_accounts",
            "service_accounts is [a/b], but the peer is cluster.local/ns/alpha/sa/alice.",
        ),
        (
            Match(source_ips=(ip_network("10.9.0.0/16"),)),
            "source_ips",
            "source_ips is [10.9.0.0/16], but the source is 10.0.0.1.",
        ),
        (
            Match(destination_ips=(ip_network("10.9.0.0/16"),)),
            "destination_ips",
            "destination_ips is [10.9.0.0/16], but the destination is 10.0.0.2.",
        ),
        (
            Match(destination_ports=(1, 2, 3, 4, 5)),
            "destination_ports",
            "destination_ports is [1, 2, 3, 4, …], but the port is 8080.",
        ),
        (Match(), "match", "it has a match without any field, which never holds."),
    ],
)
def test_a_miss_names_rule_and_clause_and_field(mesh, server, match, field, text):
    mesh.add_policy("yes", ALLOW, ((ALWAYS,), (match,)))
    verdict = authorize(mesh, server, facts())
    if field is None:
        assert verdict.allowed
        return
    (clue,) = verdict.clues
    assert (clue.policy, clue.rule, clue.clause, clue.field) == ("default/yes", 0, 1, field)
    assert clue.text == f"Clause 1 of rule 0 of default/yes does not hold: {text}"


def test_a_miss_for_want_of_an_identity_says_so(mesh, server):
    mesh.add_policy("yes", ALLOW, FROM_ALPHA)
    (clue,) = authorize(mesh, server, facts(identity=None)).clues
    assert clue.text.endswith("namespaces is [alpha], but the peer has no identity (plaintext).")


def test_an_allow_without_rules_is_a_clue(mesh, server):
    mesh.add_policy("nothing", ALLOW)
    (clue,) = authorize(mesh, server, facts()).clues
    assert clue.text == "default/nothing has no rules: it matches nothing."


def test_clues_are_bounded_in_a_verdict_and_complete_when_explained(mesh, server):
    rules = tuple(((Match(destination_ports=(port,)),),) for port in range(1, 101))
    policy = mesh.add_policy("long", ALLOW, *rules)
    assert len(authorize(mesh, server, facts()).clues) == ExplainBounds().clues
    assert len(authorize(mesh, server, facts(), ExplainBounds(clues=3)).clues) == 3
    assert len(explain_policy(policy, facts())[1]) == 100


def test_every_field_of_a_match_is_compared():
    assert sorted(field for field, _, _ in _FIELDS) == sorted(field.name for field in fields(Match))
