"""`ztunnel doctor`: each thing broken on purpose, and the line that says so."""

from __future__ import annotations

import json
import resource
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.closed_port import closed_port
from ztunnel import cli
from ztunnel.config.model import Config, Localhost, ProxyMode, RootFile, RootStatic, TokenFile
from ztunnel.tools import machine_checks as machine
from ztunnel.tools import network_checks as network
from ztunnel.tools.findings import Finding, Severity, exit_status, lines

CONFIG = Config()
DEDICATED = replace(CONFIG, proxy_mode=ProxyMode.DEDICATED)


def one(findings: Iterator[Finding]) -> Finding:
    [found] = findings
    return found


def certificate(
    directory: Path, *, starts: timedelta = timedelta(hours=-1), ends: timedelta = timedelta(days=30)
) -> Path:
    """A self-signed certificate for localhost with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the mesh's CA")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{len(list(directory.iterdir()))}.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@contextmanager
def tls_server(pem: Path) -> Iterator[str]:
    """A TLS server with this certificate, until the block ends; gives its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(accepted, server_side=True).close()
                except OSError:
                    accepted.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://localhost:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# -- the machine -----------------------------------------------------------------------------------------


def test_it_says_who_reads_tls():
    wanted, other = replace(CONFIG, tls_accelerator=True), replace(CONFIG, tls_accelerator=False)
    assert one(machine.tls_records(wanted, lambda: None)).text == "by the compiled part"
    assert one(machine.tls_records(wanted, lambda: "it was lost")).text == "in Python: it was lost"
    assert one(machine.tls_records(other, lambda: None)).text == "in Python: ZTUNNEL_TLS_ACCELERATOR is off"


def test_missing_capabilities_are_named(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tztunnel\nCapEff:\t0000000000001000\n")  # NET_ADMIN alone
    found = list(machine.capabilities(CONFIG, status))
    assert [item.state for item in found] == [Severity.FAILURE, Severity.FAILURE]
    assert "CAP_NET_RAW is missing" in found[0].text
    assert "SYS_ADMIN" in found[1].advice
    status.write_text("CapEff:\t000001ffffffffff\n")
    assert one(machine.capabilities(CONFIG, status)).state is Severity.OK
    assert one(machine.capabilities(DEDICATED, status)).state is Severity.SKIPPED


def test_the_agents_socket(tmp_path):
    path = tmp_path / "ztunnel.sock"
    config = replace(CONFIG, inpod_uds=str(path))
    assert "no CNI agent hands over pods" in one(machine.namespaces(config)).text
    path.write_text("")
    assert "is no socket" in one(machine.namespaces(config)).text
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.bind(str(path))
        assert "does not answer" in one(machine.namespaces(config)).text
        agent.listen()
        assert one(machine.namespaces(config)).state is Severity.OK
    assert one(machine.namespaces(DEDICATED)).state is Severity.SKIPPED


def test_a_port_that_somebody_else_has():
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = replace(
            CONFIG,
            admin_addr=Localhost(ipv6=False, port=other.getsockname()[1]),
            stats_addr=Localhost(ipv6=False, port=0),
            readiness_addr=Localhost(ipv6=False, port=0),
        )
        taken = one(machine.ports(config, running=False))
        assert (taken.state, "(admin) are taken" in taken.text) == (Severity.FAILURE, True)
        assert one(machine.ports(config, running=True)).state is Severity.OK
    assert one(machine.ports(config, running=False)).state is Severity.OK


def test_descriptors_and_tables(tmp_path):
    assert one(machine.descriptors((1024, 1024))).state is Severity.WARNING
    assert one(machine.descriptors((1024, resource.RLIM_INFINITY))).state is Severity.OK
    assert one(machine.conntrack(tmp_path)).state is Severity.SKIPPED
    (tmp_path / "nf_conntrack_max").write_text("100\n")
    (tmp_path / "nf_conntrack_count").write_text("90\n")
    assert one(machine.conntrack(tmp_path)).state is Severity.FAILURE
    (tmp_path / "nf_conntrack_count").write_text("10\n")
    assert one(machine.conntrack(tmp_path)).text == "10 of 100 entries"


def test_a_small_mtu(tmp_path):
    for name, size in (("eth0", 1500), ("lo", 65536), ("tun0", 1200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mtu").write_text(f"{size}\n")
    found = one(machine.mtu(tmp_path))
    assert (found.state, found.text[:13]) == (Severity.WARNING, "tun0 has 1200")


# -- the network -----------------------------------------------------------------------------------------


def test_the_token(tmp_path):
    path = tmp_path / "token"
    config = replace(CONFIG, auth=TokenFile(str(path)))
    assert "cannot read" in one(network.token(config)).text
    path.write_text("")
    assert "is empty" in one(network.token(config)).text
    # these say that they expire in the second 1, and in the year 5138
    path.write_text("e30.eyJleHAiOiAxfQ.sig")
    assert "expired" in one(network.token(config)).text
    path.write_text("e30.eyJleHAiOiA5OTk5OTk5OTk5OX0.sig")
    found = one(network.token(config))
    assert (found.state, "sig" in found.text) == (Severity.OK, False)
    path.write_text("opaque")
    assert one(network.token(config)).state is Severity.OK
    assert one(network.token(replace(config, fake_ca=True))).state is Severity.SKIPPED


def test_roots(tmp_path):
    good = certificate(tmp_path)
    assert one(network.root("CA", RootFile(str(good)))).state is Severity.OK
    assert (
        "expired"
        in one(network.root("CA", RootFile(str(certificate(tmp_path, ends=timedelta(minutes=-1)))))).text
    )
    early = certificate(tmp_path, starts=timedelta(hours=1))
    assert "clock is behind" in one(network.root("CA", RootFile(str(early)))).text
    soon = certificate(tmp_path, ends=timedelta(hours=2))
    assert one(network.root("CA", RootFile(str(soon)))).state is Severity.WARNING
    assert "cannot read" in one(network.root("CA", RootFile(str(tmp_path / "none")))).text
    assert "is no certificate" in one(network.root("CA", RootStatic("./no/such/file"))).text
    assert one(network.root("CA", RootStatic(good.read_text()))).state is Severity.OK


def test_a_server_that_is_trusted_or_not(tmp_path):
    pem = certificate(tmp_path)
    with tls_server(pem) as address:
        found = one(network.server("istiod", address, RootFile(str(pem)), None))
        assert (found.state, "signed by the mesh's CA" in found.text) == (Severity.OK, True)
        other = certificate(tmp_path)
        found = one(network.server("istiod", address, RootFile(str(other)), None))
        assert (found.state, "signed by the mesh's CA, and is not trusted" in found.text) == (
            Severity.FAILURE,
            True,
        )
        found = one(network.server("istiod", address, RootFile(str(pem)), "istiod.elsewhere"))
        assert "is not trusted: Hostname mismatch" in found.text
        assert one(network.server("istiod", address, RootStatic("none"), None)).state is Severity.FAILURE


@pytest.fixture
def refusing() -> Iterator[int]:
    with closed_port() as port:
        yield port


def test_a_server_that_does_not_answer(refusing):
    address = f"https://127.0.0.1:{refusing}"
    assert "refused" in one(network.server("CA", address, RootStatic(""), None)).text

    def silent(*_: object) -> network.Served:
        raise TimeoutError

    found = one(network.server("CA", "https://127.0.0.1:1", RootStatic(""), None, silent))
    assert "filtered" in found.text
    assert one(network.server("CA", None, RootStatic(""), None)).state is Severity.SKIPPED


def test_a_peers_port(refusing, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = one(network.peer(f"127.0.0.1:{listener.getsockname()[1]}"))
        assert (found.state, "path MTU" in found.text) == (Severity.OK, True)
    assert "no ztunnel serves that pod" in one(network.peer(f"127.0.0.1:{refusing}")).text
    assert "is not an address" in one(network.peer("127.0.0.1:x")).text

    def silent(*_: object, **__: object) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(network, "_connected", silent)
    found = one(network.peer("10.255.255.1"))
    assert "10.255.255.1:15008 is filtered" in found.text
    assert "NetworkPolicies" in found.advice


def test_names():
    def resolve(host: str) -> list[str]:
        if host == "gone":
            raise socket.gaierror(-2, "Name or service not known")
        return ["10.0.0.1"]

    bad, good = network.names(["gone", "here", "here"], resolve)
    assert (bad.state, "does not resolve" in bad.text) == (Severity.FAILURE, True)
    assert (good.state, "here is 10.0.0.1" in good.text) == (Severity.OK, True)


# -- the command -----------------------------------------------------------------------------------------


def test_lines_and_status():
    findings = [
        Finding("one", Severity.OK, "well"),
        Finding("two", Severity.FAILURE, "broken", "mend it"),
        Finding("three", Severity.WARNING, "soon", "look"),
    ]
    assert list(lines(findings)) == [
        "ok    one           well",
        "FAIL  two           broken",
        "                    → mend it",
        "WARN  three         soon",
        "                    → look",
        "",
        "=> failures: 1, warnings: 1, well: 1, not applicable here: 0.",
    ]
    assert (exit_status(findings), exit_status(findings[:1])) == (1, 0)


def test_the_command_as_json(refusing, monkeypatch, capsys):
    monkeypatch.setenv("PROXY_MODE", "dedicated")
    monkeypatch.setenv("PROXY_WORKLOAD_INFO", "ns/pod/sa")
    monkeypatch.setenv("FAKE_CA", "true")
    monkeypatch.setenv("XDS_ADDRESS", "")
    assert (
        cli.main(["doctor", "--json", "--admin", "127.0.0.1:9", "--peer", f"127.0.0.1:{refusing}"], {}) == 1
    )
    found = {item["check"]: item["state"] for item in json.loads(capsys.readouterr().out)}
    assert found["peer"] == "failure"
    assert found["configuration"] == "ok"
    assert found["istiod"] == found["CA"] == found["capabilities"] == "skipped"


def test_a_configuration_that_cannot_be_used(monkeypatch, capsys):
    monkeypatch.setenv("PROXY_MODE", "shred")
    assert cli.main(["doctor", "--admin", "127.0.0.1:9"], {}) == 1
    assert "FAIL  configuration invalid env var PROXY_MODE=shred" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_says_where_to_run_it(flag, capsys):
    assert cli.main(["doctor", flag], {}) == 0
    assert "kubectl -n istio-system exec" in capsys.readouterr().out
