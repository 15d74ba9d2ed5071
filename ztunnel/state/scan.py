"""The keys of a workload, read from its bytes in a few microseconds.

The store keeps a workload as the bytes that came. To index it, it needs its uid, addresses, network, services
and a few words more; to accept it, it has to know that *all* of it can be read. Doing both with a general
reader takes several times as long as this does.

How it works. `Scanner.fast` walks over the fields of the one shape in which control planes really send
workloads: fields that the schema knows, with keys of one or two bytes, lengths under 16 KiB, no singular
text or message twice, known enumeration numbers. Each text is put aside by the first byte of its field's key
(unique among the fields of a workload), and all of them are tested for UTF-8 at once. Messages within a
workload (a service with its ports, a locality, a waypoint) are the same for many workloads, so each distinct
one is read properly once and then remembered by its bytes.

Whatever else it meets, it gives up, and the general reader (`ztunnel.state.convert`) decides. So `fast`
never refuses anything and has no error texts. It must only never accept what the general reader refuses,
nor see other keys; a property test holds it to that.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ztunnel.model.address import NamespacedHostname
from ztunnel.model.workload import HealthStatus, NetworkMode, Protocol, Workload
from ztunnel.state import convert, schema
from ztunnel.state.convert import RejectedError, ServiceParts, WorkloadParts
from ztunnel.state.wire import WireError, decode, read_varint

Membership: TypeAlias = tuple[NamespacedHostname, bytes]
"""A service that a workload belongs to, and what it is there (`convert.pack_endpoint`)."""


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


_OTHER, _TEXT, _ADDRESS, _SERVICE, _POLICY, _MESSAGE, _EXTENSION, _NUMBER = range(8)

# A key of a field from 16 to 31 takes two bytes, of which the first is the low byte of the key itself, and
# the second always 1. So the low byte of a key tells all fields of a workload apart.
_ROLES = [_OTHER] * 256
_FIELD_OF = {}
for _field_number, (_field, _wire_type, _) in schema.WORKLOAD.table.items():
    _byte = _field_number << 3 | _wire_type
    _FIELD_OF[_byte] = _field
    if _wire_type == 0:
        _ROLES[_byte] = _NUMBER
    elif _field.message is not None:
        _ROLES[_byte] = {22: _SERVICE, 26: _EXTENSION}.get(_field_number, _MESSAGE)
    else:
        _ROLES[_byte] = {3: _ADDRESS, 16: _POLICY}.get(_field_number, _TEXT)

_NAME, _NAMESPACE, _NETWORK, _NODE, _SERVICE_ACCOUNT = 0x0A, 0x12, 0x22, 0x4A, 0x3A
_UID, _HOSTNAME = 0xA2, 0xAA
_TUNNEL, _TYPE, _NATIVE, _STATUS, _MODE = 0x28, 0x60, 0x70, 0x88, 0xC8
_HIGHEST = {_TUNNEL: 1, _TYPE: 127, _NATIVE: 127, _STATUS: 1, _MODE: 1}
"""The numbers up to which a field is plainly valid."""

_MEMORY = 8192
"""Distinct inner messages to remember; with more than that the memory starts anew."""


class Scanner:
    """Reads the keys of many workloads, and remembers the inner messages that they share.

    Meant to live as long as one delta is being applied. ``node`` is our node's name, None if it has none.
    """

    __slots__ = ("_messages", "_node", "_node_bytes", "_services")

    def __init__(self, node: str | None) -> None:
        self._node = node
        self._node_bytes = None if node is None else node.encode()
        self._services: dict[bytes, tuple[Membership, Membership]] = {}
        self._messages: set[bytes] = set()

    def scan(self, body: bytes, *, local: bool) -> WorkloadKeys | ServiceParts:
        """The keys of a workload, or the whole of a service, from the bytes of an Address.

        ``local``: it is from the local file. Raises RejectedError.
        """
        if not local:
            keys = self.fast(body)
            if keys is not None:
                return keys
        parts = convert.address(body, local=local)
        return self.keys(parts) if isinstance(parts, WorkloadParts) else parts

    def keys(self, parts: WorkloadParts) -> WorkloadKeys:
        """The same keys from a workload that was read in full."""
        workload, services = parts
        return WorkloadKeys(
            uid=workload.uid,
            network=workload.network,
            addresses=()
            if workload.network_mode is NetworkMode.HOST_NETWORK
            else tuple((ip.version, int(ip)) for ip in workload.addresses),
            hbone=workload.protocol is Protocol.HBONE,
            native_tunnel=workload.native_tunnel,
            services=services,
            on_node=self._node is None or workload.node == self._node,
            account=self._account(workload),
            hostname=(workload.namespace, workload.hostname) if workload.hostname else None,
        )

    def fast(self, body: bytes) -> WorkloadKeys | None:  # noqa: C901, PLR0912, PLR0915 - calls cost more than the rest
        """The keys of a workload that came over xDS, or None if it is not of the common shape."""
        end = len(body)
        if end < 2 or body[0] != 0x0A:
            return None
        texts: dict[int, bytes] = {}
        seen: dict[int, int] = {}
        addresses: list[tuple[int, int]] = []
        services: list[bytes] = []
        policies: list[bytes] = []
        count = 0
        roles = _ROLES
        try:
            size, pos = read_varint(body, 1, end)
            if pos + size != end:
                return None
            while pos < end:
                key = body[pos]
                size = body[pos + 1]
                pos += 2
                if key > 0x7F:
                    if size != 1:
                        return None
                    size = body[pos]
                    pos += 1
                role = roles[key]
                if role == _NUMBER:
                    if size > _HIGHEST[key]:
                        return None
                    seen[key] = size
                    continue
                if size > 0x7F:
                    more = body[pos]
                    if more > 0x7F:
                        return None
                    pos += 1
                    size = size & 0x7F | more << 7
                value = body[pos : pos + size]
                pos += size
                if role == _TEXT:
                    texts[key] = value
                    count += 1
                elif role == _SERVICE:
                    services.append(value)
                elif role == _ADDRESS:
                    if size == 4:
                        addresses.append((4, int.from_bytes(value, "big")))
                    elif size == 16:
                        addresses.append((6, int.from_bytes(value, "big")))
                    else:
                        return None
                elif role == _POLICY:
                    policies.append(value)
                elif role == _OTHER or key in seen or not self._readable(key, value):
                    return None
                elif role == _MESSAGE:
                    seen[key] = 0
            if pos != end or count != len(texts):
                return None
            if policies:
                str(b"\n".join(policies), "utf-8")
            # An ASCII byte between them keeps the halves of a broken character from becoming a whole one.
            joined = b"\n".join(texts.values())
            if not joined.isascii():
                str(joined, "utf-8")
            memberships: tuple[Membership, ...] = ()
            if services:
                memberships = self._memberships(services, seen.get(_STATUS, 0))
        except (IndexError, UnicodeDecodeError, WireError, RejectedError):
            return None
        get = texts.get
        hostname = get(_HOSTNAME)
        on_node = self._node_bytes is None or get(_NODE, b"") == self._node_bytes
        return WorkloadKeys(
            str(get(_UID, b""), "utf-8"),
            str(get(_NETWORK, b""), "utf-8"),
            () if seen.get(_MODE) else tuple(addresses),
            seen.get(_TUNNEL) == 1,
            bool(seen.get(_NATIVE)),
            memberships,
            on_node,
            (
                str(get(_NAME, b""), "utf-8"),
                str(get(_NAMESPACE, b""), "utf-8"),
                str(get(_SERVICE_ACCOUNT, b""), "utf-8") or convert.DEFAULT_SERVICE_ACCOUNT,
            )
            if on_node
            else None,
            (str(get(_NAMESPACE, b""), "utf-8"), str(hostname, "utf-8")) if hostname else None,
        )

    def _account(self, workload: Workload) -> tuple[str, str, str] | None:
        if self._node is not None and workload.node != self._node:
            return None
        return workload.name, workload.namespace, workload.service_account

    def _memberships(self, entries: list[bytes], status: int) -> tuple[Membership, ...]:
        known = [self._services.get(entry) or self._membership(entry) for entry in entries]
        if len(known) == 1:
            return (known[0][status],)
        return tuple({pair[status][0]: pair[status] for pair in known}.values())

    def _membership(self, entry: bytes) -> tuple[Membership, Membership]:
        """One entry of the map of services, as of a healthy and of an unhealthy workload."""
        fields = decode(schema.SERVICES_ENTRY, entry)
        key = convert.namespaced_hostname(fields.get("key", ""))
        ports = convert.port_map(fields.get("value", {}).get("ports", ()))
        pair = (
            (key, convert.pack_endpoint(ports, HealthStatus.HEALTHY)),
            (key, convert.pack_endpoint(ports, HealthStatus.UNHEALTHY)),
        )
        if len(self._services) >= _MEMORY:
            self._services.clear()
        self._services[entry] = pair
        return pair

    def _readable(self, key: int, value: bytes) -> bool:
        """Whether an inner message is one that `convert.workload` takes. May raise what `fast` catches."""
        message = b"%c%b" % (key, value)
        if message in self._messages:
            return True
        field = _FIELD_OF[key]
        if field.message is None:
            return False
        inner = decode(field.message, value)
        convert.workload({field.name: [inner] if field.repeated else inner}, local=False)
        if len(self._messages) >= _MEMORY:
            self._messages.clear()
        self._messages.add(message)
        return True
