"""Scenarios in the cluster that `make cluster` brought up.

Run by `make cluster-test`, which makes a table of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cluster
from tests.cluster.mesh import NAMESPACE, Tools
from tests.cluster.places import places
from tests.cluster.shell import run, until
from tests.cluster.topology import HOST

_ROWS = pytest.StashKey[list[tuple[str, str, str, float]]]()
_SEEN: pytest.StashKey[Any] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture(scope="session")
def tools() -> Tools:
    """kubectl, helm and istioctl of the cluster; without one, its tests are skipped."""
    where = places()
    if not (where.state / "admin.conf").exists():
        pytest.skip("there is no cluster: make cluster (or make cluster-test)")
    return Tools(where)


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> None:
    """Each scenario begins with a cluster in order."""
    if request.path.name != "test_smoke.py":  # which needs none
        steady(request.getfixturevalue("tools"))


def steady(tools: Tools) -> None:
    """Waits until ztunnel, istiod, istio-cni and the applications are all there. Raises CommandFailed."""
    for what in ("daemonset/ztunnel", "daemonset/istio-cni-node", "deployment/istiod"):
        tools.kubectl("-n", NAMESPACE, "rollout", "status", what, "--timeout=150s")
    for what in ("deployment/web", "deployment/sleep"):
        tools.kubectl("-n", "demo", "rollout", "status", what, "--timeout=150s")
    until("old pods are gone", 120, lambda: "Terminating" not in tools.kubectl("-n", "demo", "get", "pods"))


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Notes what a scenario saw, for the table."""
    noted: list[str] = []
    request.node.stash[_SEEN] = noted
    return lambda text: noted.append(str(text))


@pytest.fixture
def apply(tools: Tools) -> Iterator[Callable[[str], None]]:
    """Applies objects given as YAML, and deletes them at the end."""
    applied: list[str] = []

    def put(manifest: str) -> None:
        applied.append(manifest)
        tools.apply(manifest)

    yield put
    for manifest in reversed(applied):
        tools.kubectl("delete", "--ignore-not-found", "--wait=true", "-f", "-", stdin=manifest, timeout=120)


@pytest.fixture(scope="session")
def plain(tools: Tools) -> Iterator[str]:
    """A namespace outside of the mesh, with a client."""
    tools.apply((cluster.MANIFESTS / "outside.yaml").read_text())
    tools.kubectl("-n", "outside", "rollout", "status", "deployment/plain", "--timeout=120s")
    yield "outside"
    tools.kubectl("delete", "namespace", "outside", "--wait=true", timeout=120)


@pytest.fixture
def outside_server() -> Iterator[None]:
    """A server on the host, port 8099, which is in no mesh and no cluster."""
    program = Path(__file__).parent / "image-context" / "server.py"
    with subprocess.Popen([sys.executable, program, "8099"], stderr=subprocess.DEVNULL) as process:
        until("the server answers", 20, lambda: bool(run("curl", "-s", f"http://{HOST}:8099/", check=False)))
        yield
        process.terminate()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's, which mypy takes for None
    if report.when == "call" or report.outcome != "passed":
        noted = "; ".join(item.stash.get(_SEEN, []))
        if report.skipped and isinstance(report.longrepr, tuple):
            noted = report.longrepr[2].removeprefix("Skipped: ")
        name = item.name.removeprefix("test_").replace("_", " ")
        item.config.stash[_ROWS].append((name, report.outcome, noted, call.stop - call.start))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_ROWS]
    if not rows:
        return
    lines = ["| scenario | outcome | what was seen | s |", "|---|---|---|---|"]
    lines += [f"| {name} | {outcome} | {noted} | {seconds:.0f} |" for name, outcome, noted, seconds in rows]
    text = "\n".join(lines) + "\n"
    terminalreporter.section("what users do, in a real cluster")
    terminalreporter.write(text)
    target = places().cache / "report"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{time.strftime('%Y%m%d-%H%M%S')}.md").write_text(text)
    (target / "last.json").write_text(json.dumps(rows))
