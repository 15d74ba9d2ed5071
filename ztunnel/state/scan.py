"""The keys of a workload, read from its bytes in a few microseconds.

The store keeps a workload as the bytes that came. To index it, it needs its uid, addresses, network, services
and a few words more; to accept it, it has to know that *all* of it can be read. Nearly all workloads are
plain: they have nothing that could be refused but what is read here anyhow. The others are read in full.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from ztunnel.model.address import NamespacedHostname
from ztunnel.model.workload import HealthStatus, NetworkMode, Protocol, Workload
from ztunnel.state import convert, wire
from ztunnel.state.convert import ServiceParts, WorkloadParts
from ztunnel.state.description import DEFAULT_SERVICE_ACCOUNT, WORKLOAD
from ztunnel.state.values import ip_from_bytes, namespaced_hostname, read_ports

Membership: TypeAlias = tuple[NamespacedHostname, bytes]
"""A service that a workload belongs to, and what it is there (`convert.pack_endpoint`)."""

_MEMORY = 8192
"""Distinct memberships to remember; with more than that the memory starts anew."""


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
    """Reads the keys of many workloads, and remembers the memberships that they share.

    Meant to live as long as one delta is being applied. ``node`` is our node's name, None if it has none.
    """

    __slots__ = ("_node", "_services")

    def __init__(self, node: str | None) -> None:
        self._node = node
        self._services: dict[bytes, tuple[Membership, Membership]] = {}

    def scan(self, body: bytes, *, local: bool) -> WorkloadKeys | ServiceParts:
        """The keys of a workload, or the whole of a service, from the bytes of an Address.

        ``local``: it is from the local file. Raises RejectedError.
        """
        if not local:
            message = convert.decoded(wire.ADDRESS, body)
            if message.HasField("workload") and WORKLOAD.plain(message.workload):
                return self.quick(message.workload)
        parts = convert.address(body, local=local)
        return self.keys(parts) if isinstance(parts, WorkloadParts) else parts

    def keys(self, parts: WorkloadParts) -> WorkloadKeys:
        """The keys of a workload that was read in full."""
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
            account=_account(workload) if on_node else None,
            hostname=(workload.namespace, workload.hostname) if workload.hostname else None,
        )

    def quick(self, message: Any) -> WorkloadKeys:
        """The same keys of a workload from the control plane that is plain (`Record.plain`).

        Raises RejectedError.
        """
        addresses = tuple(
            [
                (4 if len(octets) == 4 else ip_from_bytes(octets).version, int.from_bytes(octets, "big"))
                for octets in message.addresses
            ]
        )
        status = message.status
        services = message.services
        memberships: tuple[Membership, ...] = ()
        if services:
            pairs = [self._membership(entry)[status] for entry in services]
            memberships = tuple(pairs if len(pairs) == 1 else dict(pairs).items())
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

    def _membership(self, entry: Any) -> tuple[Membership, Membership]:
        """One entry of the map of services, as of a healthy and of an unhealthy workload."""
        body = entry.SerializeToString()
        pair = self._services.get(body)
        if pair is None:
            key, ports = namespaced_hostname(entry.key), read_ports(entry.value.ports)
            pair = (
                (key, convert.pack_endpoint(ports, HealthStatus.HEALTHY)),
                (key, convert.pack_endpoint(ports, HealthStatus.UNHEALTHY)),
            )
            if len(self._services) >= _MEMORY:
                self._services.clear()
            self._services[body] = pair
        return pair


def _account(workload: Workload) -> tuple[str, str, str]:
    return workload.name, workload.namespace, workload.service_account
