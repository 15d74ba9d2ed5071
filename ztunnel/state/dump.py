"""The mesh part of ``/config_dump``, as values that JSON can hold.

Each function is a generator, so that a mesh of 100,000 workloads is never built in memory: whoever asks for
the dump takes some objects, lets connections be served, and goes on. What is removed meanwhile is left out;
what is added meanwhile may be. Readers (istioctl among them) depend on the shapes: a field is left out or
not exactly as in the existing implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop
from typing import Any, TypeAlias

from ztunnel.model.policy import Authorization
from ztunnel.model.service import Endpoint, Service
from ztunnel.model.workload import Workload
from ztunnel.state import wire
from ztunnel.state.description import AUTHORIZATION, ENDPOINT, SERVICE, WORKLOAD
from ztunnel.state.store import MeshStore

Json: TypeAlias = dict[str, Any]


def dump_workloads(store: MeshStore) -> Iterator[Json]:
    """All workloads, sorted by uid."""
    for uid in _sorted(store.workloads.uids()):
        body = store.workloads.body(uid)
        if body is None:
            continue
        if store.workloads.from_file(uid):
            yield workload_json(store.workloads.stored(uid, body).workload)
        else:
            yield WORKLOAD.display(wire.ADDRESS.FromString(body).workload)


def dump_services(store: MeshStore) -> Iterator[Json]:
    """All services with their endpoints, sorted by hostname, those of one hostname in store order."""
    for hostname in _sorted(store.services.hostnames()):
        for key in [entry.key for entry in store.services.by_hostname(hostname)]:
            entry = store.services.entry(key)
            if entry is not None:
                yield service_json(store.services.read(entry), store.services.read_endpoints(entry))


def dump_policies(store: MeshStore) -> Iterator[Json]:
    """All policies, sorted by the key under which they are stored."""
    for key in _sorted(store.policies.keys()):
        policy = store.policies.get(key)
        if policy is not None:
            yield policy_json(policy)


def dump_staged(store: MeshStore) -> Iterator[tuple[str, Json]]:
    """The endpoints of services that were not received, as (``namespace/hostname``, endpoints by uid)."""
    for key in sorted(store.services.staged_keys()):
        yield str(key), endpoints_json(store.services.staged(key))


def workload_json(workload: Workload) -> Json:
    """One workload. Empty fields are left out, but for those that readers expect."""
    return WORKLOAD.show(workload)


def service_json(service: Service, endpoints: Mapping[str, Endpoint]) -> Json:
    """One service with its endpoints."""
    shown = SERVICE.show(service)
    shown["endpoints"] = endpoints_json(endpoints)
    return shown


def endpoints_json(endpoints: Mapping[str, Endpoint]) -> Json:
    """The endpoints of a service by workload uid, sorted."""
    return {uid: ENDPOINT.show(endpoint) for uid, endpoint in sorted(endpoints.items())}


def policy_json(policy: Authorization) -> Json:
    """One policy."""
    return AUTHORIZATION.show(policy)


def _sorted(keys: Iterable[str]) -> Iterator[str]:
    """The keys in order. Unlike `sorted`, this does the work bit by bit, as they are taken."""
    heap = list(keys)
    heapify(heap)
    while heap:
        yield heappop(heap)
