"""istioctl and kubectl as an operator uses them."""

from __future__ import annotations

import json
import subprocess
import tarfile

import pytest

from tests.cluster.look import NODE1, NODE2, curl, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.shell import until
from tests.cluster.topology import NODES


@pytest.fixture(autouse=True)
def one_ztunnel_on_each_node(tools):
    """With `--node` istioctl asks any ztunnel of the node, also one that drains."""

    def is_so():
        names = tools.kubectl("-n", NAMESPACE, "get", "pod", "-l", "app=ztunnel", "-o", "name")
        return len(names.split()) == len(NODES)

    until("old ztunnels are gone", 90, is_so)


def test_istioctl_ztunnel_config(tools, seen):
    assert curl(tools, "http://web").status == 200
    pod = f"{ztunnel_of(tools, NODE1)}.{NAMESPACE}"
    said = {
        "workload": tools.istioctl("ztunnel-config", "workload"),
        "service": tools.istioctl("ztunnel-config", "service"),
        "policy": tools.istioctl("ztunnel-config", "policy"),
        "all": tools.istioctl("ztunnel-config", "all", pod),
        "certificate": tools.istioctl("ztunnel-config", "certificate", pod),
        "certificate --node": tools.istioctl("ztunnel-config", "certificate", "--node", NODE1.name),
        "connections --node": tools.istioctl("ztunnel-config", "connections", "--node", NODE1.name),
        "log": tools.istioctl("ztunnel-config", "log", pod),
        "log --level": tools.istioctl("ztunnel-config", "log", pod, "--level", "access:debug,info"),
    }
    tools.istioctl("ztunnel-config", "log", pod, "--level", "info")
    listed = tools.istioctl("ztunnel-config", "--help").partition("Available Commands:\n")[2]
    subcommands = {line.split()[0] for line in listed.partition("\n\n")[0].splitlines()}
    assert subcommands == {name.split()[0] for name in said}
    assert "HBONE" in said["workload"]
    assert "web" in said["service"]
    assert "spiffe://cluster.local/ns/demo/sa/sleep" in said["certificate"]
    assert said["certificate"] == said["certificate --node"]
    assert "WORKLOAD" in said["connections --node"]
    assert "level" in said["log"].lower()
    whole = json.loads(tools.istioctl("ztunnel-config", "workload", pod, "-o", "json"))
    assert {one["name"].partition("-")[0] for one in whole if one["namespace"] == "demo"} == {"web", "sleep"}
    seen(f"{', '.join(said)} answered")


def test_istioctl_shows_open_connections(tools, seen):
    running = (
        "import http.client, time; c = http.client.HTTPConnection('web', timeout=30); "
        "c.request('GET', '/stream'); time.sleep(8)"
    )
    with subprocess.Popen(
        ["kubectl", "-n", "demo", "exec", "deploy/sleep", "--", "python3", "-c", running], env=tools.env
    ):
        until(
            "the connection is shown",
            8,
            lambda: "web.demo" in tools.istioctl("ztunnel-config", "connections", "--node", NODE1.name),
            every=0.5,
        )
    seen("an open stream is listed with its service")


def test_istioctl_proxy_status_and_analyze(tools, seen):
    status = tools.istioctl("proxy-status")
    for node in (NODE1, NODE2):
        assert ztunnel_of(tools, node) in status
    said = tools.istioctl("analyze", "-n", "demo")
    assert "No validation issues found" in said
    seen("proxy-status lists both; analyze finds nothing in demo")


def test_istioctl_bug_report_has_our_pods_in_it(tools, seen, tmp_path):
    tools.istioctl(
        "bug-report",
        "--duration",
        "2m",
        "--timeout",
        "2m",
        "--include",
        NAMESPACE,
        timeout=300,
        cwd=tmp_path,
    )
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    for node in (NODE1, NODE2):
        found = [name for name in names if ztunnel_of(tools, node) in name]
        assert found, names
    seen(f"{len(names)} files, of them {len([name for name in names if 'ztunnel' in name])} of ztunnel")


def test_the_image_has_the_compiled_part_of_tls_and_no_tools_of_a_build(tools, seen):
    inside = ("-n", NAMESPACE, "exec", ztunnel_of(tools, NODE1), "--")
    said = tools.kubectl(*inside, "ztunnel", "doctor")
    assert "TLS records   by the compiled part" in said
    assert "failures: 0" in said
    megabytes = tools.kubectl(*inside, "du", "--summarize", "--block-size=MB", "/usr").split()[0]
    found = tools.kubectl(*inside, "sh", "-c", "command -v pip cc gcc ld make git curl || true")
    assert found == ""
    seen(f"doctor: no failure, TLS by the compiled part; /usr has {megabytes}")


def test_what_kubectl_says(tools, seen):
    pod = ztunnel_of(tools, NODE1)
    version = tools.kubectl("-n", NAMESPACE, "exec", pod, "--", "ztunnel", "version")
    assert version.startswith("version.BuildInfo{")
    assert 'IstioVersion:"1.31.0"' in version
    assert curl(tools, "http://web").status == 200
    until(
        "the access log has it",
        10,
        lambda: "connection complete" in tools.kubectl("-n", NAMESPACE, "logs", pod),
    )
    metrics = tools.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:15020/proxy/metrics")
    assert "istio_tcp_connections_opened_total" in metrics
    seen(version.strip()[:60])
