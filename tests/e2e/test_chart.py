"""The chart and the image, run: what helm renders is started as a kubelet would, and carries traffic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.e2e.chart_deployment import ChartDeployment
from tests.needs import needs_programs
from tests.support import image as images
from tests.support.census import take_census
from tests.support.control_plane import ISTIOD_NAME
from tests.support.image import Image
from tests.support.mesh import Mesh
from tests.support.pod import MeshPod, eventually
from tests.support.traffic import echo, serve
from tests.tools import build_image, find_tool

VALUES = {
    "profile": "ambient",
    "platform": "openshift",
    "logAsJson": True,
    "network": "network-1",
    "terminationGracePeriodSeconds": 12,
}


@pytest.fixture(scope="module")
def image() -> Image:
    """The image of the Dockerfile."""
    find_tool("helm")
    return build_image(ISTIO_VERSION="1.31.0")


@dataclass
class Installed:
    """A mesh on two nodes with the chart installed."""

    mesh: Mesh
    deployment: ChartDeployment
    client: MeshPod
    server: MeshPod


@pytest.fixture(scope="module")
def installed(image: Image) -> Iterator[Installed]:
    deployment = ChartDeployment(image, VALUES)
    with Mesh.open(deployment=deployment) as mesh:
        client = mesh.node("a").pod("client")
        server = mesh.node("b").pod("server")
        mesh.start()
        yield Installed(mesh, deployment, client, server)
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


def inner_pid(pod: MeshPod) -> int:
    """The process of a pod's ztunnel as this machine numbers it; the one we started waits for it."""
    outer = pod.ztunnel.process.pid
    [child] = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
    return int(child)


def mapped_files(pod: MeshPod) -> str:
    """What the process of a pod's ztunnel has mapped: its libraries among others, with their paths."""
    return Path(f"/proc/{inner_pid(pod)}/maps").read_text()


async def exchange(client: MeshPod, address: str) -> None:
    """Send something to an echo server and get it back."""
    stream = await client.connect(address, 8080)
    async with stream:
        await stream.send_all(b"hello")
        with trio.fail_after(10):
            assert await stream.receive_some(100) == b"hello"


async def test_traffic_passes_between_pods_of_two_nodes_over_mutual_tls(installed):
    server = installed.server
    async with serve(server, 8080, echo):
        for address in (server.ipv4, server.ipv6):
            await exchange(installed.client, address)
        lines = await server.logged(direction="inbound", count=2)
    assert {line["src.identity"] for line in lines} == {installed.client.identity}


@needs_programs("cc", "python3-config")
async def test_the_image_has_the_compiled_part_of_tls_and_it_is_in_use(installed):
    async with serve(installed.server, 8080, echo):
        await exchange(installed.client, installed.server.ipv4)
    for pod in (installed.client, installed.server):
        assert "/ztunnel/tls/_accelerator.abi3.so" in mapped_files(pod), pod.name


async def test_mesh_and_certificates_come_from_istiod_under_its_name_with_the_projected_token(installed):
    istiod = installed.deployment.istiod
    assert {stream.metadata["authorization"] for stream in istiod.streams} == {f"Bearer {istiod.token}"}
    assert istiod.refused_tokens == 0
    assert f"{ISTIOD_NAME}.cluster.local A" in installed.deployment.dns.server.asked
    wanted = {installed.client.identity, installed.server.identity}
    await eventually(lambda: wanted <= {one.identity for one in istiod.issued}, "issued both certificates")


def test_the_container_has_the_rights_that_the_chart_grants_and_no_others(installed):
    status = Path(f"/proc/{inner_pid(installed.client)}/status").read_text()
    fields = dict(re.findall(r"(?m)^(\w+):[ \t]*(.*?)[ \t]*$", status))
    granted = (1 << 12) | (1 << 13) | (1 << 21)  # NET_ADMIN, NET_RAW, SYS_ADMIN
    for name in ("CapBnd", "CapPrm", "CapEff"):
        assert int(fields[name], 16) == granted, name
    assert fields["Uid"].split() == ["0"] * 4
    assert fields["Gid"].split() == ["1337"] * 4
    assert fields["Groups"] == ""
    assert fields["NSpid"].split()[-1] == "1"


def test_the_container_can_write_to_tmp_only_and_does_not_see_the_checkout(installed):
    process = Path(f"/proc/{inner_pid(installed.client)}")
    assert not (process / "root" / str(images.REPOSITORY).lstrip("/")).exists()
    options = {}
    for line in (process / "mountinfo").read_text().splitlines():
        fields = line.split()
        options[fields[4]] = fields[5].split(",")
    for place in (
        "/",
        "/usr/local",
        "/usr",
        "/sys",
        "/proc/sys",
        "/run/secrets/istio",
        "/run/secrets/tokens",
    ):
        assert "ro" in options[place], place
    assert "rw" in options["/tmp"]


def test_ztunnel_has_learnt_what_the_chart_and_the_kubelet_have_to_say(installed):
    dump = installed.client.config_dump()
    config = dump["config"]
    assert config["proxyArgs"] == "proxy ztunnel"
    assert config["network"] == "network-1"
    assert config["localNode"] == "a"
    assert config["clusterId"] == "Kubernetes"
    assert config["proxyMetadata"]["ENABLE_HBONE"] == "true"
    assert config["selfTerminationDeadline"] == {"secs": 7, "nanos": 0}
    assert dump["version"]["istioVersion"] == "1.31.0"


async def test_a_pod_of_the_mesh_reads_the_metrics_over_mutual_tls(installed):
    node = installed.deployment.nodes["b"]
    command = ["curl", "-sS", "--max-time", "10", f"http://{node.homes[-1].ipv4}:15020/metrics"]
    page = await trio.to_thread.run_sync(lambda: installed.client.run(*command))
    assert 'istio_build{component="ztunnel",tag="1.31.0"} 1' in page.stdout, page.stdout + page.stderr
    [line] = await installed.server.logged(direction="inbound", dst__namespace="istio-system")
    assert line["dst.hbone_addr"] == f"{node.homes[-1].ipv4}:15020"
    assert line["src.identity"] == installed.client.identity


async def test_at_an_upgrade_the_new_pod_takes_over_and_sigterm_ends_the_old_one_in_order(installed):
    node = installed.deployment.nodes["b"]
    old = node.current
    await trio.to_thread.run_sync(node.start)
    assert await trio.to_thread.run_sync(old.process.stop, 12) == 0, old.process.output()[-4000:]
    async with serve(installed.server, 8080, echo):
        await exchange(installed.client, installed.server.ipv4)
        # The log is that of the newest ztunnel.
        await installed.server.logged(direction="inbound", count=1)


def test_nothing_was_tried_that_the_container_may_not_do(installed):
    for node in installed.deployment.nodes.values():
        for ztunnel in node.ztunnels:
            for text in (
                "Permission denied",
                "Operation not permitted",
                "Read-only file system",
                "Traceback",
            ):
                assert not ztunnel.log_lines(text)
