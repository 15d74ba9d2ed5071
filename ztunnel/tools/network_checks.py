"""Checks of the servers that ztunnel uses: DNS, istiod and the CA, and peers' port 15008."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from ztunnel.config.model import Config, RootCert, RootFile, RootStatic, TokenFile
from ztunnel.config.parse_values import host_and_port
from ztunnel.explain.text import span
from ztunnel.tools.findings import Finding, failure, ok, skipped, warning

PROBE_TIMEOUT = 3.0
"""Seconds to wait for a connection, and again for a handshake."""

_SOON = 24 * 3600
_SLOW_NAMES = 1.0
_MARK = 1337


class Served(NamedTuple):
    """What a TLS server presented. ``error``: why its certificate is not trusted, "" if it is."""

    certificate: x509.Certificate
    error: str


def token(config: Config) -> Iterator[Finding]:
    """Checks whether the token that authenticates us to the CA exists."""
    if config.fake_ca:
        yield skipped("token", "FAKE_CA=true: nobody is asked")
        return
    if not isinstance(config.auth, TokenFile):
        yield skipped(
            "token", "no token file is configured" if config.auth is None else "the token is inline"
        )
        return
    path = Path(config.auth.path)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        yield failure(
            "token", f"cannot read {path}: {error} (ZT-CA-005)", "mount the projected service account token"
        )
        return
    if not text:
        yield failure("token", f"{path} is empty (ZT-CA-005)", "mount the projected service account token")
    elif (left := _token_seconds(text)) is not None and left < 0:
        yield failure(
            "token", f"{path} expired {span(-left)} ago", "is kubelet up? it renews projected tokens"
        )
    else:
        yield ok("token", f"{path} is there" + ("" if left is None else f", valid for another {span(left)}"))


def _token_seconds(text: str) -> float | None:
    """Returns for how many seconds a JWT is still valid, None if it does not say. Shows nothing of it."""
    parts = text.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"]) - _now()
    except (ValueError, KeyError, TypeError):
        return None


def _now() -> float:
    return datetime.now(UTC).timestamp()


def root(name: str, configured: RootCert) -> Iterator[Finding]:
    """Checks whether the root for verifying a server's certificate can be read, and is valid."""
    check = f"{name} root"
    if isinstance(configured, RootFile):
        try:
            pem = Path(configured.path).read_bytes()
        except OSError as error:
            yield failure(
                check, f"cannot read {configured.path}: {error.strerror}", "mount istio-ca-root-cert"
            )
            return
        where = configured.path
    elif isinstance(configured, RootStatic):
        pem = configured.pem.encode()
        where = "the inline root" if "-----BEGIN " in configured.pem else f"{configured.pem[:100]!r}"
    else:
        yield ok(check, "the roots of the operating system")
        return
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        yield failure(
            check,
            f"{where} is no certificate, nor a file with one: no server is trusted",
            "give it a PEM certificate",
        )
        return
    for one in certificates:
        yield from _validity(check, one, f"{where}: {_subject(one)}", "rotate the root certificate")


def _validity(check: str, certificate: x509.Certificate, what: str, advice: str) -> Iterator[Finding]:
    now = datetime.now(UTC)
    left = (certificate.not_valid_after_utc - now).total_seconds()
    if certificate.not_valid_before_utc > now:
        early = (certificate.not_valid_before_utc - now).total_seconds()
        yield failure(
            check,
            f"{what} is not valid for another {early:.0f} s: our clock is behind, or its maker's ahead",
            "set the clocks (NTP): date -u here and there",
        )
    elif left < 0:
        yield failure(check, f"{what} expired {-left / 3600:.1f} h ago", advice)
    elif left < _SOON:
        yield warning(check, f"{what} expires in {left / 3600:.1f} h", advice)
    else:
        yield ok(check, f"{what}, until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


def _subject(certificate: x509.Certificate) -> str:
    return _short(certificate.subject)


def _short(name: x509.Name) -> str:
    for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        found = name.get_attributes_for_oid(oid)
        if found:
            return str(found[0].value)
    return name.rfc4514_string() or "a nameless subject"


def names(hosts: list[str], resolve: Callable[[str], list[str]] | None = None) -> Iterator[Finding]:
    """Checks whether names resolve, and how quickly."""
    lookup = resolve or _resolve
    for host in dict.fromkeys(hosts):
        began = time.monotonic()
        try:
            addresses = lookup(host)
        except OSError as error:
            yield failure(
                "DNS",
                f"{host} does not resolve: {error.strerror or error}",
                "look at /etc/resolv.conf of this pod (dnsPolicy), and at the cluster's DNS",
            )
            continue
        seconds = time.monotonic() - began
        text = f"{host} is {', '.join(addresses[:3])} ({seconds * 1000:.0f} ms)"
        if seconds > _SLOW_NAMES:
            yield warning("DNS", text, "a nameserver of /etc/resolv.conf does not answer")
        else:
            yield ok("DNS", text)


def _resolve(host: str) -> list[str]:
    return list(
        dict.fromkeys(str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    )


def server(
    name: str,
    address: str | None,
    configured: RootCert,
    hostname: str | None,
    present: Callable[[str, int, RootCert, str], Served] | None = None,
) -> Iterator[Finding]:
    """Checks whether istiod or the CA can be reached, who signed its certificate, and whether we trust it."""
    if address is None:
        yield skipped(name, "none is configured")
        return
    host, port = host_and_port(address)
    where = f"{host}:{port}"
    try:
        served = (present or _present)(host, port, configured, hostname or host)
    except TimeoutError:
        yield failure(
            name,
            f"{where}: no answer within {PROBE_TIMEOUT:g} s: filtered",
            "let this pod reach it (NetworkPolicy)",
        )
        return
    except ConnectionRefusedError:
        yield failure(
            name, f"{where}: refused: nothing listens", "is istiod up? kubectl -n istio-system get pods"
        )
        return
    except (OSError, ValueError) as error:
        yield failure(
            name, f"{where}: {getattr(error, 'strerror', None) or error}", "is istiod up, and its name right?"
        )
        return
    issuer = _short(served.certificate.issuer)
    if served.error:
        yield failure(
            name,
            f"{where} is signed by {issuer}, and is not trusted: {served.error}",
            "the root in istio-ca-root-cert is another CA's than istiod's: which cluster, which revision?",
        )
        return
    yield from _validity(name, served.certificate, f"{where} answers, signed by {issuer}", "restart istiod")


def _present(host: str, port: int, configured: RootCert, hostname: str) -> Served:
    """Returns the certificate of a TLS server, and whether it is trusted."""
    error = ""
    der: bytes | None = None
    for verify in (True, False):
        context = _context(configured, verify=verify)
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT) as sock:
            try:
                with context.wrap_socket(sock, server_hostname=hostname) as tls:
                    der = tls.getpeercert(binary_form=True)
                break
            except ssl.SSLCertVerificationError as failed:
                error = failed.verify_message
    if der is None:
        raise OSError("it presented no certificate")
    return Served(x509.load_der_x509_certificate(der), error)


def _context(configured: RootCert, *, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif isinstance(configured, RootFile | RootStatic):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        if isinstance(configured, RootFile):
            context.load_verify_locations(configured.path)
        elif "-----BEGIN " in configured.pem:
            context.load_verify_locations(cadata=configured.pem)
    return context


def _connected(host: str, port: int, timeout: float) -> socket.socket:
    """Returns a connection that the redirection rules of a pod do not capture, if we may mark it.

    The caller closes it.
    """
    family, kind, protocol, _, name = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        sock.settimeout(timeout)
        sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


def peer(address: str, timeout: float = PROBE_TIMEOUT) -> Iterator[Finding]:
    """Checks whether a peer's HBONE port is open, refused or filtered."""
    host, port = address, 15008
    if address.count(":") == 1 or address.startswith("["):
        host, _, text = address.rpartition(":")
        if not text.isdigit():
            yield failure("peer", f"{address} is not an address, or address:port", "give an IP, or IP:15008")
            return
        host, port = host.strip("[]"), int(text)
    where = f"{host}:{port}"
    try:
        with _connected(host, port, timeout) as sock:
            found = (
                sock.getsockopt(socket.IPPROTO_IP, 14) if sock.family == socket.AF_INET else 0
            )  # IP_MTU, ip(7)
    except TimeoutError:
        yield failure(
            "peer",
            f"{where} is filtered: no answer within {timeout:g} s (ZT-NET-011)",
            f"allow TCP {port} in NetworkPolicies and firewalls between the nodes",
        )
    except ConnectionRefusedError:
        yield failure(
            "peer",
            f"{where} refused: no ztunnel serves that pod (ZT-NET-010)",
            "is ztunnel up on its node, and the pod in the mesh (istio.io/dataplane-mode=ambient)?",
        )
    except OSError as error:
        yield failure("peer", f"{where}: {error.strerror or error}", "is there a route from this node to it?")
    else:
        yield ok("peer", f"{where} is open" + (f", path MTU {found}" if found else ""))
