"""The environment as one frozen value: `load_config` reads it at start, all else is handed a `Config`."""

from ztunnel.config.errors import ConfigError
from ztunnel.config.load import load_config
from ztunnel.config.machine import load_from_machine
from ztunnel.config.model import (
    AuthSource,
    Config,
    ListenAddress,
    LocalFile,
    Localhost,
    LocalStatic,
    LocalXdsSource,
    ProxyMode,
    RootCert,
    RootFile,
    RootStatic,
    RootSystem,
    SocketConfig,
    TokenFile,
    TokenStatic,
    WorkloadInfo,
)
from ztunnel.config.values import split_address
from ztunnel.config.view import config_view, config_yaml

__all__ = [
    "AuthSource",
    "Config",
    "ConfigError",
    "ListenAddress",
    "LocalFile",
    "LocalStatic",
    "LocalXdsSource",
    "Localhost",
    "ProxyMode",
    "RootCert",
    "RootFile",
    "RootStatic",
    "RootSystem",
    "SocketConfig",
    "TokenFile",
    "TokenStatic",
    "WorkloadInfo",
    "config_view",
    "config_yaml",
    "load_config",
    "load_from_machine",
    "split_address",
]
