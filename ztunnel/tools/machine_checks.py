"""Checks of the machine: TLS, capabilities, the agent's socket, ports, descriptors, connection tracking, MTU.

Each check takes what it reads as parameters, so that tests can simulate each problem; the defaults are the
machine's.
"""

from __future__ import annotations

import resource
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ztunnel.config.model import Config, Localhost, ProxyMode
from ztunnel.tls.accelerated import unavailable
from ztunnel.tools.findings import Finding, failure, ok, skipped, warning

CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}
"""The capabilities that are needed, with their bits (capabilities(7))."""
_WHY = {
    "NET_ADMIN": "to mark its packets and to show clients' addresses to applications",
    "NET_RAW": "to mark its packets and to bind to foreign addresses",
    "SYS_ADMIN": "to enter the pods' network namespaces",
}
_FEW = 4096
_CROWDED = 0.8
_SMALL_MTU = 1280


def capabilities(config: Config, status: Path = Path("/proc/self/status")) -> Iterator[Finding]:
    """Checks whether this process may do what a node's ztunnel does."""
    if config.proxy_mode is not ProxyMode.SHARED:
        yield skipped("capabilities", "a dedicated ztunnel needs none")
        return
    held = 0
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
    missing = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    for name in missing:
        yield failure(
            "capabilities",
            f"CAP_{name} is missing: ztunnel needs it {_WHY[name]}",
            f"add {name} to securityContext.capabilities.add of the DaemonSet, or run this as ztunnel's user",
        )
    if not missing:
        yield ok("capabilities", ", ".join(f"CAP_{name}" for name in CAPABILITIES))


def tls_records(config: Config, why_not: Callable[[], str | None] = unavailable) -> Iterator[Finding]:
    """Says whether TLS reads and writes are compiled. Python's are as right, and cost more CPU time."""
    if not config.tls_accelerator:
        yield ok("TLS records", "in Python: ZTUNNEL_TLS_ACCELERATOR is off")
    elif (why := why_not()) is not None:
        yield ok("TLS records", f"in Python: {why}")
    else:
        yield ok("TLS records", "by the compiled part")


def namespaces(config: Config) -> Iterator[Finding]:
    """Checks whether the CNI agent, which hands over pods' network namespaces, can be reached."""
    if config.proxy_mode is not ProxyMode.SHARED:
        yield skipped("namespaces", "a dedicated ztunnel serves its own namespace")
        return
    path = Path(config.inpod_uds)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield failure(
            "namespaces",
            f"{path}: {error.strerror}: no CNI agent hands over pods",
            "is istio-cni-node up on this node, and is its socket's directory mounted (INPOD_UDS)?",
        )
        return
    if not stat.S_ISSOCK(mode):
        yield failure("namespaces", f"{path} is no socket", "let INPOD_UDS name istio-cni's ztunnel.sock")
        return
    # SOCK_SEQPACKET, as ztunnel does. Nothing is sent, so the agent ignores the connection.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(2)
        try:
            sock.connect(str(path))
        except OSError as error:
            yield failure(
                "namespaces",
                f"{path}: {error.strerror or error}: the CNI agent does not answer (ZT-ZDS-004)",
                "look at the istio-cni-node pod of this node",
            )
            return
    yield ok("namespaces", f"the CNI agent listens at {path}")


def ports(config: Config, *, running: bool) -> Iterator[Finding]:
    """Checks whether the node's own ports are free, or used by the ztunnel that runs here."""
    wanted = {"admin": config.admin_addr, "metrics": config.stats_addr, "readiness": config.readiness_addr}
    taken = []
    for name, address in wanted.items():
        port = address.port
        host = "127.0.0.1" if isinstance(address, Localhost) else ""
        with socket.socket(socket.AF_INET) as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((host, port))
            except OSError:
                taken.append(f"{port} ({name})")
    if not taken:
        yield ok("ports", "15000, 15020 and 15021 are free" if not running else "the ports can be bound")
    elif running:
        yield ok("ports", f"{', '.join(taken)} are held, and a ztunnel answers")
    else:
        yield failure(
            "ports",
            f"{', '.join(taken)} are taken, and no ztunnel answers there (ZT-OBS-001)",
            "ss -ltnp says by whom; proxyAdminPort and statsPort of the mesh config move ours",
        )


def descriptors(limit: tuple[int, int] | None = None) -> Iterator[Finding]:
    """Checks whether there may be enough descriptors: a connection takes two or three."""
    soft, hard = limit or resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW:
        yield warning(
            "descriptors",
            f"at most {hard} (ulimit -Hn): enough for about {hard // 3} connections",
            "raise LimitNOFILE of the container runtime",
        )
    else:
        yield ok("descriptors", f"{soft} now, at most {'any number' if hard < 0 else hard}")


def conntrack(directory: Path = Path("/proc/sys/net/netfilter")) -> Iterator[Finding]:
    """Checks whether the table of connection tracking is nearly full.

    When it is full, packets are dropped.
    """
    try:
        count = int((directory / "nf_conntrack_count").read_text())
        most = int((directory / "nf_conntrack_max").read_text())
    except (OSError, ValueError):
        yield skipped("conntrack", "connection tracking is not loaded here")
        return
    text = f"{count} of {most} entries"
    if count > _CROWDED * most:
        yield failure(
            "conntrack",
            f"{text}: new connections are about to be dropped",
            "raise net.netfilter.nf_conntrack_max",
        )
    else:
        yield ok("conntrack", text)


def mtu(directory: Path = Path("/sys/class/net")) -> Iterator[Finding]:
    """Checks whether an interface has an MTU that is too small for TLS records."""
    found: dict[str, int] = {}
    for interface in sorted(directory.iterdir()) if directory.is_dir() else ():
        try:
            found[interface.name] = int((interface / "mtu").read_text())
        except (OSError, ValueError):
            continue
    small = {name: size for name, size in found.items() if size < _SMALL_MTU and name != "lo"}
    for name, size in small.items():
        yield warning(
            "MTU",
            f"{name} has {size}: IPv6 needs {_SMALL_MTU}, and big TLS records may be lost in an overlay",
            "set the MTU of the CNI to that of the network, less the overlay's header",
        )
    if not small:
        shown = (
            ", ".join(f"{name} {size}" for name, size in found.items() if name != "lo")
            or "no interface but lo"
        )
        yield ok("MTU", shown)
