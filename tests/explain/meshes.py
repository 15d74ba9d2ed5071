"""Meshes for explanations: a hand-made one, and random ones as a store and as the dump of that store."""

from __future__ import annotations

import json
from random import Random

from tests.support.fake_mesh import FakeMesh
from tests.support.random_mesh import Builder
from ztunnel.dataplane.mesh_dump import dump_policies, dump_services, dump_staged, dump_workloads
from ztunnel.explain.saved_dump import SavedMesh, read_dump
from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind
from ztunnel.model.policy import (
    Action,
    Authorization,
    Match,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.state.convert import ServiceParts, WorkloadParts, body_of, pack_endpoint
from ztunnel.state.store import MeshStore


def store_of(mesh: FakeMesh) -> MeshStore:
    """A store that holds the mesh, filled in the order in which a dump shows it."""
    store = MeshStore(None)
    services = sorted(mesh.services.values(), key=lambda one: one.hostname)
    resources = [Resource(str(one.key), body_of(ServiceParts(one, {}))) for one in services]
    for workload in sorted(mesh.workloads.values(), key=lambda one: one.uid):
        endpoints = [(key, mesh.members.get(key, {}).get(workload.uid)) for key in workload.services]
        packed = tuple(
            (key, pack_endpoint({} if endpoint is None else endpoint.ports, workload.status))
            for key, endpoint in endpoints
        )
        resources.append(Resource(workload.uid, body_of(WorkloadParts(workload, packed))))
    policies = [Resource(one.key, body_of(one)) for one in mesh.policies.values()]
    for kind, parts in ((ResourceKind.ADDRESS, resources), (ResourceKind.AUTHORIZATION, policies)):
        done = store.apply(MeshDelta(1, kind, tuple(parts), origin=Origin.LOCAL))
        assert list(done.rejected) == []
    return store


def dump_text(store: MeshStore, **config: object) -> bytes:
    """The dump of a store, as ``/config_dump`` gives it."""
    return json.dumps(
        {
            "certificates": [],
            "config": config,
            "policies": list(dump_policies(store)),
            "services": list(dump_services(store)),
            "stagedServices": dict(dump_staged(store)),
            "workloads": list(dump_workloads(store)),
        }
    ).encode()


def saved(store: MeshStore, **config: object) -> SavedMesh:
    return read_dump(dump_text(store, **config))


def random_policy(random: Random, number: int) -> Authorization:
    """A policy with a rule or two, of every field somewhere."""

    def exact(text: str) -> StringMatch:
        return StringMatch(StringMatchKind.EXACT, text)

    def match() -> Match:
        def some(*values):
            return (random.choice(values),) if random.random() < 0.4 else ()

        return Match(
            namespaces=some(exact("default"), StringMatch(StringMatchKind.PRESENCE)),
            not_namespaces=some(StringMatch(StringMatchKind.PREFIX, "oth")),
            service_accounts=some(ServiceAccountMatch("default", "one"), ServiceAccountMatch("other", "two")),
            principals=some(StringMatch(StringMatchKind.SUFFIX, "/sa/one"), exact("td/ns/default/sa/two")),
            destination_ports=some(80, 8080),
            not_destination_ports=some(15008),
        )

    return Authorization(
        name=f"policy-{number}",
        namespace=random.choice(["default", "other"]),
        scope=random.choice([Scope.GLOBAL, Scope.NAMESPACE]),
        action=random.choice(list(Action)),
        rules=tuple(((match(), match()),) for _ in range(random.randint(0, 2))),
        dry_run=random.random() < 0.2,
    )


def random_mesh(seed: int) -> FakeMesh:
    """Services, workloads and policies that often meet."""
    random = Random(seed)
    build = Builder(random)
    mesh = FakeMesh()
    for index in range(3):
        service = build.service(index)
        mesh.services[service.key] = service
        mesh.members.setdefault(service.key, {})
    for index in range(7):
        build.workload(index, mesh)
    for number in range(random.randint(0, 3)):
        policy = random_policy(random, number)
        mesh.policies[policy.key] = policy
    return mesh
