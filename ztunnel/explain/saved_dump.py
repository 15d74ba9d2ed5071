"""Reads a saved ``config_dump`` as a mesh: ours or the Rust ztunnel's, which have the same form.

`ztunnel.explain.older_dump` converts those of older versions.

The dump's objects are put into a store as if the control plane had sent them, so every lookup is the real
one. A dump does not say in which order they came; where the order matters (several workloads with one
address, several services with one hostname), the order of the dump is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import msgspec

from ztunnel.errors import ZtunnelError
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.older_dump import in_the_form_of_today
from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind
from ztunnel.model.service import Endpoint
from ztunnel.state.convert import body_of, file_service, file_workload
from ztunnel.state.description import AUTHORIZATION, ENDPOINT, SERVICE, WORKLOAD
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.state.store import MeshStore


class DumpError(ZtunnelError):
    """A file is not a config dump, or cannot be read. The text says where."""

    code = "ZT-EXP-002"


class SavedMesh:
    """The mesh of a dump.

    dump: the parsed JSON, which is kept. Every workload counts as local. Raises DumpError.
    """

    def __init__(self, dump: Any) -> None:
        if not isinstance(dump, Mapping) or "workloads" not in dump:
            raise DumpError(
                "This is no config dump: it has no `workloads`. (GET :15000/config_dump gives one.)"
            )
        self.dump: Mapping[str, Any] = dump
        config = dump.get("config")
        self.setting = _setting(config if isinstance(config, Mapping) else {})
        self.store = MeshStore(None)
        self.catalogue = StoreCatalogue(self.store)
        try:
            self._fill(in_the_form_of_today(dump))
        except LocalConfigError as error:
            raise DumpError(f"The dump cannot be read: {error}") from error

    def _fill(self, dump: Mapping[str, Any]) -> None:
        numbers = count(1)
        services = [file_service(_service(value), f"services[{i}]") for i, value in _items(dump, "services")]
        ports: dict[str, dict[str, Mapping[int, int]]] = {}
        for service, endpoints in services:
            _collect(ports, str(service.key), endpoints)
        staged = dump.get("stagedServices")
        for key, value in (staged if isinstance(staged, Mapping) else {}).items():
            for uid, endpoint in value.items() if isinstance(value, Mapping) else ():
                own: Endpoint = ENDPOINT.parse(endpoint, f"stagedServices.{key}.{uid}")
                ports.setdefault(uid, {})[key] = own.ports
        resources = [Resource(str(one.service.key), body_of(one._replace(endpoints={}))) for one in services]
        for i, value in _items(dump, "workloads"):
            uid = file_workload(_workload(value, {}), f"workloads[{i}]").workload.uid
            # an endpoint that its service's health policy excludes is in no list, but the workload names it
            named: dict[str, Mapping[int, int]] = {key: {} for key in _service_keys(value)} | ports.get(
                uid, {}
            )
            resources.append(
                Resource(uid, body_of(file_workload(_workload(value, named), f"workloads[{i}]")))
            )
        policies = [AUTHORIZATION.parse(value, f"policies[{i}]") for i, value in _items(dump, "policies")]
        for kind, parts in (
            (ResourceKind.ADDRESS, resources),
            (ResourceKind.AUTHORIZATION, [Resource(one.key, body_of(one)) for one in policies]),
        ):
            done = self.store.apply(MeshDelta(next(numbers), kind, tuple(parts), origin=Origin.LOCAL))
            for name, reason in done.rejected:
                raise DumpError(f"The dump cannot be read: {name}: {reason}")


def read_dump(data: bytes) -> SavedMesh:
    """Returns the mesh of a dump's text. Raises DumpError."""
    try:
        return SavedMesh(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DumpError(f"This is no config dump: {error}") from error


def _collect(
    ports: dict[str, dict[str, Mapping[int, int]]], key: str, endpoints: Mapping[str, Endpoint]
) -> None:
    for uid, endpoint in endpoints.items():
        ports.setdefault(uid, {})[key] = endpoint.ports


def _items(dump: Mapping[str, Any], key: str) -> Iterator[tuple[int, Any]]:
    return iter(enumerate(dump[key]))


def _service_keys(workload: Any) -> list[str]:
    found = workload.get("services") if isinstance(workload, Mapping) else None
    return [str(key) for key in found or ()]


def _workload(value: Any, services: Mapping[str, Mapping[int, int]]) -> Any:
    """Returns a workload with these services; fields of newer versions are ignored."""
    if not isinstance(value, Mapping):
        return value
    return {**{key: item for key, item in value.items() if key in WORKLOAD.known}, "services": services}


def _service(value: Any) -> Any:
    """Returns a service. Older dumps write a range as ``network/cidr``."""
    if not isinstance(value, Mapping):
        return value
    known = {key: item for key, item in value.items() if key in SERVICE.known}
    ranges = known.get("cidrVips")
    if isinstance(ranges, list):
        known["cidrVips"] = [_range(one) if isinstance(one, str) else one for one in ranges]
    return known


def _range(text: str) -> dict[str, str]:
    network, _, cidr = text.partition("/")
    return {"network": network, "cidr": cidr}


def _setting(config: Mapping[str, Any]) -> Setting:
    default = Setting()
    ports = config.get("illegalPorts")
    return Setting(
        network=str(config.get("network") or ""),
        illegal_ports=(
            frozenset(port for port in ports if isinstance(port, int))
            if isinstance(ports, list)
            else default.illegal_ports
        ),
        localhost_app_tunnel=config.get("localhostAppTunnel") is not False,
        cluster_domain=str(config.get("clusterDomain") or default.cluster_domain),
    )
