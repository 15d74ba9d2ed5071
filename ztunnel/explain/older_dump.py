"""Converts dumps of older versions of the Rust ztunnel into today's form. Pure.

The changes since then: workloads, services and policies were maps (services by virtual address, so a service
with two addresses came twice); an endpoint had no status, and its key was no uid; a gateway's port was called
``port``; a policy had no dry-run flag. The source is istioctl, which reads both (istio/istio,
istioctl/pkg/writer/ztunnel/configdump).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_the_form_of_today(dump: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a dump with lists of workloads, services and policies, each with what today's readers need."""
    services: dict[Any, Any] = {}
    for number, one in enumerate(_listed(dump.get("services"))):
        # If it is not a service, the reader reports the error.
        key = (one.get("namespace"), one.get("hostname")) if isinstance(one, Mapping) else number
        services.setdefault(key, _service(one))
    return {
        **dump,
        "workloads": [_with_gateways(one) for one in _listed(dump.get("workloads"))],
        "services": list(services.values()),
        "policies": [_policy(one) for one in _listed(dump.get("policies"))],
    }


def _listed(found: Any) -> list[Any]:
    if isinstance(found, Mapping):
        return list(found.values())
    return found if isinstance(found, list) else []


def _service(value: Any) -> Any:
    value = _with_gateways(value)
    if not isinstance(value, Mapping):
        return value
    endpoints = value.get("endpoints")
    if not isinstance(endpoints, Mapping):
        return value
    return {**value, "endpoints": dict(map(_endpoint, endpoints, endpoints.values()))}


def _endpoint(key: Any, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, Mapping):
        return key, value
    known = {name: value[name] for name in ("workloadUid", "port", "status") if name in value}
    return value.get("workloadUid", key), {"status": "Healthy", **known}


def _with_gateways(value: Any) -> Any:
    """Returns the object without null values, and with gateways' ports under their present name."""
    if not isinstance(value, Mapping):
        return value
    shown = {name: item for name, item in value.items() if item is not None}
    for name in ("waypoint", "networkGateway"):
        gateway = shown.get(name)
        if isinstance(gateway, Mapping) and "port" in gateway:
            shown[name] = {
                "destination": gateway.get("destination"),
                "hboneMtlsPort": gateway["port"],
            }
    return shown


def _policy(value: Any) -> Any:
    return {"dryRun": False, **value} if isinstance(value, Mapping) else value
