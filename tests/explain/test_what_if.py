"""Policies as people write them, and what a change of them would do to connections."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.support.fake_mesh import HBONE, FakeMesh
from ztunnel.decide.authorize import authorize
from ztunnel.decide.plans import PolicyFacts
from ztunnel.explain.kubernetes import PolicyFileError, read_policies
from ztunnel.explain.policy_change import Change, DecidedConnection, PolicyChange
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.model.policy import Action, Scope
from ztunnel.model.workload import Workload

ALLOW_ONE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-one, namespace: default}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/one]}}]
    to: [{operation: {ports: ["8080"]}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
"""
STRICT = """
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}
"""


def mesh() -> tuple[FakeMesh, Workload]:
    made = FakeMesh()
    return made, made.add_workload("web", "10.0.0.2", HBONE, canonical_name="web")


def connection(
    pod: Workload, account: str | None = "one", port: int = 8080, *, open_now: bool = True
) -> DecidedConnection:
    identity = None if account is None else Identity("cluster.local", "default", account)
    facts = PolicyFacts(
        SocketAddress(ip_address("10.0.0.1"), 5), SocketAddress(ip_address("10.0.0.2"), port), identity
    )
    return DecidedConnection(f"{account}-{port}", pod, facts, open_now)


def effects(
    text: str, *connections: DecidedConnection, view: FakeMesh, without: tuple[str, ...] = ()
) -> list[Change]:
    change = PolicyChange(view, read_policies(text, "istio-system"), without, "istio-system")
    return list(change.effects(connections))


def test_a_new_policy_cuts_what_it_does_not_allow_and_names_the_clause():
    view, pod = mesh()
    found = effects(
        ALLOW_ONE,
        connection(pod),
        connection(pod, "two"),
        connection(pod, port=9090, open_now=False),
        view=view,
    )
    assert [(one.effect, one.connection) for one in found] == [("cut", "two-8080"), ("refused", "one-9090")]
    assert "principals is [cluster.local/ns/default/sa/one], but the peer is" in found[0].why
    assert "destination_ports is [8080], but the port is 9090" in found[1].why


def test_without_a_policy_others_are_allowed():
    view, pod = mesh()
    [allow, *_] = read_policies(ALLOW_ONE, "istio-system")
    assert allow.policy is not None
    view.policies[allow.policy.key] = allow.policy
    change = PolicyChange(view, [], ["default/allow-one"], "istio-system")
    [found] = change.effects([connection(pod), connection(pod, "two")])
    assert (found.effect, found.connection, found.why) == ("allowed", "two-8080", "no policy forbids it")
    assert change.notes == []
    assert PolicyChange(view, [], ["default/nothing"], "istio-system").notes == [
        "There is no policy default/nothing in this mesh, so nothing changes without it."
    ]


def test_a_replaced_policy_stands_in_the_place_of_the_old_one():
    view, pod = mesh()
    [allow, *_] = read_policies(ALLOW_ONE, "istio-system")
    assert allow.policy is not None
    view.policies[allow.policy.key] = allow.policy
    [found] = effects(ALLOW_ONE.replace("sa/one", "sa/*"), connection(pod), connection(pod, "two"), view=view)
    assert (found.effect, found.connection) == ("allowed", "two-8080")


@pytest.mark.parametrize("namespace", ["default", "istio-system"])
def test_strict_mtls_cuts_plaintext(namespace):
    view, pod = mesh()
    found = effects(STRICT.replace("default", namespace), connection(pod), connection(pod, None), view=view)
    assert [(one.effect, one.connection) for one in found] == [("cut", "None-8080")]


def test_permissive_takes_strict_back_for_its_workloads_alone():
    view, pod = mesh()
    strict_pod = view.add_workload(
        "web",
        "10.0.0.2",
        HBONE,
        canonical_name="web",
        authorization_policies=("istio-system/istio_converted_static_strict",),
    )
    change = PolicyChange(
        view,
        read_policies(STRICT.replace("STRICT", "PERMISSIVE"), "istio-system"),
        [],
        "istio-system",
    )
    assert change.applied(strict_pod).authorization_policies == ()
    elsewhere = view.add_workload("db", "10.0.0.3", HBONE, namespace="other")
    assert change.applied(elsewhere).authorization_policies == ()
    assert change.applied(pod) == pod


def test_a_port_may_be_exempt_from_strict():
    text = """
kind: PeerAuthentication
metadata: {name: ports, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls: {9090: {mode: PERMISSIVE}}
"""
    view, pod = mesh()
    found = effects(text, connection(pod, None), connection(pod, None, 9090), connection(pod), view=view)
    assert [one.connection for one in found] == ["None-8080"]
    strict_port = text.replace("STRICT", "UNSET").replace("PERMISSIVE", "STRICT")
    found = effects(strict_port, connection(pod, None), connection(pod, None, 9090), view=view)
    assert [one.connection for one in found] == ["None-9090"]


def test_a_selector_selects_by_what_is_known_of_labels():
    view, pod = mesh()
    text = ALLOW_ONE.replace("spec:", "spec:\n  selector: {matchLabels: {app: WHICH}}")
    assert effects(text.replace("WHICH", "db"), connection(pod, "two"), view=view) == []
    assert len(effects(text.replace("WHICH", "web"), connection(pod, "two"), view=view)) == 1
    change = PolicyChange(
        view, read_policies(text.replace("app: WHICH", "tier: front"), "istio-system"), [], "istio-system"
    )
    assert len(list(change.effects([connection(pod, "two")]))) == 1
    assert "selects by tier, which ztunnel does not know" in change.notes[0]


def test_scopes_and_actions():
    one, *_ = read_policies(ALLOW_ONE, "istio-system")
    assert one.policy is not None
    assert (one.policy.scope, one.policy.action, one.policy.key) == (
        Scope.NAMESPACE,
        Action.ALLOW,
        "default/allow-one",
    )
    root, *_ = read_policies(ALLOW_ONE, "default")
    assert root.policy is not None
    assert root.policy.scope is Scope.GLOBAL
    custom, *_ = read_policies(ALLOW_ONE.replace("spec:", "spec:\n  action: CUSTOM"), "istio-system")
    assert (custom.policy, "does not support the CUSTOM action" in custom.warnings[0]) == (None, True)
    target, *_ = read_policies(ALLOW_ONE.replace("spec:", "spec:\n  targetRefs: [{kind: Service}]"), "x")
    assert (target.policy, "a waypoint enforces it" in target.warnings[0]) == (None, True)
    dry, *_ = read_policies(
        ALLOW_ONE.replace(
            "namespace: default}", 'namespace: default, annotations: {istio.io/dry-run: "true"}}'
        ),
        "x",
    )
    assert dry.policy is not None
    assert dry.policy.dry_run


def test_layer_7_clauses_are_named_as_needing_a_waypoint():
    text = ALLOW_ONE.replace('ports: ["8080"]', 'methods: [GET], paths: ["/a"]')
    one, *_ = read_policies(text, "istio-system")
    assert one.policy is not None
    assert one.policy.rules == ()
    assert "methods, paths need a waypoint; in ztunnel rules with them match nothing" in one.warnings[0]
    deny, *_ = read_policies(text.replace("spec:", "spec:\n  action: DENY"), "istio-system")
    assert deny.policy is not None
    assert len(deny.policy.rules) == 1
    assert "they are left out of the rules" in deny.warnings[0]


def test_every_field_of_a_rule():
    text = """
kind: AuthorizationPolicyList
items:
- kind: AuthorizationPolicy
  metadata: {name: all, namespace: default}
  spec:
    action: DENY
    rules:
    - from:
      - source: {namespaces: ["a", "b*", "*c", "*"], notNamespaces: [d], ipBlocks: [10.0.0.0/8, "::1"]}
      - source: {serviceAccounts: ["x", "ns/y"], notPrincipals: ["z"], notIpBlocks: ["1.2.3.4"]}
      to: [{operation: {ports: [80, "443"], notPorts: ["81"]}}]
      when:
      - {key: source.principal, values: ["p"], notValues: ["q"]}
      - {key: destination.ip, values: ["10.0.0.2"]}
"""
    [one] = read_policies(text, "istio-system")
    assert one.policy is not None
    [(to, sources, principal, address)] = one.policy.rules
    assert to[0].destination_ports == (80, 443)
    assert [match.kind.value for match in sources[0].namespaces] == ["Exact", "Prefix", "Suffix", "Presence"]
    assert [str(account) for account in sources[1].service_accounts] == [
        "ServiceAccountMatch(namespace='default', service_account='x')",
        "ServiceAccountMatch(namespace='ns', service_account='y')",
    ]
    assert (principal[0].principals[0].value, principal[0].not_principals[0].value) == ("p", "q")
    assert str(address[0].destination_ips[0]) == "10.0.0.2/32"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is no YAML"),
        ("- 1", "expected an object with a kind"),
        (
            "{kind: AuthorizationPolicy, metadata: {name: a}, spec: {action: ALOW}}",
            "action 'ALOW' is none of",
        ),
        (
            "{kind: AuthorizationPolicy, spec: {rules: [{to: [{operation: {ports: [x]}}]}]}}",
            "invalid literal for int()",
        ),
        ("{kind: PeerAuthentication, spec: {mtls: {mode: STRIKT}}}", "mtls mode 'STRIKT'"),
        ("{kind: PeerAuthentication, spec: {mtls: {mod: STRICT}}}", "there is no field 'mod' beside mode"),
        ("{kind: PeerAuthentication, spec: {mtl: {}}}", "there is no field 'mtl'"),
        ("{kind: AuthorizationPolicy, spec: {rulse: []}}", "there is no field 'rulse'"),
        ("{kind: AuthorizationPolicy, spec: {selector: {labels: {a: b}}}}", "there is no field 'labels'"),
        (
            "{kind: AuthorizationPolicy, spec: {rules: [{frm: []}]}}",
            "there is no field 'frm' beside from, to",
        ),
        ("{kind: AuthorizationPolicy, spec: {rules: [{from: [{sorce: {}}]}]}}", "there is no field 'sorce'"),
        (
            "{kind: AuthorizationPolicy, spec: {rules: [{from: [{source: {principal: [a]}}]}]}}",
            "there is no field 'principal'",
        ),
        ("{kind: AuthorizationPolicy, spec: {rules: [{to: [{op: {}}]}]}}", "there is no field 'op'"),
        (
            "{kind: AuthorizationPolicy, spec: {rules: [{to: [{operation: {port: [1]}}]}]}}",
            "there is no field 'port'",
        ),
        (
            "{kind: AuthorizationPolicy, spec: {rules: [{when: [{key: source.ip, value: [a]}]}]}}",
            "there is no field 'value'",
        ),
    ],
)
def test_what_cannot_be_used_is_told(text, part):
    with pytest.raises(PolicyFileError) as refusal:
        read_policies(text, "istio-system", "policy.yaml")
    assert part in str(refusal.value)


def test_the_change_is_what_authorize_says_of_the_mesh_with_the_policy():
    """The overlay answers as a mesh that holds the policy would."""
    view, pod = mesh()
    [policy, *_] = read_policies(ALLOW_ONE, "istio-system")
    change = PolicyChange(view, [policy], [], "istio-system")
    assert policy.policy is not None
    real, _ = mesh()
    real.policies[policy.policy.key] = policy.policy
    for account in ("one", "two", None):
        for port in (8080, 9090):
            facts = connection(pod, account, port).facts
            assert authorize(change, change.applied(pod), facts) == authorize(real, pod, facts)
