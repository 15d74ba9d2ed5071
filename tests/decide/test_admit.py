"""What a pod does with what arrives (docs/protocol/data-path.md#connect-order-of-checks)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_mesh import HBONE, ILLEGAL_PORTS, FakeMesh, at, by_address, by_hostname
from ztunnel.decide.admit import admit_connect, admit_plaintext, label_service
from ztunnel.decide.plans import ConnectFacts, InboundPlan, Refusal, RefusalKind
from ztunnel.decide.proxy_protocol import proxy_header
from ztunnel.model.address import NetworkAddress
from ztunnel.model.identity import Identity
from ztunnel.model.service import Visibility
from ztunnel.model.workload import ApplicationTunnel, AppTunnelProtocol, Workload

ALICE = Identity("cluster.local", "default", "alice")
PROXY = ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)
PROXY_WITHOUT_PORT = ApplicationTunnel(AppTunnelProtocol.PROXY, None)
NONE = ApplicationTunnel(AppTunnelProtocol.NONE, None)
WEB = "web.default.svc.cluster.local"


def admit(
    mesh: FakeMesh,
    workload: Workload,
    authority: str,
    *,
    localhost_app_tunnel: bool = True,
    spoof: bool = True,
    **facts: Any,
) -> InboundPlan | Refusal:
    given_facts = {
        "method": "CONNECT",
        "authority": authority,
        "local": at("10.0.0.2:15008"),
        "peer": at("10.0.0.1:40000"),
        "workload": workload,
        "identity": ALICE,
        **facts,
    }
    return admit_connect(
        mesh,
        ConnectFacts(**given_facts),
        illegal_ports=ILLEGAL_PORTS,
        localhost_app_tunnel=localhost_app_tunnel,
        spoof=spoof,
    )


def admitted(*args: Any, **kwargs: Any) -> InboundPlan:
    plan = admit(*args, **kwargs)
    assert isinstance(plan, InboundPlan), plan
    return plan


def refused(*args: Any, **kwargs: Any) -> tuple[RefusalKind, str, int]:
    refusal = admit(*args, **kwargs)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.why
    return refusal.kind, refusal.text, refusal.status


@pytest.fixture
def mesh() -> FakeMesh:
    return FakeMesh()


@pytest.fixture
def server(mesh: FakeMesh) -> Workload:
    return mesh.add_workload("server", "10.0.0.2", HBONE)


# Steps 1 and 2


def test_only_connect_is_taken(mesh, server):
    assert refused(mesh, server, "10.0.0.2:80", method="GET") == (
        RefusalKind.BAD_METHOD,
        "expected method CONNECT, got GET",
        400,
    )


@pytest.mark.parametrize("authority", ["", "10.0.0.2", "host", "host:", "fd00::1:80", "host:99999"])
def test_an_authority_needs_a_host_and_a_port(mesh, server, authority):
    assert refused(mesh, server, authority) == (
        RefusalKind.BAD_AUTHORITY,
        f"no valid authority pseudo header: {authority}",
        400,
    )


# Step 4: is the destination ours?


def test_the_pods_own_address_is_dialled_with_the_peer_as_source(mesh, server):
    plan = admitted(mesh, server, "10.0.0.2:8080")
    assert plan.dial == plan.destination == at("10.0.0.2:8080")
    assert plan.spoof == at("10.0.0.1:0")
    assert (plan.loopback, plan.proxy_header, plan.service) == (False, None, None)
    assert plan.workload is server


def test_without_spoofing_the_kernel_chooses_the_source(mesh, server):
    assert admitted(mesh, server, "10.0.0.2:8080", spoof=False).spoof is None


def test_a_pod_that_calls_itself_is_not_spoofed(mesh, server):
    assert admitted(mesh, server, "10.0.0.2:8080", peer=at("10.0.0.2:4")).spoof is None


def test_user_info_is_tolerated(mesh, server):
    assert admitted(mesh, server, "user@10.0.0.2:8080").dial == at("10.0.0.2:8080")


def test_a_mapped_authority_is_the_same_address(mesh, server):
    assert admitted(mesh, server, "[::ffff:10.0.0.2]:8080").dial == at("10.0.0.2:8080")


def test_ipv6(mesh):
    server = mesh.add_workload("server", "fd00::2", HBONE)
    plan = admitted(mesh, server, "[fd00::2]:80", local=at("[fd00::2]:15008"), peer=at("[fd00::1]:4"))
    assert (plan.dial, plan.spoof) == (at("[fd00::2]:80"), at("[fd00::1]:0"))


def test_another_address_is_a_mismatch(mesh, server):
    assert refused(mesh, server, "10.0.0.3:80") == (
        RefusalKind.IP_MISMATCH,
        "ip mismatch: 10.0.0.2 != 10.0.0.3",
        400,
    )


@pytest.mark.parametrize("tunnel", [NONE, PROXY])
def test_any_application_tunnel_takes_other_addresses(mesh, tunnel):
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=tunnel)
    assert admitted(mesh, server, "10.0.0.3:80").destination.ip == at("10.0.0.2:0").ip


def add_waypoint_service(mesh: FakeMesh) -> Workload:
    service = mesh.add_service("waypoint", "10.96.0.9")
    return mesh.add_workload("server", "10.0.0.2", HBONE, behind=service)


WAYPOINT_HOST = "waypoint.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("build", "accepted"),
    [
        pytest.param(
            lambda mesh: mesh.add_workload("other", "10.0.0.3", waypoint=by_address("10.0.0.2")),
            True,
            id="of a workload, by our address",
        ),
        pytest.param(
            lambda mesh: mesh.add_workload("other", "10.0.0.3", waypoint=by_address("10.96.0.9")),
            True,
            id="of a workload, by the address of a service of ours",
        ),
        pytest.param(
            lambda mesh: mesh.add_workload(
                "other", "10.0.0.3", waypoint=by_hostname("default", WAYPOINT_HOST)
            ),
            True,
            id="of a workload, by the hostname of a service of ours",
        ),
        pytest.param(
            lambda mesh: mesh.add_service("other", "10.0.0.3", waypoint=by_address("10.96.0.9")),
            True,
            id="of a service",
        ),
        pytest.param(
            lambda mesh: mesh.add_service(
                "other",
                "10.0.0.3",
                namespace="far",
                visibility=Visibility.NAMESPACE,
                waypoint=by_address("10.96.0.9"),
            ),
            True,
            id="of a service hidden from our namespace",
        ),
        pytest.param(
            lambda mesh: mesh.add_workload("other", "10.0.0.3", waypoint=by_address("10.0.0.77")),
            False,
            id="of a workload with another waypoint",
        ),
        pytest.param(
            lambda mesh: mesh.add_workload("other", "10.0.0.3", waypoint=by_hostname("default", "gone")),
            False,
            id="of a workload with an unknown waypoint",
        ),
        pytest.param(
            lambda mesh: mesh.add_workload("other", "10.0.0.3"), False, id="of a workload without waypoint"
        ),
        pytest.param(
            lambda mesh: (
                mesh.add_service("foreign", "10.96.0.8"),
                mesh.add_workload("other", "10.0.0.3", waypoint=by_address("10.96.0.8")),
            ),
            False,
            id="of a workload whose waypoint is a service without us",
        ),
    ],
)
def test_a_sandwiched_waypoint_takes_what_it_is_the_waypoint_of(
    build: Callable[[FakeMesh], object], accepted
):
    mesh = FakeMesh()
    server = add_waypoint_service(mesh)
    build(mesh)
    outcome = admit(mesh, server, "10.0.0.3:80")
    assert isinstance(outcome, InboundPlan) is accepted
    if isinstance(outcome, InboundPlan):
        # The peer chooses the port, never the address.
        assert outcome.dial == at("10.0.0.2:80")


# Step 5: hostnames, ports, loops


def test_a_hostname_leads_to_the_services_target_port(mesh):
    service = mesh.add_service("web", "10.96.0.1", ports={80: 8080, 81: 0})
    server = mesh.add_workload("server", "10.0.0.2", HBONE, behind=service)
    plan = admitted(mesh, server, f"{WEB}:80")
    assert plan.dial == at("10.0.0.2:8080")
    assert plan.service is service


def test_a_hostname_leads_to_the_endpoints_own_port(mesh):
    service = mesh.add_service("web", "10.96.0.1", ports={80: 0})
    server = mesh.add_workload("server", "10.0.0.2", HBONE, behind=service, ports={80: 9090})
    assert admitted(mesh, server, f"{WEB}:80").dial == at("10.0.0.2:9090")


def test_a_hostname_need_not_have_us_as_endpoint(mesh, server):
    mesh.add_service("web", "10.96.0.1")
    assert admitted(mesh, server, f"{WEB}:80").dial == at("10.0.0.2:8080")


def test_a_hostname_prefers_our_own_namespace(mesh, server):
    mesh.add_service("web", namespace="far", hostname="web.example.com", ports={80: 1})
    mesh.add_service("web", namespace="default", hostname="web.example.com", ports={80: 2})
    assert admitted(mesh, server, "web.example.com:80").dial == at("10.0.0.2:2")


@pytest.mark.parametrize("hidden", [False, True])
def test_an_unknown_or_hidden_hostname(mesh, server, hidden):
    if hidden:
        mesh.add_service("web", namespace="far", hostname=WEB, visibility=Visibility.NAMESPACE)
    expected = (RefusalKind.UNKNOWN_HOSTNAME, f"no service or workload for hostname: {WEB}", 503)
    assert refused(mesh, server, f"{WEB}:80") == expected


@pytest.mark.parametrize("port", [81, 82])
def test_a_port_that_cannot_be_resolved(mesh, port):
    service = mesh.add_service("web", "10.96.0.1", ports={80: 8080, 81: 0})
    server = mesh.add_workload("server", "10.0.0.2", HBONE, behind=service)
    text = f"requested service {WEB}:{port} found, but cannot resolve port"
    assert refused(mesh, server, f"{WEB}:{port}") == (RefusalKind.UNKNOWN_PORT, text, 503)


@pytest.mark.parametrize("port", sorted(ILLEGAL_PORTS))
def test_our_own_ports_are_refused(mesh, server, port):
    expected = (RefusalKind.LOOP, "attempted recursive call to ourselves", 503)
    assert refused(mesh, server, f"10.0.0.2:{port}") == expected
    mesh.add_service("web", "10.96.0.1", ports={80: port})
    assert refused(mesh, server, f"{WEB}:80") == expected


def test_our_own_ports_are_refused_before_the_tunnel_overrides_them(mesh):
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY)
    assert refused(mesh, server, "10.0.0.2:15008")[0] is RefusalKind.LOOP
    odd = mesh.add_workload(
        "server", "10.0.0.2", HBONE, application_tunnel=ApplicationTunnel(AppTunnelProtocol.NONE, 15008)
    )
    assert admitted(mesh, odd, "10.0.0.2:80").dial == at("10.0.0.2:15008")


# Application tunnels


def test_a_proxy_tunnel_is_dialled_on_loopback(mesh):
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY)
    plan = admitted(mesh, server, "10.0.0.3:80")
    assert (plan.dial, plan.loopback, plan.spoof) == (at("127.0.0.1:15088"), True, None)
    assert plan.destination == at("10.0.0.2:15088")
    assert plan.proxy_header == proxy_header(at("10.0.0.1:40000"), at("10.0.0.3:80"), ALICE)


def test_a_proxy_tunnel_of_an_ipv6_pod_is_dialled_on_ipv6_loopback(mesh):
    server = mesh.add_workload("server", "fd00::2", HBONE, application_tunnel=PROXY)
    plan = admitted(mesh, server, "[fd00::2]:80", local=at("[fd00::2]:15008"))
    assert plan.dial == at("[::1]:15088")


def test_a_proxy_tunnel_can_be_dialled_on_the_pods_address(mesh):
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY)
    plan = admitted(mesh, server, "10.0.0.3:80", localhost_app_tunnel=False)
    assert (plan.dial, plan.loopback, plan.spoof) == (at("10.0.0.2:15088"), False, at("10.0.0.1:0"))
    assert plan.proxy_header is not None


def test_a_tunnel_without_port_keeps_the_port_asked_for(mesh):
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY_WITHOUT_PORT)
    assert admitted(mesh, server, "10.0.0.3:80").dial == at("127.0.0.1:80")


def test_a_tunnel_without_protocol_changes_the_port_only(mesh):
    tunnel = ApplicationTunnel(AppTunnelProtocol.NONE, 9000)
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=tunnel)
    plan = admitted(mesh, server, "10.0.0.3:80")
    assert (plan.dial, plan.proxy_header, plan.loopback) == (at("10.0.0.2:9000"), None, False)


@pytest.mark.parametrize(
    ("vips", "named"),
    [
        ([("", "10.96.0.1")], "10.96.0.1:80"),
        ([("far", "10.96.0.2"), ("", "10.96.0.1")], "10.96.0.1:80"),
        ([("", "fd96::1"), ("", "10.96.0.1")], "10.96.0.1:80"),
        ([("far", "10.96.0.2"), ("", "fd96::1")], "[fd96::1]:80"),
        ([("far", "fd96::1"), ("far", "10.96.0.1")], "10.96.0.1:80"),
    ],
)
def test_a_proxy_header_names_an_address_of_the_service(mesh, vips, named):
    service = mesh.add_service("web")
    mesh.change(
        service,
        vips=tuple(NetworkAddress(net, at(f"[{ip}]:0" if ":" in ip else f"{ip}:0").ip) for net, ip in vips),
    )
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY)
    plan = admitted(mesh, server, f"{WEB}:80")
    assert plan.proxy_header == proxy_header(at("10.0.0.1:40000"), at(named), ALICE)


def test_a_proxy_header_needs_an_address_of_the_service(mesh):
    mesh.add_service("web")
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY)
    text = f"requested service {WEB} found, but has no IP addresses"
    assert refused(mesh, server, f"{WEB}:80") == (RefusalKind.NO_SERVICE_ADDRESS, text, 503)


# The header's bytes

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def test_proxy_header_over_ipv4():
    uri = b"spiffe://cluster.local/ns/default/sa/alice"
    assert proxy_header(at("10.0.0.1:40000"), at("10.0.0.3:80"), ALICE) == (
        SIGNATURE
        + b"\x21\x11"
        + (12 + 3 + len(uri)).to_bytes(2, "big")
        + bytes([10, 0, 0, 1, 10, 0, 0, 3])
        + (40000).to_bytes(2, "big")
        + (80).to_bytes(2, "big")
        + b"\xd0"
        + len(uri).to_bytes(2, "big")
        + uri
    )


def test_proxy_header_over_ipv6_without_identity():
    source, destination = at("[fd00::1]:1"), at("[fd00::2]:2")
    assert proxy_header(source, destination, None) == (
        SIGNATURE + b"\x21\x21\x00\x24" + source.ip.packed + destination.ip.packed + b"\0\1\0\2"
    )


def test_proxy_header_of_mixed_families_has_no_addresses_but_the_identity():
    header = proxy_header(at("10.0.0.1:1"), at("[fd00::2]:2"), ALICE)
    assert header[12:14] == b"\x21\x01"
    assert int.from_bytes(header[14:16], "big") == len(header) - 16
    assert header[16] == 0xD0
    assert header[19:] == str(ALICE).encode()


def test_proxy_header_leaves_out_an_identity_that_is_too_long():
    long = Identity("t" * 70000, "n", "s")
    assert proxy_header(at("10.0.0.1:1"), at("10.0.0.2:2"), long) == proxy_header(
        at("10.0.0.1:1"), at("10.0.0.2:2"), None
    )


# Plaintext


def test_plaintext_goes_to_its_original_destination(mesh, server):
    plan = admit_plaintext(
        mesh, server, at("10.9.9.9:4"), at("10.0.0.2:80"), illegal_ports=ILLEGAL_PORTS, spoof=True
    )
    assert isinstance(plan, InboundPlan)
    assert plan.dial == plan.destination == at("10.0.0.2:80")
    assert plan.spoof == at("10.9.9.9:0")
    assert plan.proxy_header is None


def test_plaintext_ignores_application_tunnels(mesh):
    server = mesh.add_workload("server", "10.0.0.2", HBONE, application_tunnel=PROXY)
    plan = admit_plaintext(
        mesh, server, at("10.9.9.9:4"), at("10.0.0.2:80"), illegal_ports=ILLEGAL_PORTS, spoof=False
    )
    assert isinstance(plan, InboundPlan)
    assert (plan.dial, plan.proxy_header, plan.spoof) == (at("10.0.0.2:80"), None, None)


@pytest.mark.parametrize("address", ["10.0.0.2:15008", "1.2.3.4:15001", "[fd00::1]:15006"])
def test_plaintext_to_our_own_ports_is_refused_at_any_address(mesh, server, address):
    refusal = admit_plaintext(
        mesh, server, at("10.9.9.9:4"), at(address), illegal_ports=ILLEGAL_PORTS, spoof=True
    )
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.text) == (RefusalKind.LOOP, "attempted recursive call to ourselves")


# Labels


def test_the_service_for_labels(mesh: FakeMesh):
    one = mesh.add_service("one", ports={80: 8080})
    two = mesh.add_service("two", ports={80: 8080, 81: 0})
    server = mesh.add_workload("server", "10.0.0.2", behind=(one, two), ports={81: 9090})
    assert label_service(mesh, server, 8080) is one
    assert label_service(mesh, server, 8080, two.hostname) is two
    assert label_service(mesh, server, 8080, "unknown") is one
    assert label_service(mesh, server, 1, two.hostname) is two
    assert label_service(mesh, server, 1) is None
    assert label_service(mesh, server, 9090) is one
    assert label_service(mesh, server, 8080, one.hostname, only=two) is two
    assert label_service(mesh, server, 1, only=two) is None


def test_the_service_for_labels_of_a_tunnel(mesh: FakeMesh):
    one = mesh.add_service("one", ports={80: 8080})
    two = mesh.add_service("two", ports={80: 8080})
    server = mesh.add_workload("server", "10.0.0.2", behind=(one, two))
    assert admitted(mesh, server, "10.0.0.2:8080").service is one
    assert admitted(mesh, server, "10.0.0.2:8080", forwarded_host=two.hostname).service is two
    assert admitted(mesh, server, f"{two.hostname}:80", forwarded_host=one.hostname).service is two
    plain = admit_plaintext(
        mesh, server, at("10.9.9.9:4"), at("10.0.0.2:8080"), illegal_ports=ILLEGAL_PORTS, spoof=True
    )
    assert isinstance(plain, InboundPlan)
    assert plain.service is one


# For any authority


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=25)
    | st.builds(
        "{}:{}".format,
        st.sampled_from(
            ["10.0.0.2", "10.0.0.3", "[fd00::2]", "127.0.0.1", WEB, "[::ffff:10.0.0.2]", "0.0.0.0"]
        ),
        st.one_of(st.integers(0, 65535), st.sampled_from(sorted(ILLEGAL_PORTS))),
    ),
    st.sampled_from([None, NONE, PROXY, PROXY_WITHOUT_PORT]),
    st.booleans(),
)
def test_a_peer_reaches_this_pod_only_and_never_our_own_ports(authority, tunnel, localhost_app_tunnel):
    mesh = FakeMesh()
    service = mesh.add_service("web", "10.96.0.1", ports={port: port for port in (80, *ILLEGAL_PORTS)})
    server = mesh.add_workload("server", "10.0.0.2", HBONE, behind=service, application_tunnel=tunnel)
    outcome = admit(mesh, server, authority, localhost_app_tunnel=localhost_app_tunnel)
    if isinstance(outcome, InboundPlan):
        assert outcome.destination.ip == at("10.0.0.2:0").ip
        assert outcome.dial.port == outcome.destination.port
        assert outcome.dial.port not in ILLEGAL_PORTS
        is_proxy = tunnel is not None and tunnel.protocol is AppTunnelProtocol.PROXY
        assert (outcome.proxy_header is not None) is is_proxy
        assert outcome.loopback is (is_proxy and localhost_app_tunnel)
        assert (outcome.dial.ip == outcome.destination.ip) is not outcome.loopback
