"""The local file: workloads, services and policies without a control plane, or beside one.

`parse` reads the YAML text, `deltas` says what is to be put into force: all of it at first, and after a
change of the file only the difference, removals included. The file takes back only what is still its own,
not what xDS has replaced meanwhile. Whoever watches the file keeps the last good `LocalConfig` when a new
text is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind
from ztunnel.model.policy import Authorization
from ztunnel.state.convert import ServiceParts, WorkloadParts, file_service, file_workload, unpack_endpoint
from ztunnel.state.description import AUTHORIZATION, ENDPOINT, SERVICE, WORKLOAD
from ztunnel.state.local_reader import LocalConfigError, Reader, listed
from ztunnel.state.local_yaml import YamlError, read_yaml
from ztunnel.state.values import show_ports


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """All that the file says, in its order."""

    workloads: tuple[WorkloadParts, ...] = ()
    services: tuple[ServiceParts, ...] = ()
    policies: tuple[Authorization, ...] = ()


def parse(source: str) -> LocalConfig:
    """Read the text of the file. Empty text is an empty file. Raises LocalConfigError."""
    try:
        value = read_yaml(source)
    except YamlError as error:
        raise LocalConfigError(str(error)) from None
    file = Reader({} if value is None else value, "", ("workloads", "policies", "services"))
    return LocalConfig(
        workloads=file.nullable("workloads", listed(file_workload)) or (),
        policies=file.nullable("policies", listed(AUTHORIZATION.parse)) or (),
        services=file.nullable("services", listed(file_service)) or (),
    )


def deltas(config: LocalConfig, previous: LocalConfig | None, numbers: Iterator[int]) -> list[MeshDelta]:
    """What turns a store that holds ``previous`` into one that holds ``config``; the empty list for nothing.

    ``numbers`` gives each delta its number.
    """
    result = []
    for kind, resources_of in ((ResourceKind.ADDRESS, _addresses), (ResourceKind.AUTHORIZATION, _policies)):
        resources = resources_of(config)
        before = {} if previous is None else resources_of(previous)
        changed = tuple(Resource(name, body) for name, body in resources.items() if before.get(name) != body)
        removed = tuple(name for name in before if name not in resources)
        if changed or removed:
            result.append(MeshDelta(next(numbers), kind, changed, removed, Origin.LOCAL))
    return result


def static_config(config: LocalConfig | None) -> dict[str, list[dict[str, Any]]]:
    """The ``staticConfig`` part of ``/config_dump``: what the file says, without what was made of it."""
    if config is None:
        config = LocalConfig()
    return {
        "policies": [AUTHORIZATION.show(policy) for policy in config.policies],
        "services": [_service_json(service) for service in config.services],
        "workloads": [_workload_json(workload) for workload in config.workloads],
    }


def _workload_json(parts: WorkloadParts) -> dict[str, Any]:
    uid = parts.workload.uid
    services = {str(key): show_ports(unpack_endpoint(uid, packed).ports) for key, packed in parts.services}
    return WORKLOAD.show(parts.workload) | {"services": services}


def _service_json(parts: ServiceParts) -> dict[str, Any]:
    endpoints = {uid: ENDPOINT.show(endpoint) for uid, endpoint in sorted(parts.endpoints.items())}
    return SERVICE.show(parts.service) | {"endpoints": endpoints}


def _addresses(config: LocalConfig) -> dict[str, bytes]:
    """The bytes of workloads and services by the names under which they are removed."""
    workloads = {parts.workload.uid: workload_body(parts) for parts in config.workloads}
    services = {str(parts.service.key): service_body(parts) for parts in config.services}
    return workloads | services


def _policies(config: LocalConfig) -> dict[str, bytes]:
    return {policy.key: policy_body(policy) for policy in config.policies}


def workload_body(parts: WorkloadParts) -> bytes:
    """A workload as a resource of a delta whose origin is the local file."""
    return msgspec.json.encode({"workload": _workload_json(parts)})


def service_body(parts: ServiceParts) -> bytes:
    """A service as a resource of a delta whose origin is the local file."""
    return msgspec.json.encode({"service": _service_json(parts)})


def policy_body(policy: Authorization) -> bytes:
    """A policy as a resource of a delta whose origin is the local file."""
    return msgspec.json.encode(AUTHORIZATION.show(policy))
