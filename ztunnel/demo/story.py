"""The demo in network namespaces: each step is done, checked and shown.

It shows what really happens: every excerpt is output of the programs, and a step with an unexpected result
ends the demo with DemoFailedError.
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ztunnel.certs.shared_root import write_root
from ztunnel.decide.balance import HBONE_PORT
from ztunnel.demo import processes
from ztunnel.demo.capture import Capture, reassemble, tls_records
from ztunnel.demo.dedicated import ADMIN_PORT, Ztunnel, connect, dedicated_environment, ztunnel_command
from ztunnel.demo.drawing import draw_mesh
from ztunnel.demo.machine import Machine
from ztunnel.demo.network import Network, Pod, RedirectionUnavailableError
from ztunnel.demo.port_forward import PortForward
from ztunnel.demo.redirection import RedirectionOptions
from ztunnel.demo.terminal import TerminalPage, log_excerpt, sample_excerpt
from ztunnel.demo.tour import go_round

APPLICATION_PORT = 8080
SOCKS5_PORT = 15080
GREETING = "Hello from the pod web."
REQUEST_TEXTS = ("GET / HTTP", "Host: ", GREETING)
# The application can see the client's address only if its answers are routed back to ztunnel.
WITHOUT_REDIRECTION = {"UNSTABLE_ENABLE_SOCKS5": "true", "ENABLE_ORIG_SRC": "false"}
SHOWN_LABELS = (
    "reporter",
    "source_principal",
    "destination_service",
    "connection_security_policy",
    "response_flags",
)
SHOWN_METRICS = {
    "client": {"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"},
    "web": {"istio_tcp_connections_opened_total", "istio_tcp_connections_failed_total"},
}


class DemoFailedError(RuntimeError):
    """A step had an unexpected result; the text says which."""


@dataclass(frozen=True, slots=True)
class DemoEnvironment:
    """``own_user_namespace``: the demo is root only of a user namespace that it made."""

    own_user_namespace: bool


@dataclass(frozen=True, slots=True)
class _DemoPod:
    pod: Pod
    ztunnel: Ztunnel


class _Mesh:
    """The pods of mesh.yaml with their ztunnels."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.file = copy_resource("mesh.yaml", machine.directory)
        self.workloads = load_workloads(self.file)
        self.vip = load_vip(self.file)
        self.network = Network(machine)
        self.socks5: str | None = None
        self.backend = ""
        self.pods: dict[str, _DemoPod] = {}
        self._root = write_root(machine.directory / "root.pem", datetime.now(UTC).timestamp())

    def build(self) -> None:
        """Make the pods and redirect their traffic; where that is not possible, note why in `socks5`."""
        made = []
        for workload in self.workloads:
            ipv4, ipv6 = workload["workloadIps"]
            made.append(self.network.node(workload["node"]).pod(workload["name"], ipv4=ipv4, ipv6=ipv6))
        try:
            for pod in made:
                self.backend = self.network.redirect(pod, RedirectionOptions())
        except RedirectionUnavailableError as error:
            self.socks5 = str(error)
        for pod, workload in zip(made, self.workloads, strict=True):
            environment = dedicated_environment(
                namespace=workload["namespace"],
                name=workload["name"],
                service_account=workload["serviceAccount"],
                mesh_file=self.file,
                root=self._root,
                inherit=os.environ,
                extra=WITHOUT_REDIRECTION if self.socks5 else None,
            )
            ztunnel = Ztunnel.start(self.machine, f"ztunnel-{pod.name}", environment, pod.namespace)
            self.pods[pod.name] = _DemoPod(pod, ztunnel)

    def start_server(self, pod: Pod) -> None:
        """An ordinary HTTP server."""
        directory = self.machine.directory / "www"
        directory.mkdir()
        (directory / "index.html").write_text(GREETING + "\n")
        command = [sys.executable, "-m", "http.server", str(APPLICATION_PORT), "--bind", "::"]
        server = self.machine.spawn("http-server", command, namespace=pod.namespace, directory=directory)

        def listening() -> bool:
            try:
                connect("127.0.0.1", APPLICATION_PORT, namespace=pod.namespace).close()
            except OSError:
                return False
            return True

        server.wait_until(listening, what="listening", timeout=20)

    def command(self) -> list[str]:
        """Returns an ordinary HTTP client that asks the service."""
        url = f"http://{self.vip}/"
        if curl := shutil.which("curl"):
            proxy = ["--socks5", f"127.0.0.1:{SOCKS5_PORT}"] if self.socks5 else []
            return [curl, "-sS", "--max-time", "10", *proxy, url]
        return [sys.executable, "-m", "ztunnel.demo.fetch", url, *([str(SOCKS5_PORT)] if self.socks5 else [])]

    def ask(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the client in a pod."""
        return processes.run(self.command(), namespace=self.pods[name].pod.namespace)

    def access_line(self, name: str, *texts: str) -> str:
        """Returns the line of a pod's ztunnel that tells of a finished connection with these texts."""
        return self._line(name, "connection complete", *texts)

    def explanation(self, name: str, code: str) -> str:
        """Returns the line of a pod's ztunnel that says why a connection was refused with this code."""
        return self._line(name, "\trefused\t", f'code="{code}"')

    def _line(self, name: str, *texts: str) -> str:
        process = self.pods[name].ztunnel.process

        def find() -> str | None:
            for line in process.output().splitlines():
                if all(text in line for text in texts):
                    return line
            return None

        return process.wait_until(find, what=f"logging a line with {texts}", timeout=10)


def tell(
    page: TerminalPage,
    machine: Machine,
    environment: DemoEnvironment,
    *,
    forward: PortForward | None = None,
    tour: bool = False,
) -> None:
    """Build the mesh and show the six steps; then the tour, and with ``forward`` wait for Ctrl-C."""
    started = time.monotonic()
    page.step("A mesh of three pods on two nodes")
    page.progress("making network namespaces and redirection rules")
    mesh = _Mesh(machine)
    mesh.build()
    page.progress("starting an HTTP server in the pod web")
    mesh.start_server(mesh.pods["web"].pod)
    for name, entry in mesh.pods.items():
        page.progress(f"waiting for the ztunnel of the pod {name} to be ready")
        entry.ztunnel.wait_ready()
    _show_mesh(page, mesh, environment, time.monotonic() - started)

    client, web = mesh.pods["client"], mesh.pods["web"]
    node = mesh.network.nodes["a"]
    with (
        Capture(mesh.network.wire, mesh.network.wire_port(node)) as wire,
        Capture(client.pod.namespace, "lo") as inside,
    ):
        _show_request(page, mesh)
        _show_logs(page, mesh)
        _show_wire(page, wire, inside, web.pod)
        _show_denial(page, mesh)
    _show_metrics(page, mesh)
    page.line(f"\nThat took {time.monotonic() - started:.1f} seconds.")
    if tour:
        request = _display(mesh.command())
        go_round(page, mesh.file, client.pod.namespace, request, lambda: mesh.ask("client"), mesh.vip)
    if forward is not None:
        forward.lead(machine, web.pod.namespace, ADMIN_PORT)
        _show_how_to_play(page, mesh, environment, forward.url)
        signal.pause()


def _show_mesh(page: TerminalPage, mesh: _Mesh, environment: DemoEnvironment, seconds: float) -> None:
    for workload in mesh.workloads:
        identity = f"{workload['trustDomain']}/ns/{workload['namespace']}/sa/{workload['serviceAccount']}"
        address = workload["workloadIps"][0]
        page.excerpt(
            [f"node {workload['node']}   pod {workload['name']:<9} {address:<11} spiffe://{identity}"]
        )
    nodes: dict[str, list[tuple[str, str]]] = {}
    for workload in mesh.workloads:
        nodes.setdefault(workload["node"], []).append((workload["name"], workload["workloadIps"][0]))
    page.line()
    page.drawing(draw_mesh(nodes))
    page.line()
    where = "network namespaces"
    if environment.own_user_namespace:
        where += " within an unprivileged user namespace"
    if mesh.socks5:
        page.text(
            f"Nodes and pods are {where}. Redirection rules cannot be set on this machine ({mesh.socks5}), "
            f"so applications ask their ztunnel over SOCKS5. Built and ready after {seconds:.1f} s."
        )
    else:
        page.text(
            f"Nodes and pods are {where}; istio-cni's redirection rules ({mesh.backend}) lead each pod's "
            f"traffic through a ztunnel of its own. Built and ready after {seconds:.1f} s."
        )


def _show_request(page: TerminalPage, mesh: _Mesh) -> None:
    page.step("An ordinary request from the pod client to the service web")
    result = mesh.ask("client")
    page.excerpt([f"client$ {_display(mesh.command())}", *(result.stdout + result.stderr).splitlines()])
    if GREETING not in result.stdout:
        raise DemoFailedError(f"the request did not go through: {result.stderr.strip() or result.stdout!r}")
    page.text("The client asked for the service's address; both programs believe that they speak plain HTTP.")


def _show_logs(page: TerminalPage, mesh: _Mesh) -> None:
    page.step("What the ztunnels on both sides logged about it")
    page.excerpt([log_excerpt(mesh.access_line("client", 'direction="outbound"'))])
    page.line()
    page.excerpt([log_excerpt(mesh.access_line("web", 'direction="inbound"', 'src.workload="client"'))])


def _show_wire(page: TerminalPage, wire: Capture, inside: Capture, server: Pod) -> None:
    page.step("What the wire between the nodes saw of it")
    segments = wire.read()
    streams = reassemble(segments)
    sent = next((data for flow, data in streams.items() if flow.dst == server.ipv4 and data), b"")
    records = tls_records(sent)
    if not records:
        raise DemoFailedError(f"the capture shows no TLS towards {server.ipv4}: {sent[:60]!r}")
    if not all(HBONE_PORT in {flow.src_port, flow.dst_port} for flow in streams):
        raise DemoFailedError(f"the capture shows other ports than {HBONE_PORT}: {list(streams)}")
    captured = b"".join([*wire.packets, *streams.values()])
    total = sum(len(packet) for packet in wire.packets)
    page.text(
        f"{len(wire.packets)} packets with {total} bytes, all TCP to or from port {HBONE_PORT} of the "
        "server's pod. In the direction of the request these TLS records (kind and length):"
    )
    page.excerpt([", ".join(f"{record.kind} ({record.length})" for record in records)])
    plain = b"".join(reassemble(inside.read()).values())
    for text in REQUEST_TEXTS:
        if text.encode() in captured:
            raise DemoFailedError(f"the wire shows {text!r} in the clear")
        if text.encode() not in plain:
            raise DemoFailedError(
                f"the pod's own loopback does not show {text!r}, so its absence proves nothing"
            )
    page.text(
        f"None of {', '.join(repr(text) for text in REQUEST_TEXTS)} is in these packets. All of them are in "
        "a capture inside the client's pod, where the request goes from the client to ztunnel."
    )


def _show_denial(page: TerminalPage, mesh: _Mesh) -> None:
    page.step("The pod stranger asks for the same, and a policy denies it")
    result = mesh.ask("stranger")
    page.excerpt([f"stranger$ {_display(mesh.command())}", *(result.stdout + result.stderr).splitlines()])
    if result.returncode == 0 or GREETING in result.stdout:
        raise DemoFailedError("the policy did not deny the pod stranger")
    page.text(
        "The policy shop/only-client allows spiffe://cluster.local/ns/default/sa/client alone. The "
        "certificate of the pod stranger says otherwise, and the server's ztunnel refuses before the server "
        "hears of it:"
    )
    page.excerpt([log_excerpt(mesh.access_line("web", 'src.workload="stranger"', "policy rejection"))])
    page.line()
    page.excerpt([log_excerpt(mesh.access_line("stranger", 'direction="outbound"', "error="))])
    page.text("Beside each of these lines another one says why:")
    page.excerpt([log_excerpt(mesh.explanation("web", "ZT-POL-001"))])
    page.line()
    page.excerpt([log_excerpt(mesh.explanation("stranger", "ZT-HBN-010"))])


def _show_metrics(page: TerminalPage, mesh: _Mesh) -> None:
    page.step("The metrics that came of it (port 15020 of each ztunnel; some series and labels are left out)")
    for pod, wanted in SHOWN_METRICS.items():
        samples = [sample for sample in mesh.pods[pod].ztunnel.metrics() if sample.name in wanted]
        if {sample.name for sample in samples if sample.value > 0} != wanted:
            raise DemoFailedError(f"the metrics of {pod}'s ztunnel do not tell of the connections: {samples}")
        page.excerpt(
            sample_excerpt(sample.name, sample.labels, sample.value, SHOWN_LABELS)
            for sample in samples
            if sample.value > 0
        )


def _show_how_to_play(page: TerminalPage, mesh: _Mesh, environment: DemoEnvironment, dashboard: str) -> None:
    page.line(f"\nThe dashboard of web's ztunnel, for a browser on this machine: {dashboard}")
    command = " ".join([Path(mesh.command()[0]).name, *mesh.command()[1:]])
    root = "" if environment.own_user_namespace else " as root,"
    page.line(f"\nThe mesh runs until you press Ctrl-C here. To play with it,{root} in another terminal:")

    def enter(name: str) -> str:
        pod = mesh.pods[name]
        if environment.own_user_namespace:
            return f"nsenter -t {pod.ztunnel.process.pid} -U -n --preserve-credentials"
        if pod.pod.namespace.published and shutil.which("ip"):
            return f"ip netns exec {pod.pod.namespace.name}"
        return f"nsenter -t {pod.ztunnel.process.pid} -n"

    page.excerpt(
        [
            f"{enter('client')} {command}",
            f"{enter('stranger')} {command}",
            f"{enter('web')} curl -s http://127.0.0.1:15020/metrics",
            f"{enter('web')} curl -s http://127.0.0.1:15000/config_dump",
            f"{enter('web')} curl -s http://127.0.0.1:15000/debug/tasks",
            f"{enter('web')} curl -s '127.0.0.1:15000/connections?failed=1&text=1'",
            f"{enter('stranger')} curl -s '127.0.0.1:15000/explain?from=default/stranger&to=shop/web'",
            f"{enter('client')} {' '.join(ztunnel_command('explain', 'default/client', f'{mesh.vip}:80'))}",
            f"tail -f {mesh.machine.directory}/ztunnel-web.log",
            f"$EDITOR {mesh.file}     # the ztunnels follow changes of their mesh",
        ]
    )


def _display(command: list[str]) -> str:
    shown = [argument for argument in command if argument not in {"-sS", "--max-time", "10"}]
    return " ".join([Path(shown[0]).name, *shown[1:]])


def copy_resource(name: str, directory: Path) -> Path:
    """Put a file of this package into a directory. Returns its path there."""
    target = directory / name
    target.write_text(importlib.resources.files("ztunnel.demo").joinpath(name).read_text())
    return target


class _TagBlindLoader(yaml.SafeLoader):
    """Reads local mesh files for their plain values; the tags of string matches are dropped."""


_TagBlindLoader.add_multi_constructor("!", lambda _loader, _suffix, node: node.value)


def _load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(file.read_text(), Loader=_TagBlindLoader)  # noqa: S506 - a SafeLoader
    return loaded


def load_workloads(file: Path) -> list[dict[str, Any]]:
    """Returns the workloads of a local mesh file, as written."""
    workloads: list[dict[str, Any]] = _load(file)["workloads"]
    return workloads


def load_vip(file: Path) -> str:
    """Returns the address of the first service of a local mesh file."""
    vip: str = _load(file)["services"][0]["vips"][0]
    return vip.rpartition("/")[2]
