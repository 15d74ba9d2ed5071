"""The mesh part of ``/config_dump``, as values that JSON can hold.

Each function is a generator, so that a mesh of 100,000 workloads is never built in memory: the caller for
the dump takes some objects, lets connections be served, and goes on. None in between says that some work was
done, and it is time for a pause too. What is removed meanwhile is left out; what is added meanwhile may be.
Readers (istioctl among them) depend on the shapes: a field is left out or
not exactly as in the Rust ztunnel.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from heapq import merge
from typing import Any, TypeAlias

from ztunnel.model.service import Endpoint
from ztunnel.slices import batches
from ztunnel.state import wire
from ztunnel.state.description import AUTHORIZATION, ENDPOINT, SERVICE, WORKLOAD
from ztunnel.state.services import ServiceIndex
from ztunnel.state.store import MeshStore

Json: TypeAlias = dict[str, Any]

_RUN = 2048
"""Keys that are sorted without a pause: half a millisecond."""

_ENDPOINTS = 512
"""Endpoints that are shown without a pause."""


def dump_workloads(store: MeshStore) -> Iterator[Any]:
    """Yields all workloads, sorted by uid."""
    for uid in _sorted(store.workloads.uids()):
        if uid is None:
            yield None
            continue
        body = store.workloads.body(uid)
        if body is None:
            continue
        if store.workloads.from_file(uid):
            yield WORKLOAD.show(store.workloads.read(uid))
        else:
            yield WORKLOAD.display(wire.ADDRESS.FromString(body).workload)


def dump_services(store: MeshStore) -> Iterator[Any]:
    """Yields all services with their endpoints, sorted by hostname, those of one hostname in store order."""
    services = store.services
    for hostname in _sorted(services.hostnames()):
        if hostname is None:
            yield None
            continue
        for key in [entry.key for entry in services.by_hostname(hostname)]:
            entry = services.entry(key)
            if entry is not None:
                shown = SERVICE.show(services.read(entry))
                shown["endpoints"] = yield from _endpoints(services, entry.endpoints)
                yield shown


def dump_policies(store: MeshStore) -> Iterator[Any]:
    """Yields all policies, sorted by the key under which they are stored."""
    for key in _sorted(store.policies.keys()):
        policy = None if key is None else store.policies.get(key)
        if policy is not None:
            yield AUTHORIZATION.show(policy)
        elif key is None:
            yield None


def dump_staged(store: MeshStore) -> Iterator[Any]:
    """Yields the endpoints of services that were not received: ``namespace/hostname``, endpoints by uid."""
    services = store.services
    for key in sorted(services.staged()):
        shown = yield from _endpoints(services, services.staged().get(key, {}))
        yield str(key), shown


def _endpoints(
    services: ServiceIndex, endpoints: Mapping[str, bytes | Endpoint]
) -> Generator[None, None, Json]:
    """Returns the endpoints of a service by workload uid, with pauses: there may be as many as workloads."""
    shown: Json = {}
    kinds: dict[bytes | Endpoint, Json] = {}  # all are of few kinds
    for count, uid in enumerate(_sorted(list(endpoints)), 1):
        if uid is None or count % _ENDPOINTS == 0:
            yield None
        packed = None if uid is None else endpoints.get(uid)
        if uid is None or packed is None:
            continue
        if isinstance(packed, Endpoint):
            shown[uid] = ENDPOINT.show(packed)
            continue
        kind = kinds.get(packed)
        if kind is None:
            kind = kinds[packed] = ENDPOINT.show(services.endpoint(uid, packed))
        shown[uid] = {**kind, "workloadUid": uid}
    return shown


def _sorted(keys: list[str]) -> Iterator[str | None]:
    """Yields the keys in order, with pauses while many are being sorted."""
    if len(keys) <= _RUN:
        yield from sorted(keys)
        return
    runs = []
    for part in batches(keys, _RUN):
        runs.append(sorted(part))
        yield None
    yield from merge(*runs)
