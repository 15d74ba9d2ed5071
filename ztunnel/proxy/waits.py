"""Says in words what a task waits for, from the local variables of the function that waits.

The keys are qualified names of functions of the data path (tests/proxy/test_waits.py checks that they exist).
This code runs only when somebody looks at the tree of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztunnel.observe.task_tree import Words


def _connection(variables: Mapping[str, Any]) -> str | None:
    report = variables.get("report")
    if report is None:
        report = getattr(variables.get("self"), "_report", None)
    if report is None:
        return None
    received, sent = report.counted
    where = f" to {report.next_hop}" if report.next_hop is not None else ""
    return (
        f"connection {report.id} of pod {report.pod_name}{where}, {received} bytes to the server, {sent} back"
    )


def _window(variables: Mapping[str, Any]) -> str | None:
    stream = variables["self"]
    if stream.blocked:
        return f"stream {stream.id} waits until the tunnel's peer reads"
    return f"stream {stream.id} waits for the peer's window"


def _peer(variables: Mapping[str, Any]) -> str:
    key = variables["key"]
    return f"{key.next_hop} ({' or '.join(key.expected)})"


def _tunnel(variables: Mapping[str, Any]) -> str | None:
    return f"tunnel to {_peer(variables)}, {len(variables['tunnel'].streams)} streams"


WORDS: Words = {
    "CertificateStore.get": lambda v: f"waits for the certificate of {v['identity']}",
    "PodContext.local_workload": lambda v: f"waits for the control plane to tell of pod {v['self'].name}",
    "Pool.tunnel": lambda v: f"waits for a tunnel to {v['key'].next_hop}",
    "Pool._run": lambda v: None if "tunnel" in v else f"dials {_peer(v)}",
    "Pool._drive": _tunnel,
    "TunnelStream.wait_room": _window,
    "ClientStream.wait_response": lambda v: f"stream {v['self'].id} waits for the answer to its CONNECT",
    "OutboundProxy.serve": _connection,
    "_Connect.serve": _connection,
    "PlaintextProxy.serve": _connection,
}
