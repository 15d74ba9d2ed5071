"""Every log query of docs/observability.md, asked of a real Loki that a real collector has filled.

Two ztunnels carry traffic that is refused, retried, good and not taken. Their lines are laid down as a
kubelet does, and an OpenTelemetry collector reads them with the page's own configuration. Skipped where Loki
is not built (`make loki`: some minutes of a compiler).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.test_observability import generate_traffic
from tests.support.log_store import (
    Logs,
    collector_configuration,
    filled_in,
    loki_configuration,
    optional_tool,
)
from tests.support.mesh import Mesh
from tests.support.own_namespace import enter_network_namespace
from tests.support.page_queries import LOG_QUERIES

NODE = "node-1"
PORT, GRPC_PORT = 3100, 9095
"""Loki's own, in a network namespace of the test's own."""


@dataclass
class Filled(Logs):
    """A Loki, and the lines that it was given."""

    lines: list[dict[str, Any]]


def configuration(directory: Path, loki: str) -> dict[str, Any]:
    """The page's, reading our files and writing to our Loki."""
    made = collector_configuration()
    [pattern] = made["receivers"]["file_log"]["include"]
    made["receivers"]["file_log"]["include"] = [pattern.replace("/var/log/pods", str(directory / "pods"))]
    made["exporters"]["otlp_http"]["endpoint"] = f"{loki}/otlp"
    made["service"]["telemetry"] = {"metrics": {"level": "none"}}
    return made


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
def logs() -> Iterator[Filled]:
    loki, collector = optional_tool("loki"), optional_tool("collector")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = Filled(f"http://127.0.0.1:{PORT}", written_lines(directory))
        files = {
            "loki.yaml": loki_configuration(directory / "loki", port=PORT, grpc_port=GRPC_PORT),
            "collector.yaml": configuration(directory, made.url),
        }
        for file, content in files.items():
            (directory / file).write_text(yaml.safe_dump(content))
        with enter_network_namespace(), running(loki, f"-config.file={directory / 'loki.yaml'}"):
            # Else the collector's pauses between its attempts are what takes long.
            wait_for(made.answers, "Loki to listen")
            with running(collector, f"--config={directory / 'collector.yaml'}", NODE_NAME=NODE):
                wait_for(lambda: made.stored() == len(made.lines), f"{len(made.lines)} lines to come")
                yield made


@pytest.mark.parametrize("query", LOG_QUERIES)
def test_each_query_finds_what_it_asks_for(logs: Filled, query: str) -> None:
    asked = filled_in(query, logs.lines)
    found = logs.ask(asked)
    if "ztunnel::xds" in asked:
        # There is no control plane here that could complain: the form of the query is tried on another scope.
        logs.ask(asked)
        asked = asked.replace("ztunnel::xds.*", "access.*")
    found = logs.ask(asked)
    assert found, asked
    assert not any("__error__" in one.get("stream", {}) for one in found)


def test_labels_are_few_and_the_rest_stays_in_the_line(logs: Filled) -> None:
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


def test_times_and_levels_are_those_of_the_lines(logs: Filled) -> None:
    for stream in logs.ask('{service_name="ztunnel"}'):
        for nanoseconds, text in stream["values"]:
            line = json.loads(text)
            wrote = datetime.fromisoformat(line["time"]).timestamp()
            assert abs(int(nanoseconds) / 1e9 - wrote) < 0.001
            assert stream["stream"]["severity_text"].lower() == line["level"].lower()
