"""Reads and writes the headers of a CONNECT request: authority, Forwarded, baggage, traceparent.

We write the same bytes as the Rust ztunnel. What we read comes from a peer and may be anything; nothing here
raises an exception for it. Only ``:authority`` decides where a connection goes; the other headers describe it
for logs and metrics.

Sources: RFC 9113 section 8.5 (CONNECT), RFC 7239 (Forwarded), W3C Baggage and Trace Context; where Istio's
ztunnel is stricter than those, we do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import NamedTuple, TypeAlias

from ztunnel.model.address import SocketAddress, canonical
from ztunnel.model.workload import Workload

_HEX = frozenset("0123456789abcdef")
_USUAL_BAGGAGE = 512
"""Bytes of a baggage header up to which its values are remembered."""
_NOT_IN_HOST = frozenset(' "#/<>?@[]\\^`{|}:')
_WORKLOAD_KEYS = frozenset(f"k8s.{kind}.name" for kind in ("deployment", "cronjob", "pod", "job"))


class HostAuthority(NamedTuple):
    """An authority that names a host. ``str()`` gives ``host:port``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Authority: TypeAlias = SocketAddress | HostAuthority


def _port(text: str) -> int | None:
    if not 0 < len(text) <= 5 or not (text.isascii() and text.isdigit()):
        return None
    port = int(text)
    return port if port <= 0xFFFF else None


@lru_cache(maxsize=8192)
def _ipv4(text: str) -> IPv4Address:
    return IPv4Address(text)


def _host_is_printable(host: str) -> bool:
    return host.isascii() and host.isprintable() and _NOT_IN_HOST.isdisjoint(host)


def parse_authority(text: str) -> Authority | None:
    """Read the authority of a CONNECT: ``ip:port``, ``[v6]:port`` or ``host:port``; user info is dropped.

    Returns None when there is no port, the port is not 0 to 65535, or the host is none. IPv4-mapped
    addresses are unmapped. A host is returned as it was written: hostnames of services are compared exactly.
    """
    host, colon, port_text = text.rpartition("@")[2].rpartition(":")
    port = _port(port_text)
    if not colon or not host or port is None:
        return None
    if host[0] == "[":
        if host[-1] != "]" or "%" in host:
            return None
        try:
            return SocketAddress(canonical(IPv6Address(host[1:-1])), port)
        except ValueError:
            return None
    if host[-1].isdigit():
        try:
            return SocketAddress(_ipv4(host), port)
        except ValueError:
            pass
    return HostAuthority(host, port) if _host_is_printable(host) else None


def print_forwarded(client: SocketAddress, host: str | None = None) -> str:
    """Returns the Forwarded header: ``for="1.2.3.4:5";host=name``; without a host when no service is known.

    A hostname that would need quotes is left out.
    """
    if host and _host_is_printable(host) and ";" not in host and "," not in host:
        return f'for="{client}";host={host}'
    return f'for="{client}"'


def parse_forwarded_host(value: bytes | str | None) -> str | None:
    """Returns the ``host=`` of a Forwarded header, without quotes; None when it has none or is not ASCII.

    The parameter's name is matched in lower case only, as the Rust ztunnel does.
    """
    text = _ascii(value)
    if not text:
        return None
    for part in text.split(";"):
        name, equals, host = part.strip().partition("=")
        if equals and name == "host":
            return host.strip('"') or None
    return None


class Baggage(NamedTuple):
    """What a baggage header says of a workload. An item that is missing or empty is None."""

    cluster: str | None = None
    namespace: str | None = None
    workload_name: str | None = None
    service_name: str | None = None
    service_version: str | None = None
    region: str | None = None
    zone: str | None = None


_BAGGAGE_FIELDS = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "service.name": "service_name",
    "service.version": "service_version",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
    **dict.fromkeys(_WORKLOAD_KEYS, "workload_name"),
}


def print_baggage(workload: Workload) -> str:
    """Returns the baggage header that describes a workload; empty when nothing is known of it.

    Nothing is percent-encoded. An item whose value could break the header (a comma, a control or non-ASCII
    character) is left out.
    """
    locality = workload.locality
    return _baggage(
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{workload.workload_type}.name", workload.workload_name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", locality.region),
        ("cloud.availability_zone", locality.zone),
    )


@lru_cache(maxsize=1024)
def _baggage(*items: tuple[str, str]) -> str:
    # Each connection of a pod has the same.
    return ",".join(
        [
            f"{key}={value}"
            for key, value in items
            if value and value.isascii() and value.isprintable() and "," not in value
        ]
    )


def parse_baggage(values: Sequence[bytes | str]) -> Baggage:
    """Merge the lines of a baggage header, later items over earlier ones; unknown keys are ignored.

    Of ``key=a=b`` the value is ``a``. If any line is not ASCII, all of them are ignored.
    """
    if len(values) == 1 and len(values[0]) <= _USUAL_BAGGAGE:
        return _read_baggage((values[0],))
    return _merge_baggage(values)


def _merge_baggage(values: Sequence[bytes | str]) -> Baggage:
    found: dict[str, str | None] = {}
    for value in values:
        text = _ascii(value)
        if text is None:
            return Baggage()
        for item in text.split(","):
            pieces = item.split("=", 2)
            field = _BAGGAGE_FIELDS.get(pieces[0].strip())
            if field is not None and len(pieces) > 1:
                found[field] = pieces[1].strip() or None
    return Baggage(**found)


_read_baggage = lru_cache(maxsize=1024)(_merge_baggage)
"""For the short header of one line that ztunnels write, the same for each connection of a workload."""


class TraceParent(NamedTuple):
    """A W3C trace context. ``trace_id`` is 32 and ``parent_id`` 16 lower-case hexadecimal digits."""

    trace_id: str
    parent_id: str
    flags: str = "00"

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags}"

    @classmethod
    def generate(cls, random: Random) -> TraceParent:
        """Returns a new one. Neither id is ever zero, which the standard forbids."""
        return cls(f"{random.getrandbits(128) or 1:032x}", f"{random.getrandbits(64) or 1:016x}")


def parse_traceparent(value: bytes | str | None) -> TraceParent | None:
    """Read a traceparent header. Returns None for an invalid one, too."""
    text = _ascii(value)
    if text is None or len(text) != 55:
        return None
    parts = text.lower().split("-")
    if [len(part) for part in parts] != [2, 32, 16, 2] or not _HEX.issuperset("".join(parts)):
        return None
    version, trace_id, parent_id, flags = parts
    if version == "ff" or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return TraceParent(trace_id, parent_id, flags)


class ConnectHeaders(NamedTuple):
    """What the header fields of a CONNECT say, each field read once.

    network: the value of x-forwarded-network, None when it is absent. baggage: its lines, not yet parsed.
    """

    trace: TraceParent | None = None
    forwarded_host: str | None = None
    network: bytes | None = None
    baggage: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, fields: Iterable[tuple[bytes, bytes]]) -> ConnectHeaders:
        """Read all fields. Of repeated fields the last one counts, of traceparent the first valid one."""
        trace, forwarded, network = None, None, None
        baggage: list[bytes] = []
        for name, value in fields:
            if name == b"traceparent":
                trace = trace or parse_traceparent(value)
            elif name == b"forwarded":
                forwarded = value
            elif name == b"x-forwarded-network":
                network = value
            elif name == b"baggage":
                baggage.append(value)
        return cls(trace, parse_forwarded_host(forwarded), network, tuple(baggage))


NO_HEADERS = ConnectHeaders()


def is_foreign_network(x_forwarded_network: bytes | str | None, network: str) -> bool:
    """Returns whether the header is there and names a network other than ours, in whatever case.

    True means that the peer's address says nothing here, and its baggage describes the source.
    """
    if x_forwarded_network is None:
        return False
    text = _ascii(x_forwarded_network)
    return text is None or text.lower() != network.lower()


def _ascii(value: bytes | str | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            return None
    return value if value.isascii() else None
