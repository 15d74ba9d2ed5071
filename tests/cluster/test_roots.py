"""The rotation of istiod's root certificate as Istio's documentation has it.

First all trust both roots, then istiod signs with the new one, then the old one is dropped.
"""

from __future__ import annotations

import base64
import json

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.cluster import mesh
from tests.cluster.look import NODE1, NODE2, curl, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.shell import until
from tests.cluster.traffic import traffic
from tests.support.fake_ca import FakeCertificateAuthority

ROOT_FILE = "/var/run/secrets/istio/root-cert.pem"
# istiod begins a certificate's life two minutes ago, and ztunnel renews at half its life: after 30 s.
LIFE = "--set-string=env.SECRET_TTL=3m"


def plug_in(tools, certificate, key, roots):
    """Gives istiod a CA of ours, as `cacerts`, and starts it anew."""
    files = {
        "ca-cert.pem": certificate,
        "ca-key.pem": key,
        "root-cert.pem": roots,
        "cert-chain.pem": certificate,
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": NAMESPACE},
        "stringData": files,
    }
    tools.apply(yaml.safe_dump(secret))
    restart_istiod(tools)


def restart_istiod(tools):
    tools.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment/istiod")
    tools.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/istiod", "--timeout=150s")


def leaves(tools):
    """What each node's ztunnel has: identity, serial number, issuer, and the serial numbers of its roots."""
    found = []
    for node in (NODE1, NODE2):
        said = tools.istioctl(
            "ztunnel-config", "certificate", ztunnel_of(tools, node) + "." + NAMESPACE, "-o", "json"
        )
        for one in json.loads(said):
            leaf = x509.load_pem_x509_certificate(base64.b64decode(one["certChain"][0]["pem"]))
            roots = frozenset(int(root["serialNumber"]) for root in one["rootCerts"])
            found.append((one["identity"], leaf.serial_number, leaf.issuer, roots))
    return found


def everybody(tools, issuer, roots):
    """Whether all certificates of the mesh are by that issuer, and are held against these roots."""
    return all((by, known) == (issuer, roots) for _, _, by, known in leaves(tools))


def files_have(tools, certificate):
    """Whether the root file of each ztunnel has a certificate in it."""
    return all(
        certificate.strip()
        in tools.kubectl("-n", NAMESPACE, "exec", ztunnel_of(tools, node), "--", "cat", ROOT_FILE)
        for node in (NODE1, NODE2)
    )


@pytest.fixture
def own_ca(tools):
    """istiod's self-signed CA as certificate and key. At the end all is as it was."""
    secret = json.loads(tools.kubectl("-n", NAMESPACE, "get", "secret", "istio-ca-secret", "-o", "json"))[
        "data"
    ]
    yield tuple(base64.b64decode(secret[name]).decode() for name in ("ca-cert.pem", "ca-key.pem"))
    tools.kubectl("-n", NAMESPACE, "delete", "secret", "cacerts", "--ignore-not-found")
    restart_istiod(tools)
    # New pods, which have the old root in their file from the start.
    tools.kubectl("-n", NAMESPACE, "delete", "pod", "-l", "app=ztunnel")
    mesh.install_ztunnel(tools)
    until("the mesh is as before", 120, lambda: curl(tools, "http://web").status == 200)


def test_istiods_root_is_rotated_and_no_connection_is_lost(tools, seen, own_ca):
    old, old_key = own_ca
    new = FakeCertificateAuthority("the new root")
    new_pem = new.root.decode()
    new_key = new.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()
    old_root = x509.load_pem_x509_certificate(old.encode())
    serials = frozenset({old_root.serial_number}), frozenset({new.certificate.serial_number})
    mesh.install_ztunnel(tools, LIFE)
    first = {serial for _, serial, _, _ in leaves(tools)}
    took = []
    with traffic(tools, seconds=600, rate=15, until_done=True) as outcome:
        plug_in(tools, old, old_key, old + new_pem)
        took += [
            until(
                "all trust both",
                180,
                lambda: everybody(tools, old_root.subject, serials[0] | serials[1]),
                every=1,
            )
        ]
        # Before istiod itself shows a certificate of the new root.
        took += [until("the file has both", 180, lambda: files_have(tools, new_pem), every=1)]
        plug_in(tools, new_pem, new_key, old + new_pem)
        took += [
            until(
                "all leaves are new",
                180,
                lambda: everybody(tools, new.certificate.subject, serials[0] | serials[1]),
                every=1,
            )
        ]
        plug_in(tools, new_pem, new_key, new_pem)
        took += [
            until(
                "the old root is gone",
                180,
                lambda: everybody(tools, new.certificate.subject, serials[1]),
                every=1,
            )
        ]
        assert not first & {serial for _, serial, _, _ in leaves(tools)}
    seen(f"{outcome}; the steps took {', '.join(f'{each:.0f}' for each in took)} s")
    assert outcome.new > 200
    assert outcome.lines > 20
    assert (outcome.new_failed, outcome.kept_failed, outcome.stream_breaks) == (0, 0, 0), outcome.errors
