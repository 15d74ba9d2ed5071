"""A pod of a test mesh: programs and sockets in it, and its ztunnel's log, metrics and state."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.demo import processes
from ztunnel.demo.dedicated import READINESS_PORT, MetricLine, Ztunnel
from ztunnel.demo.network import Pod
from ztunnel.demo.redirection import RedirectionOptions

if TYPE_CHECKING:
    from tests.support.mesh import Mesh


async def eventually(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Wait until a condition holds. Raises AssertionError with ``what`` if it never does."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not {what} within {timeout} s")
        await trio.sleep(0.02)


@dataclass(eq=False)
class MeshPod:
    """A pod with its place in the mesh.

    ``captured``: the redirection rules are in place and a ztunnel serves it. ``protocol``: what the mesh
    says, HBONE or TCP. ``registered``: whether the mesh has the pod. ``workload``: further keys of its
    workload in the local file. ``environment``: further variables of its ztunnel. ``root``: another CA than
    the mesh's.
    """

    mesh: Mesh
    pod: Pod
    namespace: str
    serviceaccount: str
    captured: bool = True
    protocol: str = "HBONE"
    registered: bool = True
    trust_domain: str = "cluster.local"
    redirection: RedirectionOptions | None = field(default_factory=RedirectionOptions)
    workload: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    root: Path | None = None

    @property
    def name(self) -> str:
        return self.pod.name

    @property
    def ipv4(self) -> str:
        return self.pod.ipv4

    @property
    def ipv6(self) -> str:
        if self.pod.ipv6 is None:
            raise RuntimeError("this kernel has no IPv6")
        return self.pod.ipv6

    @property
    def uid(self) -> str:
        return f"{self.mesh.cluster}//Pod/{self.namespace}/{self.name}"

    @property
    def principal(self) -> str:
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.serviceaccount}"

    @property
    def identity(self) -> str:
        return f"spiffe://{self.principal}"

    @property
    def ztunnel(self) -> Ztunnel:
        return self.mesh.deployment.ztunnel(self)

    # What runs in the pod.

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Returns a blocking socket of the pod's namespace. The caller closes it."""
        with self.pod.namespace.entered():
            return socket.socket(family, kind)

    async def connect(self, address: str, port: int, *, timeout: float = 30) -> trio.SocketStream:
        """Returns an application's connection from this pod. Raises OSError. The caller closes it."""
        sock = trio.socket.from_stdlib_socket(
            self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        )
        try:
            with trio.fail_after(timeout):
                await sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)

    def listen(self, port: int, address: str = "::") -> trio.SocketListener:
        """Returns a listening socket of the pod; ``::`` takes IPv4 too. The caller closes it."""
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(1024)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def run(self, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a program in the pod to its end."""
        return processes.run(command, namespace=self.pod.namespace, timeout=timeout)

    # What its ztunnel says.

    def log(self, **fields: Any) -> list[dict[str, Any]]:
        """Returns its ztunnel's JSON log lines with these fields. ``__`` in a name stands for a dot.

        All that was logged before the call is among them: lines are gathered for a moment before they are
        written, and an answer that comes after that moment shows that they are.
        """
        if self.ztunnel.process.returncode is None:
            time.sleep(DEFAULTS.log.gather)
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.ztunnel.http("GET", READINESS_PORT, "/healthz/ready?verbose")
        return self._written(fields)

    def _written(self, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        wanted = {key.replace("__", "."): value for key, value in fields.items()}
        found = []
        # The last line may be just being written.
        for line in self.ztunnel.process.output().rpartition("\n")[0].splitlines():
            if not line.startswith("{"):
                continue
            entry = json.loads(line)
            if all(entry.get(key) == value for key, value in wanted.items()):
                found.append(entry)
        return found

    def access_log(self, **fields: Any) -> list[dict[str, Any]]:
        """Returns the access log so far: finished and refused connections. `logged` waits for them."""
        found = self._written({"scope": "access", **fields})
        return [entry for entry in found if entry["message"] != "connection opened"]

    async def logged(self, *, count: int = 1, timeout: float = 30, **fields: Any) -> list[dict[str, Any]]:
        """Wait until the access log has ``count`` lines with these fields. Returns all of them."""
        deadline = time.monotonic() + timeout
        while len(found := self.access_log(**fields)) < count:
            if time.monotonic() > deadline:
                lines = "\n".join(map(str, self.access_log()[-10:]))
                raise AssertionError(
                    f"{self.name} logged {len(found)} of {count} lines with {fields}:\n{lines}"
                )
            await trio.sleep(0.02)
        return found

    def metrics(self, name: str, **labels: str) -> list[MetricLine]:
        """Returns the samples of a metric with these labels."""
        return [
            sample
            for sample in self.ztunnel.metrics()
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric over all series with these labels."""
        return sum(sample.value for sample in self.metrics(name, **labels))

    async def metric_reaches(self, value: float, name: str, **labels: str) -> None:
        """Wait until a metric's sum is at least ``value``, for ten seconds at most."""
        deadline = time.monotonic() + 10
        while (now := self.metric(name, **labels)) < value:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: {name} with {labels} is {now}, not {value}")
            await trio.sleep(0.02)

    def config_dump(self) -> dict[str, Any]:
        """Its ztunnel's state."""
        status, body = self.ztunnel.http("GET", 15000, "/config_dump")
        assert status == 200, body
        dump: dict[str, Any] = json.loads(body)
        return dump
