"""Services, their endpoints, and the indexes that find them.

An endpoint is kept as a few packed bytes that all endpoints of the same kind share (`convert.pack_endpoint`),
because a mesh has at least as many endpoints as workloads. Model values of endpoints are made for the
services that are asked for, and kept up to date while they are remembered.

A service that was not received yet may have endpoints already: they are staged under its key, and taken over
when it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ztunnel.model.address import NamespacedHostname
from ztunnel.model.service import Endpoint, HealthPolicy, Service
from ztunnel.state import convert
from ztunnel.state.cache import GenerationCache
from ztunnel.state.convert import HEALTHY, ServiceParts, unpack_endpoint
from ztunnel.state.holders import Holders
from ztunnel.state.vips import Entry, VipIndex, namespace_of

_DECODED = 4096
_MATERIALIZED = 2048


class ServiceIndex:
    """All services, by key, hostname and virtual address, with their endpoints, and what is staged."""

    def __init__(self) -> None:
        self._entries: dict[NamespacedHostname, Entry] = {}
        self._by_hostname: Holders[str, Entry] = Holders(namespace_of)  # all in the block ""
        self._staged: dict[NamespacedHostname, dict[str, bytes]] = {}
        self._decoded: GenerationCache[NamespacedHostname, Service] = GenerationCache(_DECODED)
        self._materialized: GenerationCache[NamespacedHostname, dict[str, Endpoint]] = GenerationCache(
            _MATERIALIZED
        )
        self.vips = VipIndex()

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, key: NamespacedHostname) -> Entry | None:
        """Returns what is stored under a key."""
        return self._entries.get(key)

    def by_hostname(self, hostname: str) -> Sequence[Entry]:
        """Returns what is stored for a hostname, in store order."""
        return self._by_hostname.of("", hostname)

    def hostnames(self) -> list[str]:
        """Returns all hostnames of services, in no useful order."""
        return self._by_hostname.keys("")

    def staged(self) -> Mapping[NamespacedHostname, Mapping[str, bytes]]:
        """Returns the packed endpoints of each service that was not received. Not to be changed."""
        return self._staged

    def service(self, entry: Entry) -> Service:
        """Returns the model value of a stored service."""
        return self._decoded.get(entry.key) or self._decoded.put(entry.key, self.read(entry))

    def read(self, entry: Entry) -> Service:
        """Returns the model value, without remembering it: for going through all of them."""
        parts = convert.address(entry.body, local=entry.from_file)
        assert isinstance(parts, ServiceParts)  # else it would not have been stored here
        return parts.service

    def endpoints(self, key: NamespacedHostname) -> Mapping[str, Endpoint]:
        """Returns the endpoints of a service by uid. Not to be changed; it changes with the store."""
        endpoints = self._materialized.get(key)
        if endpoints is None:
            entry = self._entries.get(key)
            if entry is None:
                return {}
            endpoints = {uid: self.endpoint(uid, packed) for uid, packed in entry.endpoints.items()}
            self._materialized.put(key, endpoints)
        return endpoints

    def insert(self, parts: ServiceParts, body: bytes, *, from_file: bool) -> dict[str, bytes]:
        """Adds a service, in place of the one with its key, whose endpoints and staged ones it takes over.

        Returns the endpoints that it did not take, because they are not healthy, by uid.
        """
        service, written = parts
        key = service.key
        balancer = service.load_balancer
        accepts_all = balancer is not None and balancer.health_policy is HealthPolicy.ALLOW_ALL
        refused: dict[str, bytes] = {}
        endpoints: dict[str, bytes | Endpoint] = dict(written)
        old = self.remove(key)
        if old is not None:
            if endpoints or old.from_file or (old.accepts_all and not accepts_all):
                _take_over(endpoints, old.endpoints, refused, accepts_all=accepts_all or not old.accepts_all)
            else:
                endpoints = old.endpoints
        _take_over(endpoints, self._staged.pop(key, {}), refused, accepts_all=accepts_all)
        entry = self._entries[key] = Entry(key, body, endpoints, accepts_all, from_file)
        self._by_hostname.add("", key.hostname, entry)
        self.vips.insert(service, entry)
        return refused

    def remove(self, key: NamespacedHostname) -> Entry | None:
        """Removes a service and its endpoints. Returns what was stored."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.vips.remove(self.read(entry), entry)
            self._by_hostname.discard("", key.hostname, entry)
            self._decoded.drop(key)
            self._materialized.drop(key)
        return entry

    def add_endpoint(self, key: NamespacedHostname, uid: str, packed: bytes) -> bool:
        """Puts a workload among the endpoints of a service, or stages it for one that is not known.

        Returns False if the service does not take it, because it is not healthy; then it is none any more.
        """
        entry = self._entries.get(key)
        if entry is None:
            self.stage(key, uid, packed)
            return True
        if not (entry.accepts_all or packed[:1] == HEALTHY):
            self.remove_endpoint(key, uid)
            return False
        entry.endpoints[uid] = packed
        shown = self._materialized.get(key)
        if shown is not None:
            shown[uid] = self.endpoint(uid, packed)
        return True

    def stage(self, key: NamespacedHostname, uid: str, packed: bytes) -> None:
        """Keeps an endpoint of a service that is not known."""
        self._staged.setdefault(key, {})[uid] = packed

    def remove_endpoint(self, key: NamespacedHostname, uid: str) -> None:
        """Takes a workload from the endpoints of a service, or from what is staged for it."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.endpoints.pop(uid, None)
            (self._materialized.get(key) or {}).pop(uid, None)
        elif key in self._staged:
            self._staged[key].pop(uid, None)
            if not self._staged[key]:
                del self._staged[key]

    def endpoint(self, uid: str, packed: bytes | Endpoint) -> Endpoint:
        """Returns the endpoint that a workload is."""
        return packed if isinstance(packed, Endpoint) else unpack_endpoint(uid, packed)


def _take_over(
    into: dict[str, bytes | Endpoint],
    others: Mapping[str, bytes | Endpoint],
    refused: dict[str, bytes],
    *,
    accepts_all: bool,
) -> None:
    """Takes over what workloads said about themselves; what a file wrote was part of the old service."""
    for uid, packed in others.items():
        if isinstance(packed, bytes):
            (into if accepts_all or packed[:1] == HEALTHY else refused)[uid] = packed
