"""The visible form of a configuration: ``config`` of the admin dump, and the YAML of the start-up log.

Token, local configuration and inline roots are left out. Of headers only the names are shown, because their
values may be secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

import yaml

from ztunnel.config.model import (
    Config,
    Localhost,
    LocalStatic,
    RootFile,
    RootStatic,
    RootSystem,
    SocketConfig,
    WorkloadInfo,
)
from ztunnel.model.address import SocketAddress

_HIDDEN = frozenset({"auth", "local_xds", "warnings"})
_SECONDS = frozenset(
    {
        "pool_unused_release_timeout",
        "secret_ttl",
        "self_termination_deadline",
        "workload_wait",
        "metrics_series_ttl",
        "keepalive_time",
        "keepalive_interval",
    }
)
_LISTENERS = frozenset({"admin_addr", "stats_addr", "readiness_addr", "dns_proxy_addr"})
_HEADERS = frozenset({"xds_headers", "ca_headers"})
# where the Rust ztunnel's name is not the field's
_NAMES = {
    "proxy_workload_info": "proxyWorkloadInformation",
    "enable_orig_src": "requireOriginalSource",
    "enable_response_baggage": "enableEnhancedBaggage",
}


def config_view(config: Config) -> dict[str, Any]:
    """JSON-ready values under camelCase keys, in the order of the fields."""
    return {
        _name(f.name): _shown(f.name, getattr(config, f.name))
        for f in fields(config)
        if f.name not in _HIDDEN
    }


def config_yaml(config: Config) -> str:
    """Returns the same as YAML text without a line break at the end, for ``running with config``."""
    text = yaml.safe_dump(config_view(config), sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text.rstrip("\n")


def duration_view(seconds: float) -> dict[str, int]:
    """Returns a duration as the dump shows it."""
    whole, nanos = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
    return {"secs": whole, "nanos": nanos}


def _name(field: str) -> str:
    if field in _NAMES:
        return _NAMES[field]
    first, *rest = field.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _shown(field: str, value: Any) -> Any:
    if field in _HEADERS:
        return [[key, "<redacted>"] for key, _ in value]
    if field in _SECONDS:
        return duration_view(value)
    if field in _LISTENERS:
        return {"Localhost": list(value)} if isinstance(value, Localhost) else {"SocketAddr": str(value)}
    return _plain(value)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Enum():
            return value.value
        case RootFile(path=path):
            return {"File": path}
        case RootStatic() | LocalStatic():
            return "Static"
        case RootSystem():
            return "Default"
        case SocketConfig():
            return {_name(f.name): _shown(f.name, getattr(value, f.name)) for f in fields(value)}
        case WorkloadInfo():
            return {_name(key): part for key, part in value._asdict().items()}
        case SocketAddress():
            return str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case frozenset():
            return sorted(value)
        case list() | tuple():
            return [_plain(item) for item in value]
    return str(value)
