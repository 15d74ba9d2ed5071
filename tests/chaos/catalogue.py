"""All faults: what each does to a running mesh, and how it is taken away again.

A fault is an async context manager: inside it is there, behind it is gone, though its consequences may not
be. What a cluster does by itself is part of the end of a fault: a kubelet starts a killed ztunnel again. An
end waits for nothing that another fault of the round may hold up: `mesh_ready` is asked when all are gone.
"""

from __future__ import annotations

from tests.chaos import control, machine, network, processes
from tests.chaos.scene import Fault
from tests.support.whole_mesh import WholeMesh

CATALOGUE: dict[str, Fault] = processes.FAULTS | network.FAULTS | control.FAULTS | machine.FAULTS

ABSENT = [] if "clock jumps" in CATALOGUE else ["clock jumps: libfaketime is not installed (make deps)"]
"""What this machine cannot do, and why."""


def mesh_ready(mesh: WholeMesh) -> str:
    """Empty when each node's newest ztunnel is ready and has CNI agent and istiod; else what is missing."""
    for name, node in mesh.deployment.nodes.items():
        if not node.current.ready():
            return f"ztunnel of node {name} is not ready"
        if not any(one.ready and not one.closed for one in node.cni.connections):
            return f"ztunnel of node {name} has no CNI agent"
    if sum(stream.is_open for stream in mesh.istiod.streams) < len(mesh.deployment.nodes):
        return "a ztunnel has no istiod"
    return ""
