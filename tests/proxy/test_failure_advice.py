"""Each failure that a person can do something about is explained in words."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ztunnel.decide.plans import InboundPlan, OutboundPlan, OutboundProtocol, Refusal, RefusalKind
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.proxy.failure_advice import code_of, failure_advice
from ztunnel.tls.tls_errors import NotTlsError, Side
from ztunnel.tunnel.failures import (
    ApplicationDialError,
    ConnectTimeoutError,
    DialError,
    DrainedError,
    HandshakeRefusedError,
    HboneTimeoutError,
    IdentityUnavailableError,
    RefusedByPeerError,
    RouteRefusedError,
)

CLIENT = Workload(uid="client", name="client", namespace="ns", service_account="client")
SERVER = Workload(uid="server", name="server", namespace="ns", service_account="server")
HOP = SocketAddress(ip_address("10.0.0.2"), 15008)


def plan(protocol: OutboundProtocol = OutboundProtocol.HBONE, *, waypoint: bool = False) -> OutboundPlan:
    return OutboundPlan(
        protocol, HOP, HOP, CLIENT, SERVER, authority="10.0.0.2:80", waypoint=waypoint, why=("Because.",)
    )


INBOUND = InboundPlan(SocketAddress(HOP.ip, 80), SocketAddress(HOP.ip, 80), SERVER)


@pytest.mark.parametrize(
    ("failure", "given", "code", "part"),
    [
        (RefusedByPeerError(401), plan(), "ZT-HBN-010", "pod ns/server refused: an authorization policy"),
        (RefusedByPeerError(401), plan(waypoint=True), "ZT-HBN-010", "waypoint ns/server refused"),
        (RefusedByPeerError(503), plan(), "ZT-HBN-010", "its application was not: nothing takes"),
        (RefusedByPeerError(400), plan(), "ZT-HBN-010", "does not accept 10.0.0.2:80"),
        (
            RefusedByPeerError(503),
            plan(OutboundProtocol.DOUBLE_HBONE),
            "ZT-HBN-010",
            "network gateway ns/server",
        ),
        (ApplicationDialError("Connection refused"), INBOUND, "ZT-NET-012", "Nothing listens on 10.0.0.2:80"),
        (ApplicationDialError("connection timed out"), INBOUND, "ZT-NET-012", "does not take connections"),
        (ApplicationDialError("No route to host"), INBOUND, "ZT-NET-012", "could not be reached"),
        (HboneTimeoutError("x"), plan(), "ZT-NET-011", "drops port 15008"),
        (ConnectTimeoutError(20), plan(), "ZT-HBN-012", "nobody answers"),
        (DialError("Connection refused"), plan(), "ZT-NET-010", "no ztunnel serves pod ns/server"),
        (DialError("Connection refused"), plan(OutboundProtocol.TCP), "ZT-NET-010", "not in the mesh"),
        (DialError("x", timed_out=True), plan(OutboundProtocol.TCP), "ZT-NET-010", "a firewall"),
        (IdentityUnavailableError("x"), None, "ZT-CA-010", "no certificate"),
        (
            RouteRefusedError(Refusal(RefusalKind.LOOP, "text", why=("First.", "Second."))),
            None,
            "ZT-RTE-001",
            "First. Second.",
        ),
    ],
)
def test_what_is_explained(failure, given, code, part):
    explained = failure_advice(failure, given, None)
    assert explained is not None
    assert explained.code == code == code_of(failure)
    assert part in explained.why


def test_a_failed_handshake_has_the_code_and_the_words_of_its_cause():
    failure = HandshakeRefusedError(NotTlsError(Side.SERVER))
    explained = failure_advice(failure, None, None)
    assert explained is not None
    assert explained.code == code_of(failure) == NotTlsError.code
    assert "does not speak TLS" in explained.why


def test_what_says_it_all_is_not_explained():
    assert failure_advice(DrainedError(), plan(), None) is None
    assert failure_advice(RefusedByPeerError(418), plan(), None) is None
    assert failure_advice(DialError("No route to host"), plan(), None) is None
