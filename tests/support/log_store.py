"""A real Loki, and a collector with the configuration of docs/observability.md: tests of its log queries."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.page_queries import PAGE
from tests.tools import SCRIPT


def optional_tool(name: str) -> str:
    """The path of a program that takes long to build: without it these tests are skipped, in CI too."""
    found = subprocess.run([SCRIPT, "--find", name], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip("Loki and a collector are not built: make loki")
    return found.stdout.strip()


def collector_text() -> str:
    """The collector's configuration, as the page has it."""
    [block] = re.findall(r"```yaml\n(# An OpenTelemetry collector.*?)```", PAGE, re.DOTALL)
    return str(block)


def collector_configuration() -> dict[str, Any]:
    """The same, read."""
    made: dict[str, Any] = yaml.safe_load(collector_text())
    return made


def loki_configuration(
    directory: Path, address: str = "127.0.0.1", port: int = 3100, grpc_port: int = 9095
) -> dict[str, Any]:
    """Loki's configuration: one process, which keeps what it gets in ``directory``.

    address: where it listens. The parts of Loki talk to each other over loopback in any case.
    """
    here = "127.0.0.1"
    schema = {
        "from": "2024-01-01",
        "store": "tsdb",
        "object_store": "filesystem",
        "schema": "v13",
        "index": {"prefix": "index_", "period": "24h"},
    }
    return {
        "auth_enabled": False,
        "server": {
            "http_listen_address": address,
            "http_listen_port": port,
            "grpc_listen_address": here,
            "grpc_listen_port": grpc_port,
            "log_level": "error",
        },
        "common": {
            "instance_addr": here,
            "path_prefix": str(directory),
            "storage": {
                "filesystem": {
                    "chunks_directory": str(directory / "chunks"),
                    "rules_directory": str(directory / "rules"),
                }
            },
            "replication_factor": 1,
            "ring": {"kvstore": {"store": "inmemory"}},
        },
        "schema_config": {"configs": [schema]},
        "analytics": {"reporting_enabled": False},
    }


@dataclass
class Logs:
    """A Loki that listens on ``url``."""

    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an answer. Raises AssertionError with Loki's words, OSError when it does not answer."""
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
        """Whether it takes questions."""
        try:
            self.get("labels")
        except (OSError, AssertionError):
            return False
        return True

    def stored(self) -> int:
        """The number of ztunnels' lines that it has."""
        return sum(len(one["values"]) for one in self.ask('{service_name="ztunnel"}'))


def filled_in(query: str, lines: list[dict[str, Any]]) -> str:
    """A query with the ids of a refused connection of ours in place of the page's examples."""
    refused = next(line for line in lines if line["message"] == "refused")
    [trace, *_] = re.findall(r'"id": ?"([0-9a-f]{32})"', json.dumps(refused))
    query = re.sub(r'connection = "[^"]*"', f'connection = "{refused["connection"]}"', query)
    return re.sub(r'\|= "[0-9a-f]{32}"', f'|= "{trace}"', query)
