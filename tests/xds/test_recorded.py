"""What the real istiod answers (tests/recorded/control-plane.json).

Our reading of it, and the stand-ins beside it.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.fake_ca import FakeCertificateAuthority
from ztunnel.certs.istio_ca import decode_response, encode_request
from ztunnel.certs.request import make_signing_request
from ztunnel.model.identity import Identity
from ztunnel.pb.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from ztunnel.pb.istio.v1.auth import IstioCertificateRequest
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE, XdsSession

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "control-plane.json").read_text())
REQUESTS = [bytes.fromhex(each) for each in RECORDED["xds"]["requests"]]
ANSWERS = [bytes.fromhex(each) for each in RECORDED["xds"]["answers"]]
SLEEP = Identity("cluster.local", "demo", "sleep")


def test_istiod_took_the_requests_that_we_send_today():
    asked = [DeltaDiscoveryRequest.parse(request) for request in REQUESTS]
    assert asked[0].node is not None
    today = [DeltaDiscoveryRequest.parse(one) for one in XdsSession(bytes(asked[0].node)).open()]
    assert today == asked


def test_each_type_is_answered_once_with_a_nonce_and_names():
    answers = [DeltaDiscoveryResponse.parse(answer) for answer in ANSWERS]
    assert sorted(answer.type_url for answer in answers) == sorted([ADDRESS_TYPE, AUTHORIZATION_TYPE])
    assert all(answer.nonce for answer in answers)
    assert not any(answer.removed_resources for answer in answers)
    [addresses] = [answer for answer in answers if answer.type_url == ADDRESS_TYPE]
    names = {resource.name for resource in addresses.resources}
    assert "demo/web.demo.svc.cluster.local" in names
    assert any(name.startswith("Kubernetes//Pod/demo/sleep-") for name in names)


def test_all_of_it_is_taken():
    session = XdsSession(b"")
    list(session.open())
    seen = {}
    for answer in ANSWERS:
        reading = session.receive(answer)
        while not reading.scan():
            pass
        delta = reading.delta()
        assert delta is not None
        outcome = session.complete(reading, [])
        assert outcome.nack is None
        seen[reading.type_url] = len(DeltaDiscoveryResponse.parse(answer).resources)
    assert session.ready
    assert seen[ADDRESS_TYPE] >= 10


def names_of(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.UniformResourceIdentifier)


def test_a_chain_of_istiods_ca_and_one_of_the_stand_in_are_alike():
    leaf, *issuers = [
        x509.load_pem_x509_certificate(each.encode())
        for each in decode_response(bytes.fromhex(RECORDED["ca"]["answer"]))
    ]
    asked = make_signing_request(SLEEP)
    fake = FakeCertificateAuthority()
    imitated = x509.load_pem_x509_certificate(
        fake.sign(x509.load_pem_x509_csr(asked.csr.encode()), str(SLEEP), dt.timedelta(days=1))
    )
    for theirs, its in ((leaf, imitated), (issuers[0], fake.certificate)):
        kinds = [{(each.oid, each.critical) for each in one.extensions} for one in (theirs, its)]
        assert kinds[0] == kinds[1]
    # The roots differ in one right: the stand-in's also signs revocation lists.
    usages = [one.extensions.get_extension_for_class(x509.KeyUsage).value for one in (leaf, imitated)]
    assert usages[0] == usages[1]
    for certificate in (leaf, imitated):
        assert names_of(certificate) == ["spiffe://cluster.local/ns/demo/sa/sleep"]
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} == set(purposes)
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert len(issuers) == 1
    leaf.verify_directly_issued_by(issuers[0])
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 86_400 + 120


def test_the_request_that_istiods_ca_took_is_the_one_that_we_send():
    recorded = IstioCertificateRequest.parse(bytes.fromhex(RECORDED["ca"]["request"]))
    today = IstioCertificateRequest.parse(encode_request(recorded.csr, recorded.validity_duration, SLEEP))
    assert today == recorded
    theirs, ours = (
        x509.load_pem_x509_csr(csr.encode()) for csr in (recorded.csr, make_signing_request(SLEEP).csr)
    )
    assert ours.extensions[0].value == theirs.extensions[0].value
    assert ours.subject == theirs.subject


def test_a_token_is_bound_to_ztunnels_pod_and_meant_for_the_ca_alone():
    token = RECORDED["token"]
    assert token["aud"] == ["istio-ca"]
    assert token["sub"] == "system:serviceaccount:istio-system:ztunnel"
    assert set(token["claims"]["kubernetes.io"]) == {"namespace", "node", "pod", "serviceaccount"}
