"""The content of the local file: workloads, services and policies without a control plane, or beside one.

`parse` reads the YAML text. `deltas` returns what to apply: everything at first, and after a change of the
file only the difference, with removals. The file removes only objects that are still its own, not those that
xDS has replaced meanwhile. `ztunnel.xds.local_source` watches the file and keeps the last good `LocalConfig`
when a new text is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind
from ztunnel.model.policy import Authorization
from ztunnel.state.convert import ServiceParts, WorkloadParts, body_of, file_service, file_workload, shown
from ztunnel.state.description import AUTHORIZATION
from ztunnel.state.kinds import Field, Kind, Record, many
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.xds.local_yaml import YamlError, read_yaml


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """The content of the file, in its order."""

    workloads: tuple[WorkloadParts, ...] = ()
    services: tuple[ServiceParts, ...] = ()
    policies: tuple[Authorization, ...] = ()


_FILE = Record(
    lambda **lists: LocalConfig(**{name: list_ or () for name, list_ in lists.items()}),
    Field("workloads", many(Kind(file_workload))._replace(default=None)),
    Field("policies", many(Kind(AUTHORIZATION.parse))._replace(default=None)),
    Field("services", many(Kind(file_service))._replace(default=None)),
)


def parse(source: str, bounds: ControlBounds = DEFAULTS.control) -> LocalConfig:
    """Reads the text of the file. Empty text is an empty file. Raises LocalConfigError."""
    try:
        value = read_yaml(source, bounds)
    except YamlError as error:
        raise LocalConfigError(str(error)) from None
    config: LocalConfig = _FILE.parse({} if value is None else value, "")
    return config


def deltas(config: LocalConfig, previous: LocalConfig | None, numbers: Iterator[int]) -> list[MeshDelta]:
    """Returns the deltas that turn a store with ``previous`` into one with ``config``, perhaps none.

    numbers: gives each delta its number.
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
    """Returns the ``staticConfig`` part of ``/config_dump``: the content of the file as written."""
    if config is None:
        config = LocalConfig()
    return {
        "policies": [shown(policy) for policy in config.policies],
        "services": [shown(service) for service in config.services],
        "workloads": [shown(workload) for workload in config.workloads],
    }


def _addresses(config: LocalConfig) -> dict[str, bytes]:
    """Returns the bytes of workloads and services by the names under which they are removed."""
    workloads = {parts.workload.uid: body_of(parts) for parts in config.workloads}
    services = {str(parts.service.key): body_of(parts) for parts in config.services}
    return workloads | services


def _policies(config: LocalConfig) -> dict[str, bytes]:
    return {policy.key: body_of(policy) for policy in config.policies}
