"""The local file: what it may say, what is refused and where, and how changes of it come into force."""

from __future__ import annotations

import itertools
import json
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mesh_messages import address, delta
from ztunnel.messages import Origin, ResourceKind
from ztunnel.model.address import GatewayAddress, NamespacedHostname, NetworkAddress
from ztunnel.model.policy import Action, Match, Scope, ServiceAccountMatch, StringMatch, StringMatchKind
from ztunnel.model.service import HealthPolicy, IpFamilies, LoadBalancerMode, Visibility
from ztunnel.model.workload import AppTunnelProtocol, HealthStatus, Locality, NetworkMode, Protocol
from ztunnel.pb.istio import workload as pb
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.state.store import MeshStore
from ztunnel.xds.local_file import LocalConfig, deltas, parse, static_config

EXAMPLE = """
workloads:
- {uid: cluster1//v1/Pod/default/local, name: local, namespace: default, serviceAccount: default,
   workloadIps: ["127.0.0.1"], protocol: HBONE, node: local, network: "",
   services: {"default/example.com": {80: 8080}}}
policies:
- {name: p, namespace: default, scope: Namespace, action: Deny, dryRun: false,
   rules: [[[{destinationPorts: [9999], namespaces: [!Exact foo]}]]]}
services:
- {name: local, namespace: default, hostname: example.com, vips: [/127.10.0.1], ports: {80: 8080},
   canonical: true}
"""

FULL = """
workloads:
- uid: u
  name: n
  namespace: ns
  workloadIps: [10.0.0.1, "fd00::1"]
  trustDomain: td
  serviceAccount: sa
  network: net
  hostname: h
  node: node
  clusterId: c
  workloadName: wn
  workloadType: statefulset
  canonicalName: cn
  canonicalRevision: cr
  protocol: HBONE
  networkMode: HostNetwork
  status: Unhealthy
  capacity: 0
  nativeTunnel: true
  authorizationPolicies: [ns/b, ns/a]
  waypoint: {destination: ns/w.example, hboneMtlsPort: 15008}
  networkGateway: {destination: "net2/fd00::2", hboneMtlsPort: 15009}
  applicationTunnel: {protocol: PROXY, port: 15088}
  locality: {region: r, zone: z, subzone: s}
  services: {}
services:
- name: s
  namespace: ns
  hostname: s.example
  vips: [net/10.1.0.1]
  ports: {"80": 0}
  cidrVips: [{network: net, cidr: 11.0.0.1/8}, {network: net, cidr: 10.9.0.1/32}]
  endpoints: {key: {workloadUid: other, port: {80: 81}, status: Unhealthy}}
  subjectAltNames: [spiffe://a]
  waypoint: {destination: net/10.0.0.9, hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: ns/w, hboneMtlsPort: 1}, weight: 10}]
  loadBalancer: {routingPreferences: [Zone, Network], mode: Passthrough, healthPolicy: AllowAll}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
policies:
- name: p
  namespace: ns
  scope: WorkloadSelector
  action: Allow
  dryRun: true
  rules:
  - - - namespaces: [!Exact a, !Prefix b, !Suffix c, !Presence []]
        notNamespaces: [{Exact: a}, {Presence: []}]
        principals: [!Presence ]
        notPrincipals: [!Prefix x]
        serviceAccounts: [{namespace: ns, serviceAccount: sa}]
        notServiceAccounts: [{namespace: ns, serviceAccount: sb}]
        sourceIps: [10.1.2.3/8]
        notSourceIps: ["fd00::/64"]
        destinationIps: [0.0.0.0/0]
        notDestinationIps: [1.2.3.4/32]
        destinationPorts: [80]
        notDestinationPorts: [443]
        somethingNew: 1
    - - {}
  - []
"""


def load(config: LocalConfig, node: str | None = None) -> MeshStore:
    store = MeshStore(node)
    apply(store, config, None)
    return store


def apply(store: MeshStore, config: LocalConfig, previous: LocalConfig | None) -> int:
    changes = deltas(config, previous, itertools.count(1))
    for change in changes:
        assert change.origin is Origin.LOCAL
        assert store.apply(change).rejected == []
    return len(changes)


def test_the_example_of_the_reference_works():
    config = parse(EXAMPLE)
    store = load(config, "local")
    workload = store.workload_by_address("", ip_address("127.0.0.1"))
    assert workload is not None
    assert workload.protocol is Protocol.HBONE
    assert str(workload.identity) == "spiffe:///ns/default/sa/default"
    assert store.local_workload("local", "default", "default") == workload
    (service,) = store.services_by_vip("", ip_address("127.10.0.1"))
    endpoint = store.endpoints(service)[workload.uid]
    assert dict(endpoint.ports) == {80: 8080}
    assert list(store.services_of(workload)) == [service]
    (policy,) = store.namespace_policies("default")
    assert policy.action is Action.DENY


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "workloads: []", "workloads:\n", "---\n...\n"])
def test_an_empty_file_is_valid(text: str):
    assert parse(text) == LocalConfig()
    assert deltas(parse(text), None, itertools.count()) == []


def test_every_field_comes_through_the_bytes_as_it_was_written():
    config = parse(FULL)
    store = load(config)
    ((workload, _),) = config.workloads
    assert store.workload("u") == workload
    assert workload.addresses == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert workload.workload_type == "statefulset"
    assert workload.network_mode is NetworkMode.HOST_NETWORK
    assert workload.status is HealthStatus.UNHEALTHY
    assert workload.capacity == 0
    assert workload.locality == Locality("r", "z", "s")
    assert workload.waypoint == GatewayAddress(NamespacedHostname("ns", "w.example"), 15008)
    assert workload.network_gateway == GatewayAddress(NetworkAddress("net2", ip_address("fd00::2")), 15009)
    assert workload.application_tunnel is not None
    assert workload.application_tunnel.protocol is AppTunnelProtocol.PROXY
    ((service, endpoints),) = config.services
    assert store.service("ns", "s.example") == service
    assert [str(vip.cidr) for vip in service.cidr_vips] == ["11.0.0.1/8", "10.9.0.1/32"]
    assert service.ports == {80: 0}
    assert service.ip_families is IpFamilies.DUAL
    assert service.visibility is Visibility.NAMESPACE
    assert service.load_balancer is not None
    assert service.load_balancer.mode is LoadBalancerMode.PASSTHROUGH
    assert service.load_balancer.health_policy is HealthPolicy.ALLOW_ALL
    assert dict(store.endpoints(service)) == endpoints
    assert endpoints["key"].workload_uid == "other"
    (policy,) = config.policies
    assert store.policy("ns/p") == policy
    assert policy.scope is Scope.WORKLOAD_SELECTOR
    assert policy.dry_run
    match = policy.rules[0][0][0]
    assert [kind.kind for kind in match.namespaces] == list(StringMatchKind)
    assert match.not_namespaces == (
        StringMatch(StringMatchKind.EXACT, "a"),
        StringMatch(StringMatchKind.PRESENCE),
    )
    assert match.principals == (StringMatch(StringMatchKind.PRESENCE),)
    assert match.service_accounts == (ServiceAccountMatch("ns", "sa"),)
    assert [str(network) for network in match.source_ips] == ["10.1.2.3/8"]
    assert match.not_destination_ports == (443,)
    assert policy.rules[0][1] == (Match(),)
    assert policy.rules[1] == ()


def test_defaults_of_the_file_differ_from_those_of_xds():
    config = parse("workloads: [{workloadIps: [], namespace: ns, services: {}}]")
    store = load(config)
    workload = store.workload("")
    assert workload is not None
    empty = (workload.trust_domain, workload.service_account, workload.cluster_id, workload.workload_type)
    assert empty == ("", "", "", "")
    assert workload.protocol is Protocol.TCP
    assert workload.capacity == 1


WORKLOAD = "workloadIps: [10.0.0.1], namespace: ns, services: {}"
SERVICE = "name: s, namespace: ns, hostname: h, vips: [], ports: {}"
POLICY = "name: p, namespace: ns, scope: Global, action: Allow, rules: [], dryRun: false"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("workloads: [{}]", "workloads[0]: missing field `workloadIps`"),
        (f"workloads: [{{{WORKLOAD}}}, {{workloadIps: []}}]", "workloads[1]: missing field `namespace`"),
        ("workloads: [{workloadIps: [], namespace: a}]", "workloads[0]: missing field `services`"),
        ("services: [{}]", "services[0]: missing field `name`"),
        ("policies: [{name: p, namespace: ns}]", "policies[0]: missing field `scope`"),
        (f"policies: [{{{POLICY.removesuffix(', dryRun: false')}}}]", "policies[0]: missing field `dryRun`"),
        ("other: 1", "unknown field `other`, expected one of `workloads`, `policies`, `services`"),
        (
            f"services: [{{{SERVICE}, x: 1}}]",
            "services[0]: unknown field `x`, expected one of `name`, `namesp",
        ),
        (
            f"policies: [{{{POLICY}, x: 1}}]",
            "policies[0]: unknown field `x`, expected one of `name`, `namesp",
        ),
        (
            f"workloads: [{{{WORKLOAD}, waypoint: {{x: 1}}}}]",
            "workloads[0].waypoint: unknown field `x`, expected `destination` or `hboneMtlsPort`",
        ),
        (
            f"services: [{{{SERVICE}, loadBalancer: {{mode: Strict}}}}]",
            "services[0].loadBalancer: missing field `routingPreferences`",
        ),
        (
            f"services: [{{{SERVICE}, endpoints: {{a: {{x: 1}}}}}}]",
            "services[0].endpoints.a: unknown field `x`, expected one of `workloadUid`, `port`, `status`",
        ),
        ("workloads: 3", "workloads: invalid type: integer `3`, expected a sequence"),
        ("- a", "invalid type: sequence, expected a mapping"),
        (
            f"workloads: [{{{WORKLOAD}, protocol: hbone}}]",
            "workloads[0].protocol: unknown variant `hbone`, expected `TCP` or `HBONE`",
        ),
        (
            f"workloads: [{{{WORKLOAD}, capacity: -1}}]",
            "workloads[0].capacity: invalid value: integer `-1`, expected u32",
        ),
        (
            f"workloads: [{{{WORKLOAD}, capacity: true}}]",
            "workloads[0].capacity: invalid type: boolean `true`, expected u32",
        ),
        (
            f"workloads: [{{{WORKLOAD}, name: 5}}]",
            "workloads[0].name: invalid type: integer `5`, expected a string",
        ),
        (
            f"workloads: [{{{WORKLOAD}, name: }}]",
            "workloads[0].name: invalid type: unit value, expected a string",
        ),
        (
            f"workloads: [{{{WORKLOAD}, nativeTunnel: yes}}]",
            'workloads[0].nativeTunnel: invalid type: string "yes", expected a boolean',
        ),
        (
            "workloads: [{workloadIps: [10.0.0], namespace: ns, services: {}}]",
            "workloads[0].workloadIps[0]: invalid IP address syntax",
        ),
        (
            "workloads: [{workloadIps: ['fe80::1%eth0'], namespace: ns, services: {}}]",
            "workloads[0].workloadIps[0]: invalid IP address syntax",
        ),
        (
            "workloads: [{workloadIps: [], namespace: ns, services: {plain: {}}}]",
            "workloads[0].services: failed to parse namespaced hostname: plain",
        ),
        (
            "workloads: [{workloadIps: [], namespace: ns, services: {a/b: {80: 70000}}}]",
            "workloads[0].services.a/b.80: invalid value: integer `70000`, expected u16",
        ),
        (
            f"services: [{{{SERVICE.replace('vips: []', 'vips: [10.0.0.1]')}}}]",
            "services[0].vips[0]: `10.0.0.1` is not network/ip; the network may be empty: `/10.0.0.1`",
        ),
        (
            f"workloads: [{{{WORKLOAD}, locality: {{region: r}}}}]",
            "workloads[0].locality: missing field `zone`",
        ),
        (
            f"policies: [{{{POLICY.replace('rules: []', 'rules: [[[{sourceIps: [1.2.3.4]}]]]')}}}]",
            "policies[0].rules[0][0][0].sourceIps[0]: invalid IP address syntax",
        ),
        (
            f"policies: [{{{POLICY.replace('rules: []', 'rules: [[[{sourceIps: [1.2.3.4/33]}]]]')}}}]",
            "policies[0].rules[0][0][0].sourceIps[0]: invalid IP prefix length",
        ),
        (
            f"policies: [{{{POLICY.replace('rules: []', 'rules: [[[{namespaces: [a]}]]]')}}}]",
            'invalid type: string "a", expected a string match: !Exact, !Prefix, !Suffix or !Presence',
        ),
        (
            f"policies: [{{{POLICY.replace('rules: []', 'rules: [[[{namespaces: [!Regex a]}]]]')}}}]",
            "policies[0].rules[0][0][0].namespaces[0]: unknown variant `Regex`, expected one of `Exact`, ",
        ),
        (
            f"policies: [{{{POLICY.replace('rules: []', 'rules: [[[{namespaces: [!Presence a]}]]]')}}}]",
            'policies[0].rules[0][0][0].namespaces[0]: invalid type: string "a", expected an empty sequence',
        ),
        (
            f"policies: [{{{POLICY.replace('rules: []', 'rules: [[{}]]')}}}]",
            "policies[0].rules[0][0]: invalid type: map, expected a sequence",
        ),
        ("a: [", "did not find expected node content"),
        ("a: 1\na: 2", "duplicate field `a` at line 2 column 1"),
    ],
)
def test_an_error_names_the_place_and_the_trouble(text: str, error: str):
    with pytest.raises(LocalConfigError) as caught:
        parse(text)
    assert error in str(caught.value)


@pytest.mark.parametrize("destination", ["ns/1.2.3", "ns/host", "a/b/c"])
def test_a_destination_that_is_no_address_is_a_hostname(destination: str):
    text = f"workloads: [{{{WORKLOAD}, waypoint: {{destination: {destination}, hboneMtlsPort: 1}}}}]"
    ((workload, _),) = parse(text).workloads
    assert workload.waypoint is not None
    assert workload.waypoint.destination == NamespacedHostname.parse(destination)


def test_a_destination_without_slash_is_refused():
    with pytest.raises(
        LocalConfigError, match=r"waypoint\.destination: failed to parse namespaced hostname: x"
    ):
        parse(f"workloads: [{{{WORKLOAD}, waypoint: {{destination: x, hboneMtlsPort: 1}}}}]")


def test_only_the_difference_is_applied_when_the_file_changes():
    first = parse(EXAMPLE)
    store = load(first)
    assert apply(store, first, first) == 0
    second = parse(
        EXAMPLE.replace("action: Deny", "action: Allow").replace(
            "name: local, namespace: default, hostname", "name: l2, namespace: default, hostname"
        )
    )
    address_change, policy_change = deltas(second, first, itertools.count(5))
    assert (address_change.number, policy_change.number) == (5, 6)
    assert [resource.name for resource in address_change.resources] == ["default/example.com"]
    assert policy_change.kind is ResourceKind.AUTHORIZATION
    apply(store, second, first)
    service = store.service("default", "example.com")
    assert service is not None
    assert service.name == "l2"
    assert len(store.endpoints(service)) == 1
    apply(store, LocalConfig(), second)
    assert len(store.workloads) == len(store.services) == len(store.policies) == 0


def test_endpoints_that_the_file_no_longer_gives_a_service_are_gone():
    own = "endpoints: {%s: {workloadUid: w, port: {}, status: Healthy}}"
    first = parse(f"services: [{{{SERVICE}, {own % 'a'}}}]")
    second = parse(f"services: [{{{SERVICE}, {own % 'b'}}}]")
    store = load(first)
    apply(store, second, first)
    service = store.service("ns", "h")
    assert service is not None
    assert set(store.endpoints(service)) == {"b"}


def test_the_file_takes_back_only_what_xds_has_not_replaced():
    config = parse(EXAMPLE)
    store = load(config)
    uid = config.workloads[0].workload.uid
    store.apply(
        delta(
            address(pb.Workload(uid=uid, name="from xds")),
            address(pb.Service(namespace="default", hostname="example.com", name="from xds")),
        )
    )
    workload = store.workload(uid)
    assert workload is not None
    assert workload.trust_domain == "cluster.local"
    apply(store, LocalConfig(), config)
    assert store.workload(uid) is not None
    assert store.service("default", "example.com") is not None
    assert store.policy("default/p") is None


def test_xds_removes_what_the_file_brought():
    config = parse(EXAMPLE)
    store = load(config)
    uid = config.workloads[0].workload.uid
    store.apply(delta(removed=(uid, "default/example.com")))
    assert store.workload(uid) is None
    assert store.service("default", "example.com") is None


def test_the_static_config_has_the_services_of_workloads_as_a_map():
    dump = static_config(parse(EXAMPLE))
    assert sorted(dump) == ["policies", "services", "workloads"]
    assert dump["workloads"][0]["services"] == {"default/example.com": {"80": 8080}}
    assert dump["workloads"][0]["uid"] == "cluster1//v1/Pod/default/local"
    assert dump["services"][0]["vips"] == ["/127.10.0.1"]
    assert dump["policies"][0]["rules"] == [
        [[{"destinationPorts": [9999], "namespaces": [{"Exact": "foo"}]}]]
    ]
    assert static_config(None) == {"policies": [], "services": [], "workloads": []}
    json.dumps(dump)


def test_the_static_config_can_be_read_as_a_file_again():
    config = parse(FULL)
    assert parse(json.dumps(static_config(config))) == config


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(), st.text(alphabet="[]{}:-!&*a,'\" \n#|>1")))
def test_arbitrary_text_is_a_file_or_an_error_of_its_own(text: str):
    try:
        config = parse(text)
    except LocalConfigError:
        return
    load(config)


@settings(deadline=None)
@given(st.integers(0, len(FULL) - 1), st.text(max_size=3), st.integers(0, 5))
def test_a_damaged_file_is_a_file_or_an_error_of_its_own(at: int, put_in: str, cut: int):
    try:
        config = parse(FULL[:at] + put_in + FULL[at + cut :])
    except LocalConfigError:
        return
    load(config)
