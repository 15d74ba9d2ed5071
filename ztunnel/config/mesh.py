"""Mesh config: ``defaultConfig`` of a file, and the same object in ``PROXY_CONFIG``, merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ztunnel.config.config_errors import MeshConfigError
from ztunnel.config.parse_values import parse_address

_PREFIX = "ISTIO_META_"


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The settings that mesh config may have. ``proxy_metadata`` is without the prefix ``ISTIO_META_``."""

    discovery_address: str | None = None
    proxy_admin_port: int | None = None
    stats_port: int | None = None
    concurrency: int | None = None
    proxy_metadata: Mapping[str, str] = field(default_factory=dict)

    def overridden_by(self, other: ProxyConfig) -> ProxyConfig:
        """Returns each field of ``other`` if it has a value, else ours. The metadata of both are merged."""

        def either(first: Any, second: Any) -> Any:
            return first if second is None else second

        return ProxyConfig(
            discovery_address=either(self.discovery_address, other.discovery_address),
            proxy_admin_port=either(self.proxy_admin_port, other.proxy_admin_port),
            stats_port=either(self.stats_port, other.stats_port),
            concurrency=either(self.concurrency, other.concurrency),
            proxy_metadata={**self.proxy_metadata, **other.proxy_metadata},
        )


def parse_mesh_file(text: str, path: str) -> ProxyConfig:
    """Read the mesh config file. Without ``defaultConfig`` all settings are empty. Raises MeshConfigError."""
    where = f"mesh config file {path}"
    document = _load(text, where)
    if document is None:
        return ProxyConfig()
    if not isinstance(document, dict):
        raise MeshConfigError(f"failed parsing {where}: expected a mapping")
    default = document.get("defaultConfig")
    return ProxyConfig() if default is None else _proxy_config(default, where)


def parse_proxy_config(text: str) -> ProxyConfig:
    """Read ``PROXY_CONFIG``, YAML or JSON. Raises MeshConfigError."""
    where = "proxy config env"
    document = _load(text, where)
    return ProxyConfig() if document is None else _proxy_config(document, where)


def _load(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise MeshConfigError(f"failed parsing {where}: {error.problem or 'invalid YAML'}{place}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MeshConfigError(f"failed parsing {where}: invalid YAML") from error


def _proxy_config(value: Any, where: str) -> ProxyConfig:
    if not isinstance(value, dict):
        raise MeshConfigError(f"failed parsing {where}: expected a mapping")
    if "proxyMetadata" not in value:
        raise MeshConfigError(f"failed parsing {where}: missing field 'proxyMetadata'")
    metadata = value["proxyMetadata"]
    if not isinstance(metadata, dict) or not all(isinstance(k, str) for k in metadata):
        raise MeshConfigError(f"failed parsing {where}: proxyMetadata: expected a mapping of strings")
    for key, item in metadata.items():
        if not isinstance(item, str):
            raise MeshConfigError(
                f"failed parsing {where}: proxyMetadata.{key}: expected a string; put the value in quotes"
            )
    return ProxyConfig(
        discovery_address=_address(value.get("discoveryAddress"), where),
        proxy_admin_port=_u16(value, "proxyAdminPort", where),
        stats_port=_u16(value, "statsPort", where),
        concurrency=_u16(value, "concurrency", where),
        proxy_metadata={key.removeprefix(_PREFIX): item for key, item in metadata.items()},
    )


def _address(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise MeshConfigError(f"failed parsing {where}: discoveryAddress: expected a string")
    if not value:
        return ""
    try:
        return parse_address(value)
    except ValueError as error:
        raise MeshConfigError(f"failed parsing {where}: discoveryAddress: {value}: {error}") from error


def _u16(value: Mapping[str, Any], key: str, where: str) -> int | None:
    number = value.get(key)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 0xFFFF:
        raise MeshConfigError(f"failed parsing {where}: {key}: expected a whole number from 0 to 65535")
    return number
