"""A ztunnel process that serves one workload (dedicated mode), for the demo and the tests."""

from __future__ import annotations

import http.client
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ztunnel.certs.shared_root import VARIABLE as FAKE_CA_ROOT
from ztunnel.demo.machine import Machine
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.processes import Process
from ztunnel.demo.redirection import PACKET_MARK

ADMIN_PORT = 15000
METRICS_PORT = 15020
READINESS_PORT = 15021

# The variables of our own environment that a ztunnel needs; others could change its configuration.
INHERITED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class MetricLine:
    """One line of a metrics page."""

    name: str
    labels: dict[str, str]
    value: float


def ztunnel_command(*arguments: str) -> list[str]:
    """Returns the command line that runs this installation's ztunnel."""
    script = Path(sys.executable).with_name("ztunnel")
    if os.access(script, os.R_OK):
        return [sys.executable, str(script), *arguments]
    return [sys.executable, "-c", "import sys; from ztunnel.start import main; sys.exit(main())", *arguments]


def dedicated_environment(
    *,
    namespace: str,
    name: str,
    service_account: str,
    mesh_file: Path,
    root: Path,
    inherit: Mapping[str, str],
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Returns the environment of a ztunnel for one workload, with a local mesh file and the built-in CA.

    root: the CA's key and certificate (see `ztunnel.certs.shared_root`). inherit: an environment from which a
        few general variables are taken. extra: overrides everything. DNS capture is off unless ``extra``
        switches it on.
    """
    environment = {key: value for key, value in inherit.items() if key in INHERITED}
    environment |= {
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": f"{namespace}/{name}/{service_account}",
        "LOCAL_XDS_PATH": str(mesh_file),
        "XDS_ADDRESS": "",
        "FAKE_CA": "true",
        FAKE_CA_ROOT: str(root),
        "PACKET_MARK": str(PACKET_MARK),
        "ISTIO_META_DNS_CAPTURE": "false",
        "ZTUNNEL_WORKER_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return environment | dict(extra or {})


class Ztunnel:
    """A running ztunnel in a namespace (None: our own), and requests to it."""

    def __init__(self, process: Process, namespace: OwnedNamespace | None) -> None:
        self.process = process
        self.namespace = namespace

    @classmethod
    def start(
        cls,
        machine: Machine,
        name: str,
        environment: Mapping[str, str],
        namespace: OwnedNamespace | None = None,
    ) -> Ztunnel:
        """Start it; `wait_ready` waits until it serves."""
        command = ztunnel_command("proxy", "ztunnel")
        return cls(machine.spawn(name, command, namespace=namespace, env=environment), namespace)

    def wait_ready(self, timeout: float = 20.0) -> None:
        """Return once its readiness server says so. Raises ProcessEndedError or NotReadyError."""
        self.process.wait_until(self.ready, what="ready", timeout=timeout)

    def ready(self) -> bool:
        """Returns whether its readiness server answers "ready" now."""
        try:
            return self.http("GET", READINESS_PORT, "/healthz/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def http(self, method: str, port: int, path: str) -> tuple[int, str]:
        """Ask one of its own servers. Returns status and body. Raises OSError or HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.sock = connect("127.0.0.1", port, namespace=self.namespace)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> list[MetricLine]:
        """Returns all samples of its metrics page."""
        return list(parse_metrics(self.http("GET", METRICS_PORT, "/metrics")[1]))

    def log_lines(self, containing: str = "") -> list[str]:
        """Returns the lines that it has logged so far and that contain a text."""
        return [line for line in self.process.output().splitlines() if containing in line]


def connect(
    address: str, port: int, *, namespace: OwnedNamespace | None, timeout: float = 5.0
) -> socket.socket:
    """Returns a TCP connection made from inside a namespace. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if namespace is None:
        connection = socket.socket(family, socket.SOCK_STREAM)
    else:
        with namespace.entered():
            connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect((address, port))
    except OSError:
        connection.close()
        raise
    return connection


def parse_metrics(text: str) -> Iterator[MetricLine]:
    """Returns the samples of a page in Prometheus or OpenMetrics text.

    Comments and exemplars are left out.
    """
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        labels = {
            key: re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)
            for key, value in _LABEL.findall(match["labels"] or "")
        }
        yield MetricLine(match["name"], labels, float(match["value"]))
