"""Reads the environment into a `Config`.

`load_config` is a pure function of the environment and of the files that its reader returns. It reads the
variables in groups, with one function for each group. An invalid value prevents the start, and the error
names the variable, its value and what would be valid. So a typing error in a DaemonSet is found when it is
rolled out, and not when the value is first used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from ztunnel.config.config_errors import (
    ConflictingConfigError,
    InvalidVariableError,
)
from ztunnel.config.environment import Environment, ReadFile
from ztunnel.config.mesh import ProxyConfig, parse_mesh_file, parse_proxy_config
from ztunnel.config.model import (
    DEFAULT_MESH_CONFIG,
    DEFAULT_ROOT_CERT,
    DEFAULT_TOKEN,
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
from ztunnel.config.parse_values import (
    parse_address,
    parse_bool,
    parse_cpu_quantity,
    parse_header,
    parse_integer,
    parse_worker_threads,
)
from ztunnel.config.spelling import switch_warning, variable_warnings, word_warning
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity

_U32 = 0xFFFF_FFFF
_DEFAULTS = Config()


def load_config(
    environ: Mapping[str, str], *, read_file: ReadFile, cpu_count: int, args: Sequence[str] = ()
) -> Config:
    """Parse the environment.

    read_file: returns a file's text, or None when the path does not exist (and for text that cannot be a
        path). It raises OSError when the file cannot be read.
    cpu_count: the number of logical CPUs. args: the command line without the program's name.

    Raises ConfigError.
    """
    env = Environment(environ, read_file)
    mesh = _mesh_config(env)
    metadata = {**mesh.proxy_metadata, **dict(env.prefixed("ISTIO_META_"))}
    warnings: list[str] = []
    fields: dict[str, Any] = {}
    ipv6 = env.flag("IPV6_ENABLED", _DEFAULTS.ipv6_enabled)
    fields.update(_servers(env, mesh, metadata, ipv6=ipv6))
    fields.update(_names(env))
    fields.update(_mode(env))
    fields.update(_xds(env, mesh, warnings))
    fields.update(_ca(env, warnings))
    fields.update(_hbone(env))
    fields.update(_own(env))
    config = Config(
        **fields,
        proxy_args=" ".join(args),
        ipv6_enabled=ipv6,
        istio_version=environ.get("ISTIO_META_ISTIO_VERSION") or _DEFAULTS.istio_version,
        proxy_metadata=metadata,
        node_metadata_json=_json_metadata(env, warnings),
        socket_config=_socket_config(env),
        self_termination_deadline=_termination_deadline(env),
        num_worker_threads=_workers(env, mesh, cpu_count),
        auth=_auth(env),
        warnings=tuple(warnings),
    )
    _check_together(config)
    return replace(config, warnings=(*config.warnings, *_misspelled(env)))


def _misspelled(env: Environment) -> list[str]:
    """Returns warnings for misspelled variables. Call it when all variables have been read."""
    for name in ("RUST_LOG", "CLUSTER_ID", "ISTIO_META_CLUSTER_ID"):
        env.text(name)
    found = [switch_warning(name, env.text(name)) for name in _TRUE_ALONE]
    capture = env.text("ISTIO_META_DNS_CAPTURE")
    found.append(switch_warning("ISTIO_META_DNS_CAPTURE", capture.lower() if capture else None))
    found += [word_warning(name, env.text(name), words) for name, words in _WORDS.items()]
    warnings = [warning for warning in found if warning is not None]
    return warnings + variable_warnings(env.variables, env.known, env.prefixes)


_TRUE_ALONE = ("TLS12_ENABLED", "AUTHZ_POLICY_INFO_LOGGING")
_WORDS: Mapping[str, Mapping[str, str]] = {
    "LOG_FORMAT": {"": "lines are plain text", "json": "lines are JSON", "plain": "lines are plain text"},
    "COMPLIANCE_POLICY": {
        "": "any key exchange is accepted",
        "pqc": "post-quantum key exchange alone",
        "fips-140-2": "as without it; the policy is that of other components",
    },
}


def _mesh_config(env: Environment) -> ProxyConfig:
    text = env.read(DEFAULT_MESH_CONFIG)
    mesh = ProxyConfig() if text is None else parse_mesh_file(text, DEFAULT_MESH_CONFIG)
    override = env.text("PROXY_CONFIG")
    return mesh if override is None else mesh.overridden_by(parse_proxy_config(override))


def _servers(
    env: Environment, mesh: ProxyConfig, metadata: Mapping[str, str], *, ipv6: bool
) -> dict[str, Any]:
    wildcard = Config(ipv6_enabled=ipv6).wildcard
    socks5 = env.flag("UNSTABLE_ENABLE_SOCKS5", default=False)
    capture = metadata.get("DNS_CAPTURE")
    admin_port = 15000 if mesh.proxy_admin_port is None else mesh.proxy_admin_port
    stats_port = 15020 if mesh.stats_port is None else mesh.stats_port
    return {
        "proxy": env.flag("ENABLE_PROXY", _DEFAULTS.proxy),
        "dns_proxy": capture is None or capture.lower() == "true",
        "dns_proxy_addr": _dns_address(metadata.get("DNS_PROXY_ADDR"), ipv6=ipv6),
        "admin_addr": Localhost(ipv6, admin_port),
        "stats_addr": SocketAddress(wildcard, stats_port),
        "readiness_addr": SocketAddress(wildcard, 15021),
        "inbound_addr": SocketAddress(wildcard, 15008),
        "inbound_plaintext_addr": SocketAddress(wildcard, 15006),
        "outbound_addr": SocketAddress(wildcard, 15001),
        "socks5_addr": SocketAddress(IPv4Address("127.0.0.1"), 15080) if socks5 else None,
        "illegal_ports": _DEFAULTS.illegal_ports | ({15080} if socks5 else frozenset()),
    }


def _dns_address(text: str | None, *, ipv6: bool) -> ListenAddress:
    if text is None:
        return Localhost(ipv6, 15053)
    try:
        host, _, port = text.rpartition(":")
        if host.lower() == "localhost":
            return Localhost(ipv6, parse_integer(port, 1, 0xFFFF))
        return SocketAddress.parse(text)
    except ValueError as error:
        expected = "expected localhost:PORT or one ip:port"
        raise InvalidVariableError("ISTIO_META_DNS_PROXY_ADDR", text, expected) from error


def _names(env: Environment) -> dict[str, Any]:
    name, namespace = env.text("POD_NAME") or "", env.text("POD_NAMESPACE") or ""
    account = env.text("SERVICE_ACCOUNT") or ""
    trust_domain = env.nonempty("TRUST_DOMAIN") or "cluster.local"
    return {
        "network": env.text("NETWORK") or _DEFAULTS.network,
        "local_node": env.nonempty("NODE_NAME"),
        "local_ip": env.text("INSTANCE_IP") or _DEFAULTS.local_ip,
        "cluster_id": env.text("ISTIO_META_CLUSTER_ID") or env.text("CLUSTER_ID") or _DEFAULTS.cluster_id,
        "cluster_domain": env.text("CLUSTER_DOMAIN") or _DEFAULTS.cluster_domain,
        "pod_name": name,
        "pod_namespace": namespace,
        "ztunnel_identity": Identity(trust_domain, namespace, account) if namespace and account else None,
        "ztunnel_workload": (
            WorkloadInfo(name, namespace, account) if name and namespace and account else None
        ),
    }


def _mode(env: Environment) -> dict[str, Any]:
    text = env.text("PROXY_MODE")
    mode = {None: ProxyMode.SHARED, "shared": ProxyMode.SHARED, "dedicated": ProxyMode.DEDICATED}.get(text)
    if mode is None:
        raise InvalidVariableError("PROXY_MODE", text, "expected `shared` or `dedicated`")
    info = env.text("PROXY_WORKLOAD_INFO")
    parsed: WorkloadInfo | None = None
    if mode is ProxyMode.DEDICATED:
        parts = (info or "").split("/")
        if len(parts) != 3 or not all(parts):
            expected = "PROXY_MODE=dedicated needs the proxy's workload as namespace/name/service-account"
            raise InvalidVariableError("PROXY_WORKLOAD_INFO", info or "", expected)
        parsed = WorkloadInfo(name=parts[1], namespace=parts[0], service_account=parts[2])
    default_mark = _DEFAULTS.packet_mark if mode is ProxyMode.SHARED else None
    mark = env.parsed("PACKET_MARK", lambda value: parse_integer(value, 0, _U32), default_mark)
    return {
        "proxy_mode": mode,
        "proxy_workload_info": parsed,
        "packet_mark": mark or None,
        "enable_orig_src": env.parsed("ENABLE_ORIG_SRC", parse_bool, None),
        "inpod_uds": env.nonempty("INPOD_UDS") or _DEFAULTS.inpod_uds,
        "inpod_port_reuse": env.flag("INPOD_PORT_REUSE", _DEFAULTS.inpod_port_reuse),
        "localhost_app_tunnel": env.flag("LOCALHOST_APP_TUNNEL", _DEFAULTS.localhost_app_tunnel),
    }


def _default_istiod(env: Environment) -> str:
    if env.text("KUBERNETES_SERVICE_HOST"):
        return "https://istiod.istio-system.svc:15012"
    return "https://localhost:15012"


def _server_address(env: Environment, name: str, default: str) -> str | None:
    """Returns None when the variable is empty, which switches the client off."""
    return env.parsed(name, lambda text: parse_address(text) if text else "", default) or None


def _root_cert(env: Environment, name: str, warnings: list[str]) -> RootCert:
    text = env.text(name)
    value = DEFAULT_ROOT_CERT if text is None else text
    if value == "SYSTEM":
        return RootSystem()
    if value and env.exists(value):
        return RootFile(value)
    if "-----BEGIN " not in value:
        warnings.append(
            f"{name}: {value[:200]!r} is neither an existing file, nor SYSTEM, nor PEM text; "
            "no server will be trusted"
        )
    return RootStatic(value)


def _headers(env: Environment, prefix: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for rest, value in env.prefixed(prefix):
        try:
            pairs.append(parse_header(rest, value))
        except ValueError as error:
            raise InvalidVariableError(prefix + rest, None, str(error)) from error
    return tuple(pairs)


def _xds(env: Environment, mesh: ProxyConfig, warnings: list[str]) -> dict[str, Any]:
    discovery = mesh.discovery_address
    address = _server_address(env, "XDS_ADDRESS", _default_istiod(env) if discovery is None else discovery)
    path, inline = env.nonempty("LOCAL_XDS_PATH"), env.nonempty("LOCAL_XDS")
    if path and inline:
        raise ConflictingConfigError("only one of LOCAL_XDS_PATH or LOCAL_XDS may be set")
    local: LocalXdsSource | None = LocalFile(path) if path else LocalStatic(inline) if inline else None
    return {
        "xds_address": address,
        # without a server there is nothing to verify, so no warning
        "xds_root_cert": _root_cert(env, "XDS_ROOT_CA", warnings if address else []),
        "xds_headers": _headers(env, "XDS_HEADER_"),
        "xds_on_demand": env.flag("XDS_ON_DEMAND", _DEFAULTS.xds_on_demand),
        "alt_xds_hostname": env.nonempty("ALT_XDS_HOSTNAME"),
        "local_xds": local,
        "prefered_service_namespace": env.nonempty("PREFERED_SERVICE_NAMESPACE"),
    }


def _ca(env: Environment, warnings: list[str]) -> dict[str, Any]:
    fake = env.flag("FAKE_CA", _DEFAULTS.fake_ca)
    if fake and env.text("KUBERNETES_SERVICE_HOST"):
        raise ConflictingConfigError(
            "FAKE_CA=true makes certificates that anybody could make and is refused in Kubernetes "
            "(KUBERNETES_SERVICE_HOST is set); unset FAKE_CA and set CA_ADDRESS"
        )
    address = None if fake else _server_address(env, "CA_ADDRESS", _default_istiod(env))
    if address is None and not fake:
        raise InvalidVariableError(
            "CA_ADDRESS",
            "",
            "a CA is needed: expected an address such as https://istiod.istio-system.svc:15012",
        )
    return {
        "ca_address": address,
        "ca_root_cert": _root_cert(env, "CA_ROOT_CA", warnings if address else []),
        "ca_headers": _headers(env, "CA_HEADER_"),
        "alt_ca_hostname": env.nonempty("ALT_CA_HOSTNAME"),
        "secret_ttl": env.seconds("SECRET_TTL", _DEFAULTS.secret_ttl),
        "fake_ca": fake,
        "fake_ca_root": env.nonempty("ZTUNNEL_FAKE_CA_ROOT"),
        "tls12_enabled": env.text("TLS12_ENABLED") == "true",
        "pqc": env.text("COMPLIANCE_POLICY") == "pqc",
        "crl_path": env.nonempty("CRL_PATH"),
    }


def _auth(env: Environment) -> AuthSource | None:
    text = env.text("AUTH_TOKEN")
    if text is None:
        return TokenFile(DEFAULT_TOKEN) if env.exists(DEFAULT_TOKEN) else None
    if not text:
        return None
    return TokenFile(text) if env.exists(text) else TokenStatic(text)


def _hbone(env: Environment) -> dict[str, Any]:
    d = _DEFAULTS
    return {
        "window_size": env.number("HTTP2_STREAM_WINDOW_SIZE", d.window_size, 1, 2**31 - 1),
        "connection_window_size": env.number(
            "HTTP2_CONNECTION_WINDOW_SIZE", d.connection_window_size, 65_535, 2**31 - 1
        ),
        "frame_size": env.number("HTTP2_FRAME_SIZE", d.frame_size, 16_384, 2**24 - 1),
        "pool_max_streams_per_conn": env.number(
            "POOL_MAX_STREAMS_PER_CONNECTION", d.pool_max_streams_per_conn, 1, 0xFFFF
        ),
        "pool_unused_release_timeout": env.seconds(
            "POOL_UNUSED_RELEASE_TIMEOUT", d.pool_unused_release_timeout
        ),
        "enable_response_baggage": env.flag("ENABLE_RESPONSE_BAGGAGE", d.enable_response_baggage),
        "authz_policy_info_logging": env.text("AUTHZ_POLICY_INFO_LOGGING") == "true",
    }


def _own(env: Environment) -> dict[str, Any]:
    """Variables of this implementation only; all begin with ``ZTUNNEL_``."""
    dropped = env.text("ZTUNNEL_METRICS_DROP_LABELS") or ""
    return {
        "workload_wait": env.seconds("ZTUNNEL_WORKLOAD_WAIT", _DEFAULTS.workload_wait),
        "metrics_max_series": env.number(
            "ZTUNNEL_METRICS_MAX_SERIES", _DEFAULTS.metrics_max_series, 1, 10**7
        ),
        "metrics_series_ttl": env.seconds("ZTUNNEL_METRICS_SERIES_TTL", _DEFAULTS.metrics_series_ttl),
        "connection_history": env.number(
            "ZTUNNEL_CONNECTION_HISTORY", _DEFAULTS.connection_history, 0, 10**6
        ),
        "tls_accelerator": env.flag("ZTUNNEL_TLS_ACCELERATOR", _DEFAULTS.tls_accelerator),
        "metrics_drop_labels": frozenset(label.strip() for label in dropped.split(",") if label.strip()),
    }


def _json_metadata(env: Environment, warnings: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in env.prefixed("ISTIO_METAJSON_"):
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            warnings.append(f"failed to parse ISTIO_METAJSON_{key}={value[:200]}")
    return found


def _socket_config(env: Environment) -> SocketConfig:
    d = _DEFAULTS.socket_config
    return SocketConfig(
        keepalive_enabled=env.flag("KEEPALIVE_ENABLED", d.keepalive_enabled),
        keepalive_time=env.seconds("KEEPALIVE_TIME", d.keepalive_time),
        keepalive_interval=env.seconds("KEEPALIVE_INTERVAL", d.keepalive_interval),
        keepalive_retries=env.number("KEEPALIVE_RETRIES", d.keepalive_retries, 0, _U32),
        user_timeout_enabled=env.flag("USER_TIMEOUT_ENABLED", d.user_timeout_enabled),
    )


def _termination_deadline(env: Environment) -> float:
    """The kubelet kills after the grace period; a part of it is kept for shutting down after the drain."""
    grace = env.parsed(
        "TERMINATION_GRACE_PERIOD_SECONDS", lambda text: parse_integer(text, 0, _U32), default=None
    )
    default = _DEFAULTS.self_termination_deadline
    if grace is not None:
        default = float(max(1, grace - 5 if grace > 10 else grace - 1))
    return env.seconds("CONNECTION_TERMINATION_DEADLINE", default)


def _workers(env: Environment, mesh: ProxyConfig, cpu_count: int) -> int:
    limit = env.parsed("ZTUNNEL_RESOURCE_CPU_LIMIT", parse_cpu_quantity, default=None)
    request = env.parsed("ZTUNNEL_RESOURCE_CPU_REQUEST", parse_cpu_quantity, default=None) or 0
    cpus = limit or env.number("ZTUNNEL_CPU_LIMIT", cpu_count, 0, _U32) or cpu_count
    if env.text("ZTUNNEL_WORKER_THREADS") is not None:
        return env.parsed("ZTUNNEL_WORKER_THREADS", lambda text: parse_worker_threads(text, cpus), 1)
    if mesh.concurrency is not None:
        return mesh.concurrency or cpus
    if limit is not None:
        return max(limit, request)
    return max(math.ceil(cpus / 4), request, 2)


def _check_together(config: Config) -> None:
    if not config.proxy and not config.dns_proxy:
        raise ConflictingConfigError("ztunnel run without any servers enabled")
    if config.xds_on_demand and config.dns_proxy:
        raise ConflictingConfigError(
            "error parsing proxy config: DNS proxy does not currently support on-demand mode"
        )
