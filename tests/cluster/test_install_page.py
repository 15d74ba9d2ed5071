"""Each command in docs/install.md, as it stands there, in the real cluster.

Blocks of commands are marked in the page (`<!-- run: NAME -->`); a block without a mark fails a test. Of a
command only what the page writes in capitals for the reader to fill in is filled in.
"""

from __future__ import annotations

import os
import re
import sys

import pytest

from tests.cluster import mesh, programs
from tests.cluster.look import NODE1, NODE2, curl, pods, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.places import CHECKOUT
from tests.cluster.shell import run, until

PAGE = (CHECKOUT / "docs" / "install.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```\n(.*?)```", PAGE, re.DOTALL))
INLINE = re.findall(r"`((?:helm|kubectl|istioctl|docker) [^`\n]+)`", PAGE)
IMAGE = "registry.example/mesh/ztunnel:1.31.0"


@pytest.fixture
def shell(tools, tmp_path):
    """Runs commands as a reader would in a checkout: what they write stays out of it."""
    (tmp_path / "charts").symlink_to(CHECKOUT / "charts")
    programs_here = tmp_path / "bin"
    programs_here.mkdir()
    docker = programs_here / "docker"
    docker.write_text(f'#!/bin/sh\ncd {CHECKOUT} && exec {sys.executable} -m tests.cluster.docker "$@"\n')
    docker.chmod(0o755)
    istioctl = programs.program("istioctl").path(tools.places).parent
    path = f"{programs_here}:{istioctl}:{mesh.helm().parent}:{os.environ['PATH']}"

    def execute(script):
        # What a block leaves running in the background ends with it.
        guarded = f"set -eo pipefail; trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"
        return run(
            "bash", "-c", guarded, env={**tools.env, "PATH": path}, cwd=tmp_path, timeout=580, both=True
        )

    return execute


@pytest.fixture
def restored(tools):
    """Afterwards ztunnel is installed as the other tests want it."""
    yield
    mesh.install_ztunnel(tools)
    until("the mesh is as before", 60, lambda: curl(tools, "http://web").status == 200)


def images(tools):
    """The images of ztunnel that run."""
    return {pod["spec"]["containers"][0]["image"] for pod in pods(tools, NAMESPACE, "app=ztunnel")}


def test_every_block_of_the_page_is_run_here():
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert set(BLOCKS) == {"image", "install", "replace", "look"}
    assert set(INLINE) == {"helm show values charts/ztunnel", "helm rollback ztunnel -n istio-system"}


def test_image_install_replace_and_rollback(tools, seen, shell, restored):
    shell(BLOCKS["image"])
    tools.helm("uninstall", "ztunnel", "-n", NAMESPACE, "--wait")
    assert "successfully rolled out" in shell(BLOCKS["install"])
    assert images(tools) == {IMAGE}
    until("traffic passes", 60, lambda: curl(tools, "http://web").status == 200)
    shell(BLOCKS["replace"])
    tools.kubectl("-n", NAMESPACE, "rollout", "status", "daemonset/ztunnel", "--timeout=120s")
    assert images(tools) == {IMAGE}
    assert "REVISION: 2" in tools.helm("status", "ztunnel", "-n", NAMESPACE)
    rollback, values = sorted(INLINE)
    assert "Rollback was a success" in shell(rollback)
    tools.kubectl("-n", NAMESPACE, "rollout", "status", "daemonset/ztunnel", "--timeout=120s")
    assert "terminationGracePeriodSeconds" in shell(values)
    assert curl(tools, "http://web").status == 200
    seen("built, installed, upgraded with its own values, rolled back; traffic passes")


def test_what_one_sees(tools, seen, shell):
    block = BLOCKS["look"]
    assert "NODE" in block
    assert "POD" in block
    assert curl(tools, "http://web").status == 200
    filled = re.sub(r"\bNODE\b", NODE1.name, re.sub(r"\bPOD\b", ztunnel_of(tools, NODE1), block))
    said = shell(filled)
    for node in (NODE1, NODE2):
        assert f"{ztunnel_of(tools, node)}.{NAMESPACE}" in said
    for wanted in (
        "HBONE",
        "spiffe://cluster.local/ns/demo/sa/sleep",
        "version.BuildInfo{",
        "bug-report.tar.gz",
    ):
        assert wanted in said
    assert "connection complete" in said
    tools.istioctl("ztunnel-config", "log", f"{ztunnel_of(tools, NODE1)}.{NAMESPACE}", "--level", "info")
    seen(f"{len(filled.strip().splitlines())} commands answered")
