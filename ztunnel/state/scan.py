"""The keys of a workload, read from its bytes in a few microseconds.

The store keeps a workload as the bytes that came. To index it, it needs its uid, addresses, network, services
and a few words more; to accept it, it has to know that *all* of it can be read. What could be refused besides
are numbers of enumerations, and messages within the workload (a service with its ports, a locality, a
waypoint). Those are the same for many workloads: they stay bytes here (`wire.ADDRESS_KEYS`), and each
distinct one is read properly once. A workload that is not as usual is read in full.
"""

from __future__ import annotations

from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from ztunnel.model.address import NamespacedHostname
from ztunnel.model.workload import HealthStatus, NetworkMode, Protocol
from ztunnel.protobuf import WireError
from ztunnel.state import convert, wire
from ztunnel.state.convert import ServiceParts, WorkloadParts
from ztunnel.state.description import DEFAULT_SERVICE_ACCOUNT, WORKLOAD
from ztunnel.state.kinds import RejectedError
from ztunnel.state.values import ip_from_bytes, namespaced_hostname, read_ports

Membership: TypeAlias = tuple[NamespacedHostname, bytes]
"""A service that a workload belongs to, and what it is there (`convert.pack_endpoint`)."""

_MEMORY = 8192
"""Distinct inner messages to remember; with more than that the memory starts anew."""

_WORKLOAD = b"\x0a"
"""The first byte of an Address that holds a workload."""

_INNER_NAMES = WORKLOAD.messages
_INNER = attrgetter(*_INNER_NAMES)
_NO_INNER = (b"",) * len(_INNER_NAMES)
_NUMBERS = attrgetter(*WORKLOAD.numbers)
_TAKEN = frozenset(product(*WORKLOAD.numbers.values()))


class WorkloadKeys(NamedTuple):
    """What the indexes need of a workload.

    addresses: each as (IP version, number); none for one on its host's network, which
        is never found by address.
    on_node: the workload runs on our node, or our node has no name.
    account: (name, namespace, service account), None unless ``on_node``.
    hostname: (namespace, hostname), None for one without a hostname.
    """

    uid: str
    network: str
    addresses: tuple[tuple[int, int], ...]
    hbone: bool
    native_tunnel: bool
    services: tuple[Membership, ...]
    on_node: bool
    account: tuple[str, str, str] | None
    hostname: tuple[str, str] | None


class Scanner:
    """Reads the keys of many workloads, and remembers the inner messages that they share.

    Meant to live as long as one delta is being applied. ``node`` is our node's name, None if it has none.
    """

    __slots__ = ("_inner", "_node", "_services")

    def __init__(self, node: str | None) -> None:
        self._node = node
        # Plain ones: each workload looks into both, and the call of a cache would be 3 % of a first sync.
        self._services: dict[bytes, tuple[Membership, Membership]] = {}
        self._inner: set[tuple[bytes, ...]] = set()

    def scan(self, body: bytes, *, local: bool) -> WorkloadKeys | ServiceParts:
        """Returns the keys of a workload, or the whole of a service, from the bytes of an Address.

        ``local``: it is from the local file. Raises RejectedError.
        """
        if not local and body[:1] == _WORKLOAD:
            try:
                message = wire.understood(wire.ADDRESS_KEYS, body)
                if message is not None:
                    return self._quick(message.workload)
            except (DecodeError, WireError, RejectedError):
                pass  # the general reader says why
        parts = convert.address(body, local=local)
        return self.keys(parts) if isinstance(parts, WorkloadParts) else parts

    def keys(self, parts: WorkloadParts) -> WorkloadKeys:
        """Returns the keys of a workload that was read in full."""
        workload, services = parts
        on_node = self._node is None or workload.node == self._node
        return WorkloadKeys(
            uid=workload.uid,
            network=workload.network,
            addresses=()
            if workload.network_mode is NetworkMode.HOST_NETWORK
            else tuple((ip.version, int(ip)) for ip in workload.addresses),
            hbone=workload.protocol is Protocol.HBONE,
            native_tunnel=workload.native_tunnel,
            services=services,
            on_node=on_node,
            account=(workload.name, workload.namespace, workload.service_account) if on_node else None,
            hostname=(workload.namespace, workload.hostname) if workload.hostname else None,
        )

    def _quick(self, message: Any) -> WorkloadKeys:
        """Returns the same keys of a workload from the control plane. Raises what `scan` catches."""
        inner = _INNER(message)
        if inner != _NO_INNER and inner not in self._inner:
            self._read_inner(inner)
        if _NUMBERS(message) not in _TAKEN:
            raise RejectedError("an enumeration has a number that is not known")
        addresses = tuple(
            [
                (4 if len(octets) == 4 else ip_from_bytes(octets).version, int.from_bytes(octets, "big"))
                for octets in message.addresses
            ]
        )
        memberships: tuple[Membership, ...] = ()
        services = message.services
        if services:
            known = self._services
            status = message.status
            pairs = [(known.get(entry) or self._membership(entry))[status] for entry in services]
            memberships = tuple(pairs if len(pairs) == 1 else {pair[0]: pair for pair in pairs}.values())
        node = self._node
        on_node = node is None or message.node == node
        hostname = message.hostname
        return WorkloadKeys(
            message.uid,
            message.network,
            () if message.network_mode else addresses,
            message.tunnel_protocol == 1,
            message.native_tunnel,
            memberships,
            on_node,
            (message.name, message.namespace, message.service_account or DEFAULT_SERVICE_ACCOUNT)
            if on_node
            else None,
            (message.namespace, hostname) if hostname else None,
        )

    def _membership(self, body: bytes) -> tuple[Membership, Membership]:
        """Returns an entry of the map of services, as that of a healthy and of an unhealthy workload."""
        entry = wire.parse(wire.SERVICES_ENTRY, body)
        key, ports = namespaced_hostname(entry.key), read_ports(entry.value.ports)
        pair = (
            (key, convert.pack_endpoint(ports, HealthStatus.HEALTHY)),
            (key, convert.pack_endpoint(ports, HealthStatus.UNHEALTHY)),
        )
        if len(self._services) >= _MEMORY:
            self._services.clear()
        self._services[body] = pair
        return pair

    def _read_inner(self, inner: tuple[bytes, ...]) -> None:
        """Reads these inner messages as those of a workload that has nothing else."""
        fields = {name: body for name, body in zip(_INNER_NAMES, inner, strict=True) if body}
        convert.address(wire.ADDRESS_KEYS(workload=fields).SerializeToString(), local=False)
        if len(self._inner) >= _MEMORY:
            self._inner.clear()
        self._inner.add(inner)
