"""Every query of docs/observability.md, of the chart's alerts and its dashboard, asked of a real Prometheus.

A ztunnel carries traffic of every kind, and a Prometheus in its pod scrapes it. Then each expression is
evaluated: one that names a metric or a label that does not exist finds nothing. The log queries' fields are
looked up in the lines that the ztunnel has written; `tests/e2e/test_log_queries.py` asks a real Loki.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from tests.needs import unavailable
from tests.support.chart import CHART
from tests.support.mesh import Mesh
from tests.support.page_queries import LOG_QUERIES, page_queries
from tests.support.pod import MeshPod
from tests.support.traffic import echo, serve

_LIMIT = re.compile(r"\s[<>]\s[0-9.]+$")


def chart_queries() -> list[str]:
    """The expressions of the alerts, without the limits at which they fire, and of the panels."""
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert all(_LIMIT.search(alert) for alert in alerts)
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [_LIMIT.sub("", alert) for alert in alerts] + panels


QUERIES = list(dict.fromkeys([*page_queries("PromQL"), *chart_queries()]))


@dataclass
class Observed:
    """A pod whose ztunnel is scraped by a Prometheus in its namespace."""

    pod: MeshPod

    def ask(self, query: str) -> list[dict[str, Any]]:
        target = f"http://127.0.0.1:9090/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        done = self.pod.run("curl", "-sS", target)
        answer = json.loads(done.stdout)
        assert answer["status"] == "success", f"{query}: {answer}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


async def _try(pod: MeshPod, address: str, port: int) -> None:
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        async with await pod.connect(address, port) as stream:
            await stream.send_all(b"hello")
            await stream.receive_some(5)


async def _traffic(client: MeshPod, server: MeshPod, silent: MeshPod, two: str) -> None:
    """Good ones, refused ones, ones that nobody takes, one that nobody answers, ones that are retried."""
    await _try(client, silent.ipv4, 8080)
    async with serve(client, 8080, echo), serve(server, 8080, echo):
        for _ in range(3):
            await _try(client, server.ipv4, 8080)
            await _try(client, server.ipv4, 9)
            await _try(server, client.ipv4, 8080)
            await _try(server, client.ipv4, 8081)
            await _try(server, client.ipv4, 9)
        with trio.fail_after(60):
            while not client.metric("ztunnel_connection_retries_total"):
                await _try(client, two, 80)


def generate_traffic(mesh: Mesh, prepare: Callable[[MeshPod], None] = lambda _pod: None) -> list[MeshPod]:
    """Have two pods of a new mesh make connections of every kind. Returns them, the client first.

    prepare: called with the client when its ztunnel runs, and before the first connection.
    """
    client = mesh.node("a").pod("client")
    server = mesh.node("b").pod("server")
    dead = mesh.node("b").pod("dead", captured=False)  # in the mesh, and no ztunnel serves it
    silent = mesh.node("b").pod("silent", captured=False)  # a firewall drops its port 15008
    two = mesh.service("two", ports={80: 8080}, endpoints=[server, dead])
    mesh.policy("deny", rules=[[[{"destinationPorts": [9]}]]], action="Deny")
    mesh.policy("trial", rules=[[[{"destinationPorts": [8080]}]]], action="Deny", dry_run=True)
    mesh.start()
    drop = ("iptables", "-I", "INPUT", "-p", "tcp", "--dport", "15008", "-j", "DROP")
    assert silent.run(*drop).returncode == 0
    prepare(client)
    trio.run(_traffic, client, server, silent, two)
    return [client, server]


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    binary = shutil.which("prometheus")
    if binary is None:
        unavailable("prometheus is not installed: make deps")
    started: list[subprocess.Popen[bytes]] = []
    with Mesh.open() as mesh, tempfile.TemporaryDirectory() as directory:
        scrape = {"job_name": "ztunnel", "static_configs": [{"targets": ["127.0.0.1:15020"]}]}
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
        file = Path(directory) / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = [binary, f"--config.file={file}", f"--storage.tsdb.path={directory}/data"]
        command.append("--web.listen-address=127.0.0.1:9090")

        def start_prometheus(client: MeshPod) -> None:
            with client.pod.namespace.entered():
                started.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )

        try:
            made = Observed(generate_traffic(mesh, start_prometheus)[0])
            _wait_for_scrapes(made)
            yield made
        finally:
            for process in started:
                process.kill()
                process.wait()


def _wait_for_scrapes(observed: Observed) -> None:
    """Until all that was counted has been scraped three times."""
    end = time.monotonic() + 60
    wanted = "min(count_over_time(ztunnel_connection_retries_total[1m])) >= 3"
    while True:
        with contextlib.suppress(json.JSONDecodeError):
            if observed.ask(wanted):
                return
        assert time.monotonic() < end, "Prometheus has not scraped"
        time.sleep(0.5)


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_finds_what_it_asks_for(observed: Observed, query: str) -> None:
    found = observed.ask(query)
    assert found
    assert all(one["value"][1] != "NaN" for one in found) or "quantile" in query


def test_there_are_ten_questions_in_each_language() -> None:
    assert len(page_queries("PromQL")) == len(LOG_QUERIES) == 10


@pytest.mark.parametrize("query", LOG_QUERIES)
def test_the_fields_of_log_queries_are_those_of_the_lines(observed: Observed, query: str) -> None:
    """LogQL's ``json`` stage writes a dot in a name as ``_`` (Loki's documentation, query/log_queries)."""
    lines = observed.pod.log()
    fields = {name.replace(".", "_") for line in lines for name in line} | {"service_name"}
    asked = set(re.findall(r"\b([a-z_]+) (?:!=|=~|=) ", query)) | set(re.findall(r"{{\.(\w+)}}", query))
    asked |= set(re.findall(r"by \((\w+)\)", query))
    assert asked <= fields
    for text in re.findall(r'\|= "([a-z -]+)"', query):
        assert any(text in line["message"] for line in lines), text
