"""`helm test`: what it makes, and what its program says of good and bad ztunnels."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART
from tests.tools import find_tool


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    """What only `helm test` makes, by kind."""
    command = [find_tool("helm"), "template", "ztunnel", str(CHART), "--namespace", "istio-system"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    objects = [item for item in yaml.safe_load_all(shown) if item]
    return {
        item["kind"]: item
        for item in objects
        if item["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    }


def test_a_service_finds_the_pods_and_a_pod_of_the_image_looks_at_them(hooks):
    assert set(hooks) == {"Service", "Pod"}
    assert hooks["Service"]["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"app": "ztunnel"},
    }
    [container] = hooks["Pod"]["spec"]["containers"]
    assert container["image"] == "registry.istio.io/testing/ztunnel:latest"
    assert container["command"] == ["python", "-c"]
    program, name = container["args"]
    assert program == (CHART / "files" / "check.py").read_text()
    assert name == "ztunnel-test.istio-system.svc"
    # It is not taken for a ztunnel, nor into the mesh.
    assert "app" not in hooks["Pod"]["metadata"]["labels"]
    assert hooks["Pod"]["metadata"]["labels"]["istio.io/dataplane-mode"] == "none"


class Pages(BaseHTTPRequestHandler):
    """A ztunnel's two servers in one."""

    ready = True
    metrics = 'istio_build{component="ztunnel",tag="1.31.0"} 1\n'

    def do_GET(self) -> None:
        body = self.metrics.encode() if self.path == "/metrics" else b"ready\n"
        self.send_response(200 if self.ready or self.path == "/metrics" else 500)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(**values: object) -> Iterator[int]:
    handler = type("Handler", (Pages,), values)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check(port: int, name: str = "127.0.0.1") -> subprocess.CompletedProcess[str]:
    program = (CHART / "files" / "check.py").read_text()
    here = program.replace(
        "READINESS, METRICS, SECONDS = 15021, 15020, 10", f"READINESS = METRICS = {port}; SECONDS = 10"
    )
    assert here != program
    return subprocess.run([sys.executable, "-c", here, name], capture_output=True, text=True, check=False)


def test_a_ztunnel_that_is_ready_is_good():
    with serving() as port:
        done = check(port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "127.0.0.1 is ready\n", "")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ready": False}, "127.0.0.1 is not ready (HTTP Error 500: Internal Server Error)\n"),
        ({"metrics": "something 1\n"}, "127.0.0.1 is no ztunnel: istio_build is missing\n"),
    ],
)
def test_one_that_is_not_is_named(values, said):
    with serving(**values) as port:
        done = check(port)
    assert (done.returncode, done.stdout) == (1, said)


def test_without_any_pod_it_fails():
    done = check(1, "no-such-name.invalid")
    assert done.returncode == 1
    assert "is there a node that ztunnel runs on?" in done.stdout
