"""Errors of the configuration: each names the variable, its value, and what would be valid."""

from __future__ import annotations

from typing import ClassVar

from ztunnel.errors import ZtunnelError

_SHOWN = 200


class ConfigError(ZtunnelError):
    """The process cannot start with this configuration. The text goes to stderr after ``Error: ``."""

    code: ClassVar[str] = "ZT-CFG-001"


class InvalidVariableError(ConfigError):
    """An environment variable has a value that cannot be used."""

    code: ClassVar[str] = "ZT-CFG-002"

    def __init__(self, name: str, value: str | None, expected: str) -> None:
        """Name the variable, its value (None: the value is secret and stays out) and what would be right."""
        if value is None:
            text = f"invalid env var {name} ({expected})"
        else:
            shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
            text = f"invalid env var {name}={shown} ({expected})"
        super().__init__(text)
        self.name = name


class MeshConfigError(ConfigError):
    """The mesh config file or ``PROXY_CONFIG`` cannot be used."""

    code: ClassVar[str] = "ZT-CFG-003"


class ConflictingConfigError(ConfigError):
    """Several values are valid by themselves, but not together."""

    code: ClassVar[str] = "ZT-CFG-004"


class UnreadableFileError(ConfigError):
    """A configured file exists, but cannot be read."""

    code: ClassVar[str] = "ZT-CFG-005"
