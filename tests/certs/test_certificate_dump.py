"""The certificates part of the config dump."""

from __future__ import annotations

import base64
import json

from cryptography import x509

from ztunnel.certs.certificate_dump import certificate_states, dump_certificates
from ztunnel.certs.certificate_errors import CaUnreachableError
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.certs.rotation import Priority, Rotations
from ztunnel.model.identity import Identity

NOW = 1_764_000_000.0
ROOT = IssuingCa(NOW)
MIDDLE = ROOT.intermediate(NOW)


def test_the_three_states_look_as_in_the_reference():
    available, initializing, unavailable = (Identity("cluster.local", "ns", name) for name in "abc")
    rotations = Rotations()
    for identity in (unavailable, initializing, available):
        rotations.want(identity, Priority.WARMUP, NOW)
    rotations.start(NOW)
    certificate = MIDDLE.certify(available, not_before=NOW, not_after=NOW + 120)
    rotations.issued(available, certificate, NOW)
    error = CaUnreachableError(
        "UNAUTHENTICATED",
        "The request does not have valid authentication credentials",
        "request impersonation authentication failure",
    )
    rotations.failed(unavailable, error, NOW, 0.5)
    dump = dump_certificates(rotations.all(), NOW + 1)
    leaf = x509.load_pem_x509_certificate(certificate.chain[0])
    first = dump[0]
    assert first["state"] == "Available"
    assert first["identity"] == "spiffe://cluster.local/ns/ns/sa/a"
    assert first["certChain"][0] == {
        "expirationTime": "2025-11-24T16:02:00Z",
        "pem": base64.b64encode(certificate.chain[0]).decode(),
        "serialNumber": str(leaf.serial_number),
        "validFrom": "2025-11-24T16:00:00Z",
    }
    assert len(first["certChain"]) == 2
    assert len(first["rootCerts"]) == 1
    rest: list[object] = [*dump[1:]]
    assert rest == [
        {
            "certChain": [],
            "identity": "spiffe://cluster.local/ns/ns/sa/b",
            "rootCerts": [],
            "state": "Initializing",
        },
        {
            "certChain": [],
            "identity": "spiffe://cluster.local/ns/ns/sa/c",
            "rootCerts": [],
            "state": (
                "Unavailable: signing gRPC error (The request does not have valid authentication "
                "credentials): request impersonation authentication failure"
            ),
        },
    ]
    text = json.dumps(dump)
    assert "PRIVATE" not in text
    assert base64.b64encode(certificate.private_key).decode()[:40] not in text


def test_the_next_attempt_after_a_clock_was_set_back_is_shown_as_due():
    identity = Identity("cluster.local", "ns", "a")
    rotations = Rotations()
    rotations.want(identity, Priority.WARMUP, NOW + 3600)
    rotations.start(NOW + 3600)
    error = CaUnreachableError("UNAVAILABLE", "The service is currently unavailable", "istiod is away")
    rotations.failed(identity, error, NOW + 3600, 0.5)
    for now, seconds in ((NOW + 3600, 1.0), (NOW, 0.0)):
        [shown] = certificate_states(rotations.all(), now)
        assert shown["nextAttemptSeconds"] == seconds


def test_an_expired_certificate_is_unavailable():
    identity = Identity("cluster.local", "ns", "a")
    rotations = Rotations()
    rotations.want(identity, Priority.WARMUP, NOW)
    rotations.start(NOW)
    rotations.issued(identity, ROOT.certify(identity, not_before=NOW, not_after=NOW + 120), NOW)
    (one,) = dump_certificates(rotations.all(), NOW + 120)
    assert one["state"].startswith("Unavailable: ")
