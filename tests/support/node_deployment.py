"""Shared mode in tests: one ztunnel on each node, in a namespace of its own, under a fake istio-cni.

As in production the ztunnel learns of pods from the CNI agent alone, opens its sockets in their namespaces,
and gets the mesh from elsewhere (here the local file).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tests.support.fake_cni import FakeCni
from tests.support.measured import measured_environment
from tests.support.pod import MeshPod, eventually
from ztunnel.certs.shared_root import VARIABLE as FAKE_CA_ROOT
from ztunnel.demo.dedicated import INHERITED, Ztunnel, ztunnel_command
from ztunnel.demo.network import Node, Pod
from ztunnel.messages import PodInfo

if TYPE_CHECKING:
    from tests.support.mesh import Mesh

WORKERS = "ZTUNNEL_TEST_WORKERS"
"""Of the tests' environment: worker processes of each ztunnel, one by default."""


class NodeZtunnel:
    """The CNI agent and the ztunnels of one node. The newest ztunnel serves new pods."""

    def __init__(self, mesh: Mesh, node: Node, command: Sequence[str] | None = None) -> None:
        self._command = list(command or ztunnel_command("proxy", "ztunnel"))
        self.mesh = mesh
        self.node = node
        self.socket = mesh.machine.directory / f"cni-{node.name}.sock"
        self.cni = FakeCni(self.socket)
        self.cni.__enter__()
        mesh.machine.on_close(lambda: self.cni.__exit__(None, None, None))
        self.ztunnels: list[Ztunnel] = []
        self.homes: list[Pod] = []

    @property
    def current(self) -> Ztunnel:
        """The newest ztunnel of the node."""
        return self.ztunnels[-1]

    def start(self, **environment: str | None) -> Ztunnel:
        """Start one more ztunnel, beside those that run. It is ready when this returns."""
        ztunnel = self.launch(environment)
        ztunnel.wait_ready()
        return ztunnel

    async def upgrade(self, **environment: str | None) -> tuple[Ztunnel, Ztunnel]:
        """Start a successor, and end the old one when that is ready, as a DaemonSet with surge does.

        Other tasks of the test go on meanwhile. Returns the old one, which is draining, and the new one.
        """
        old = self.current
        new = self.launch(environment)
        await eventually(lambda: new.ready() or new.process.returncode is not None, "ready", 60)
        assert new.process.returncode is None, new.process.output()[-4000:]
        old.process.signal(signal.SIGTERM)
        return old, new

    def launch(
        self,
        environment: Mapping[str, str | None] | None = None,
        *,
        home: Pod | None = None,
        prefix: Sequence[str] = (),
    ) -> Ztunnel:
        """Start one more ztunnel and do not wait for it.

        environment: further variables, None for one that is not to be set. home: the pod it lives in; a new
        one by default. prefix: a command that starts its command, with limits for instance.
        """
        number = len(self.homes) + 1
        home = home or self.node.pod(f"zt{number}-{self.node.name}")
        self.homes.append(home)
        variables = {key: value for key, value in os.environ.items() if key in INHERITED}
        variables |= {
            "NODE_NAME": self.node.name,
            "INPOD_UDS": str(self.socket),
            "LOCAL_XDS_PATH": str(self.mesh.file),
            "XDS_ADDRESS": "",
            "FAKE_CA": "true",
            FAKE_CA_ROOT: str(self.mesh.root),
            "ISTIO_META_DNS_CAPTURE": "false",
            "LOG_FORMAT": "json",
            "RUST_LOG": "info,access=debug",
            "ZTUNNEL_WORKER_THREADS": os.environ.get(WORKERS, "1"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        variables |= measured_environment()
        all_variables: dict[str, str | None] = {**variables, **self.mesh.environment, **(environment or {})}
        process = self.mesh.machine.spawn(
            f"ztunnel-{self.node.name}-{number}",
            [*prefix, *self._command],
            env={name: value for name, value in all_variables.items() if value is not None},
            namespace=home.namespace,
        )
        self.ztunnels.append(Ztunnel(process, home.namespace))
        return self.current

    def add(self, pod: MeshPod) -> None:
        """Hand a pod to the newest ztunnel, as the CNI does when the pod starts."""
        info = PodInfo(pod.name, pod.namespace, pod.serviceaccount)
        ack = self.cni.add_pod(pod.uid, info, pod.pod.namespace.descriptor)
        assert ack.error == "", f"{pod.name}: {ack.error}"

    def remove(self, pod: MeshPod) -> None:
        """Tell every ztunnel of the node that a pod has gone."""
        self.cni.delete_pod(pod.uid)


class NodeDeployment:
    """A `tests.support.mesh.Deployment` in shared mode.

    environments, commands: further variables of the ztunnels of some nodes, and how they are started, by the
    node's name.
    """

    def __init__(
        self,
        environments: Mapping[str, Mapping[str, str | None]] | None = None,
        commands: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._environments = environments or {}
        self._commands = dict(commands or {})
        self.nodes: dict[str, NodeZtunnel] = {}

    def set_command(self, node: str, command: Sequence[str]) -> None:
        """Set how the ztunnels of a node are started. Call it before the first starts."""
        self._commands[node] = command

    def start(self, mesh: Mesh, pods: Sequence[MeshPod]) -> None:
        """Start the ztunnels of nodes that have none yet, and hand the pods over."""
        mesh.write_file()
        for pod in pods:
            node = self.node(mesh, pod.pod.node)
            if not node.ztunnels:
                node.start(**self._environments.get(node.node.name, {}))
            node.add(pod)

    def node(self, mesh: Mesh, node: Node) -> NodeZtunnel:
        """Returns what a node runs. The first call starts its CNI agent."""
        found = self.nodes.get(node.name)
        if found is None:
            found = self.nodes[node.name] = NodeZtunnel(mesh, node, self._commands.get(node.name))
        return found

    def update(self, mesh: Mesh) -> None:
        """Write the local file again. ztunnels watch it."""
        mesh.write_file()

    def restart(self, mesh: Mesh, pod: MeshPod) -> None:
        """Start a further ztunnel on the pod's node."""
        self.node(mesh, pod.pod.node).start()

    def remove(self, mesh: Mesh, pod: MeshPod) -> None:
        """Tell the ztunnels of the pod's node that it has gone."""
        self.node(mesh, pod.pod.node).remove(pod)

    def ztunnel(self, pod: MeshPod) -> Ztunnel:
        """Returns the process that serves a pod now."""
        return self.nodes[pod.pod.node.name].current
