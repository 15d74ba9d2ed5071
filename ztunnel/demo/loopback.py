"""The demo without namespaces: one ztunnel on loopback, reached over SOCKS5, connecting to itself.

It cannot show a capture (packet sockets are forbidden too) or a second identity, but the request takes the
same path: SOCKS5, route, mTLS and HTTP/2 CONNECT to port 15008, policy, application.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from datetime import UTC, datetime

from ztunnel.certs.shared_root import write_root
from ztunnel.demo import processes
from ztunnel.demo.dedicated import ADMIN_PORT, METRICS_PORT, READINESS_PORT, Ztunnel, dedicated_environment
from ztunnel.demo.machine import Machine
from ztunnel.demo.story import (
    GREETING,
    SHOWN_LABELS,
    SOCKS5_PORT,
    WITHOUT_REDIRECTION,
    DemoFailedError,
    copy_resource,
    load_vip,
    load_workloads,
)
from ztunnel.demo.terminal import TerminalPage, log_excerpt, sample_excerpt

SERVER_PORT = 18080
SHOWN_METRICS = {"istio_tcp_connections_opened_total", "istio_tcp_connections_failed_total"}
_NEEDED_PORTS = (15001, 15006, 15008, SOCKS5_PORT, ADMIN_PORT, METRICS_PORT, READINESS_PORT, SERVER_PORT)


def tell_on_loopback(page: TerminalPage, machine: Machine, *, keep: bool) -> None:
    """Show a request, a denied one, both logs and the metrics; with ``keep`` wait for Ctrl-C."""
    started = time.monotonic()
    _check_ports()
    ztunnel, vip = _start(machine)
    command = _client(vip, 80)

    page.step("An ordinary request to the service web, through ztunnel's SOCKS5 port")
    result = processes.run(command)
    page.excerpt([f"$ {' '.join(command)}", *(result.stdout + result.stderr).splitlines()])
    if GREETING not in result.stdout:
        raise DemoFailedError(f"the request did not go through: {result.stderr.strip() or result.stdout!r}")

    page.step("What ztunnel logged about it, as the client's side and as the server's")
    for direction in ("outbound", "inbound"):
        page.excerpt([log_excerpt(_access_line(ztunnel, f'direction="{direction}"'))])
    page.text("(What the wire sees cannot be shown without privileges; run the demo as root for that.)")

    page.step("A request to the service's other port, which a policy denies")
    denied = _client(vip, 81)
    result = processes.run(denied)
    page.excerpt([f"$ {' '.join(denied)}", *(result.stdout + result.stderr).splitlines()])
    if result.returncode == 0:
        raise DemoFailedError("the policy did not deny the port")
    page.excerpt([log_excerpt(_access_line(ztunnel, 'direction="inbound"', "policy rejection"))])

    page.step("The metrics that came of it (port 15020, some labels left out)")
    samples = [sample for sample in ztunnel.metrics() if sample.name in SHOWN_METRICS and sample.value > 0]
    if not any(sample.labels.get("response_flags") == "DENY" for sample in samples):
        raise DemoFailedError(f"the metrics do not tell of the denied connection: {samples}")
    page.excerpt(sample_excerpt(sample.name, sample.labels, sample.value, SHOWN_LABELS) for sample in samples)
    page.line(f"\nThat took {time.monotonic() - started:.1f} seconds.")
    if keep:
        page.line("\nIt runs until you press Ctrl-C here. To play with it, in another terminal:")
        page.excerpt([" ".join(command), f"curl -s http://127.0.0.1:{METRICS_PORT}/metrics"])
        signal.pause()


def _check_ports() -> None:
    for port in _NEEDED_PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise DemoFailedError(
                    f"port {port} of this machine is needed and not free: {error}"
                ) from error


def _start(machine: Machine) -> tuple[Ztunnel, str]:
    file = copy_resource("loopback.yaml", machine.directory)
    workload = load_workloads(file)[0]
    environment = dedicated_environment(
        namespace=workload["namespace"],
        name=workload["name"],
        service_account=workload["serviceAccount"],
        mesh_file=file,
        root=write_root(machine.directory / "root.pem", datetime.now(UTC).timestamp()),
        inherit=os.environ,
        extra=WITHOUT_REDIRECTION,
    )
    # Marking packets needs a privilege, and without redirection marks are not needed.
    del environment["PACKET_MARK"]
    ztunnel = Ztunnel.start(machine, "ztunnel", environment)
    directory = machine.directory / "www"
    directory.mkdir()
    (directory / "index.html").write_text(GREETING + "\n")
    command = [sys.executable, "-m", "http.server", str(SERVER_PORT), "--bind", "127.0.0.1"]
    server = machine.spawn("http-server", command, directory=directory)

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", SERVER_PORT)) == 0

    server.wait_until(listening, what="listening", timeout=20)
    ztunnel.wait_ready()
    return ztunnel, load_vip(file)


def _client(vip: str, port: int) -> list[str]:
    url = f"http://{vip}:{port}/"
    if shutil.which("curl"):
        return ["curl", "-sS", "--max-time", "10", "--socks5", f"127.0.0.1:{SOCKS5_PORT}", url]
    return [sys.executable, "-m", "ztunnel.demo.fetch", url, str(SOCKS5_PORT)]


def _access_line(ztunnel: Ztunnel, *texts: str) -> str:
    def find() -> str | None:
        for line in ztunnel.log_lines("connection complete"):
            if all(text in line for text in texts):
                return line
        return None

    return ztunnel.process.wait_until(find, what=f"logging a finished connection with {texts}", timeout=10)
