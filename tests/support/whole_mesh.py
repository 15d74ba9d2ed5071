"""Two nodes with all that a node depends on: istiod, a CA, a resolver, a CNI agent, a clock, a disk.

Mesh and certificates come from two stand-ins for istiod, so that each can fail alone. Each ztunnel has worker
processes, an /etc/resolv.conf that names a resolver of the test, its log on a small disk of its own, and,
where libfaketime is installed, a wall clock that a test can set. The monotonic clock is not changed. All
certificates of workloads live for a short time only.
"""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.census import take_census
from tests.support.control_plane import ControlledMesh, membership, service, workload
from tests.support.fake_istiod import FakeIstiod
from tests.support.fake_resolver import with_resolv_conf
from tests.support.mesh import Mesh
from tests.support.node_deployment import NodeDeployment, NodeZtunnel
from tests.support.pod import MeshPod
from ztunnel.demo.dedicated import ztunnel_command
from ztunnel.demo.network import Node
from ztunnel.demo.redirection import RedirectionOptions
from ztunnel.pb.istio import workload as pb
from ztunnel.pb.istio.security import Authorization

LOGS = 200
"""Ztunnels of one node, one after another, whose logs are on the small disk."""

DISK_BYTES = 1 << 30


def faketime_library() -> Path | None:
    """Returns the path of libfaketime, None where it is not installed."""
    return next(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1"), None)


@dataclass
class WholeMesh:
    """Client and neighbour on the first node, the server on the second, and a pod outside the mesh there."""

    controlled: ControlledMesh
    authority: FakeIstiod
    resolver: MeshPod
    disk: Path
    clocks: dict[str, Path]
    client: MeshPod
    neighbour: MeshPod
    server: MeshPod
    outside: MeshPod
    vip: str

    @property
    def mesh(self) -> Mesh:
        return self.controlled.mesh

    @property
    def istiod(self) -> FakeIstiod:
        return self.controlled.istiod

    @property
    def deployment(self) -> NodeDeployment:
        return self.controlled.deployment

    def node(self, pod: MeshPod) -> NodeZtunnel:
        """Returns what runs on a pod's node."""
        return self.deployment.nodes[pod.pod.node.name]

    def serve_certificates(self) -> None:
        """Start the CA, each time at the same port."""
        with self.controlled.home.namespace.entered():
            self.authority.start()

    def describe_server(self, *policies: str, **fields: object) -> pb.Address:
        """Returns the server as istiod describes it."""
        values: dict[str, object] = {"services": membership("web", {80: 8080})} | fields
        return pb.Address(workload=workload(self.server, policies=policies, **values))

    def put_server(self, *policies: str, **fields: object) -> None:
        """Let istiod send the server, with the policies that select it."""
        aliases = [f"/{address}" for address in self.server.pod.addresses]
        self.istiod.put(self.server.uid, self.describe_server(*policies, **fields), aliases=aliases)

    def put_policy(self, policy: Authorization) -> None:
        """Let istiod send a policy."""
        self.istiod.put(f"{policy.namespace}/{policy.name}", policy)

    def set_clock(self, node: NodeZtunnel, seconds: float) -> None:
        """Set the wall clock of a node's ztunnels so far ahead of the true one, or behind it."""
        _set_clock(self.clocks[node.node.name], seconds)

    @classmethod
    @contextmanager
    def open(
        cls, *, lifetime: float = 60.0, workers: int = 2, environment: Mapping[str, str] | None = None
    ) -> Iterator[WholeMesh]:
        """Yields such a mesh. Fails if anything of it is left afterwards.

        lifetime: of certificates, in seconds. environment: further variables of all ztunnels.
        """
        variables = {"ZTUNNEL_WORKER_THREADS": str(workers), "ISTIO_META_DNS_CAPTURE": "true"}
        with (
            ControlledMesh.open(environment=variables | dict(environment or {})) as controlled,
            _disk(controlled.mesh) as disk,
        ):
            mesh = controlled.mesh
            redirection = RedirectionOptions(dns=True)
            client = mesh.node("a").pod("client", redirection=redirection)
            neighbour = mesh.node("a").pod("neighbour", redirection=redirection)
            server = mesh.node("b").pod("server", redirection=redirection)
            outside = mesh.node("b").pod("outside", captured=False, registered=False)
            resolver = mesh.node("control").pod("resolver", captured=False, registered=False)
            made = cls(
                controlled=controlled,
                authority=FakeIstiod(controlled.ca, names=controlled.istiod.names, host=controlled.home.ipv4),
                resolver=resolver,
                disk=disk,
                clocks={},
                client=client,
                neighbour=neighbour,
                server=server,
                outside=outside,
                vip="10.96.0.10",
            )
            made.authority.lifetime = dt.timedelta(seconds=lifetime)
            made.serve_certificates()
            mesh.machine.on_close(made.authority.kill)
            mesh.environment["CA_ADDRESS"] = made.authority.address
            for name in ("a", "b"):
                made._prepare(mesh.node(name).node)
            made.istiod.put(
                "default/web.default.svc.cluster.local",
                pb.Address(service=service("web", made.vip, {80: 8080})),
                aliases=[f"/{made.vip}"],
            )
            controlled.register(client, neighbour)
            made.put_server()
            mesh.start()
            yield made
            name = mesh.machine.name
        census = take_census(name)
        assert census.empty, census

    def _prepare(self, node: Node) -> None:
        """Prepare a node before its first ztunnel starts."""
        directory = self.mesh.machine.directory
        resolv_conf = directory / "resolv.conf"
        resolv_conf.write_text(f"nameserver {self.resolver.ipv4}\noptions timeout:1 attempts:3\n")
        command = [*with_resolv_conf(resolv_conf), *ztunnel_command("proxy", "ztunnel")]
        library = faketime_library()
        if library is not None:
            clock = self.clocks[node.name] = directory / f"clock-{node.name}"
            _set_clock(clock, 0)
            settings = {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DISABLE_SHM": "1",
            }
            command = ["env", *[f"{name}={value}" for name, value in settings.items()], *command]
        self.deployment.set_command(node.name, command)
        for number in range(1, LOGS):
            name = f"ztunnel-{node.name}-{number}.log"
            (directory / name).symlink_to(self.disk / name)


def _set_clock(file: Path, seconds: float) -> None:
    """Set the clock's file in one step, because ztunnel may read it at any time."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+.0f}\n")
    new.rename(file)


@contextmanager
def _disk(mesh: Mesh) -> Iterator[Path]:
    """Mount a file system in memory."""
    path = mesh.machine.directory / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", path], check=True)
    try:
        yield path
    finally:
        # What still writes there ends with the machine, which is closed after this.
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """The disk has no room for another page."""
    _resize(disk, max(4096, os.statvfs(disk).f_frsize * _used_blocks(disk)))
    try:
        yield
    finally:
        _resize(disk, DISK_BYTES)


def _used_blocks(disk: Path) -> int:
    state = os.statvfs(disk)
    return state.f_blocks - state.f_bfree


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
