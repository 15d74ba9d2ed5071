"""Every log query of docs/observability.md, asked of a real Loki that a real collector has filled.

Two ztunnels carry traffic that is refused, retried, good and not taken. Their lines are laid down as a
kubelet does, and an OpenTelemetry collector reads them with the page's own configuration. Skipped where Loki
is not built (`make loki`: some minutes of a compiler).
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.test_observability import LOG_QUERIES, PAGE, generate_traffic
from tests.support.mesh import Mesh
from tests.tools import SCRIPT

NODE = "node-1"


def optional_tool(name: str) -> str:
    """The path of a program that takes long to build: without it these tests are skipped, in CI too."""
    found = subprocess.run([SCRIPT, "--find", name], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip("Loki and a collector are not built: make loki")
    return found.stdout.strip()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@dataclass
class Logs:
    """A Loki, and the lines that it was given."""

    url: str
    lines: list[dict[str, Any]]

    def get(self, path: str, **parameters: Any) -> Any:
        target = f"{self.url}/loki/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(target, timeout=30) as answer:
                return json.loads(answer.read()).get("data")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series or streams that a query finds in the last hour."""
        found: list[dict[str, Any]] = self.get("query_range", query=query, since="1h", limit=5000)["result"]
        return found

    def answers(self) -> bool:
        try:
            self.get("labels")
        except (OSError, AssertionError):
            return False
        return True

    def stored(self) -> int:
        return sum(len(one["values"]) for one in self.ask('{service_name="ztunnel"}'))


def configuration(directory: Path, loki: str) -> dict[str, Any]:
    """The page's, reading our files and writing to our Loki."""
    [block] = re.findall(r"```yaml\n(# An OpenTelemetry collector.*?)```", PAGE, re.DOTALL)
    made: dict[str, Any] = yaml.safe_load(block)
    [pattern] = made["receivers"]["file_log"]["include"]
    made["receivers"]["file_log"]["include"] = [pattern.replace("/var/log/pods", str(directory / "pods"))]
    made["exporters"]["otlp_http"]["endpoint"] = f"{loki}/otlp"
    made["service"]["telemetry"] = {"metrics": {"level": "none"}}
    return made


def loki_configuration(directory: Path, port: int) -> dict[str, Any]:
    schema = {
        "from": "2024-01-01",
        "store": "tsdb",
        "object_store": "filesystem",
        "schema": "v13",
        "index": {"prefix": "index_", "period": "24h"},
    }
    here = "127.0.0.1"
    return {
        "auth_enabled": False,
        "server": {
            "http_listen_address": here,
            "http_listen_port": port,
            "grpc_listen_address": here,
            "grpc_listen_port": free_port(),
            "log_level": "error",
        },
        "common": {
            "instance_addr": here,
            "path_prefix": str(directory / "loki"),
            "storage": {
                "filesystem": {
                    "chunks_directory": str(directory / "loki" / "chunks"),
                    "rules_directory": str(directory / "loki" / "rules"),
                }
            },
            "replication_factor": 1,
            "ring": {"kvstore": {"store": "inmemory"}},
        },
        "schema_config": {"configs": [schema]},
        "analytics": {"reporting_enabled": False},
    }


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None, f"{command[0]} has ended"
    finally:
        process.kill()
        process.wait()


def wait_for(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.5)


def written_lines(directory: Path) -> list[dict[str, Any]]:
    """Have two ztunnels write their lines, and put these where a kubelet puts a container's."""
    lines = []
    with Mesh.open() as mesh:
        pods = generate_traffic(mesh)
        for pod in pods:
            file = directory / "pods" / f"istio-system_ztunnel-{pod.name}_7d1c" / "istio-proxy" / "0.log"
            file.parent.mkdir(parents=True)
            with file.open("w") as out:
                for line in pod.log():
                    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                    out.write(f"{stamp} stdout F {json.dumps(line)}\n")
                    lines.append(line)
    return lines


@pytest.fixture(scope="module")
def logs() -> Iterator[Logs]:
    loki, collector = optional_tool("loki"), optional_tool("collector")
    with tempfile.TemporaryDirectory() as name:
        directory, port = Path(name), free_port()
        made = Logs(f"http://127.0.0.1:{port}", written_lines(directory))
        files = {
            "loki.yaml": loki_configuration(directory, port),
            "collector.yaml": configuration(directory, made.url),
        }
        for file, content in files.items():
            (directory / file).write_text(yaml.safe_dump(content))
        with running(loki, f"-config.file={directory / 'loki.yaml'}"):
            # Else the collector's pauses between its attempts are what takes long.
            wait_for(made.answers, "Loki to listen")
            with running(collector, f"--config={directory / 'collector.yaml'}", NODE_NAME=NODE):
                wait_for(lambda: made.stored() == len(made.lines), f"{len(made.lines)} lines to come")
                yield made


def filled_in(query: str, lines: list[dict[str, Any]]) -> str:
    """A query with the ids of a connection of ours in place of the page's examples."""
    refused = next(line for line in lines if line["message"] == "refused")
    [trace, *_] = re.findall(r'"id": ?"([0-9a-f]{32})"', json.dumps(refused))
    query = re.sub(r'connection = "[^"]*"', f'connection = "{refused["connection"]}"', query)
    return re.sub(r'\|= "[0-9a-f]{32}"', f'|= "{trace}"', query)


@pytest.mark.parametrize("query", LOG_QUERIES)
def test_each_query_finds_what_it_asks_for(logs: Logs, query: str) -> None:
    asked = filled_in(query, logs.lines)
    found = logs.ask(asked)
    if "ztunnel::xds" in asked:
        # There is no control plane here that could complain: the form of the query is tried on another scope.
        logs.ask(asked)
        asked = asked.replace("ztunnel::xds.*", "access.*")
    found = logs.ask(asked)
    assert found, asked
    assert not any("__error__" in one.get("stream", {}) for one in found)


def test_labels_are_few_and_the_rest_stays_in_the_line(logs: Logs) -> None:
    series = logs.get("series", **{"match[]": '{service_name="ztunnel"}', "since": "1h"})
    assert {name for one in series for name in one} == {
        "service_name",
        "k8s_namespace_name",
        "k8s_pod_name",
        "k8s_container_name",
    }
    assert len(series) == 2, "one a pod"
    [*_, stream] = logs.ask('{service_name="ztunnel"} | k8s_node_name = "node-1"')
    shown = json.loads(stream["values"][0][1])
    assert shown in logs.lines


def test_times_and_levels_are_those_of_the_lines(logs: Logs) -> None:
    for stream in logs.ask('{service_name="ztunnel"}'):
        for nanoseconds, text in stream["values"]:
            line = json.loads(text)
            wrote = datetime.fromisoformat(line["time"]).timestamp()
            assert abs(int(nanoseconds) / 1e9 - wrote) < 0.001
            assert stream["stream"]["severity_text"].lower() == line["level"].lower()
