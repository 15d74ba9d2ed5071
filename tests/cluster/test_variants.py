"""Other ways to install.

Native nftables of istio-cni, a second revision of istiod, another name of ztunnel's.
"""

from __future__ import annotations

import json

from tests.cluster import mesh, nodes
from tests.cluster.look import NODE1, NODE2, curl, endings, pods, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.shell import run, until


def renew_apps(tools):
    """Pods get their rules when they are made."""
    for each in ("deployment/web", "deployment/sleep"):
        tools.kubectl("-n", "demo", "rollout", "restart", each)
    for each in ("deployment/web", "deployment/sleep"):
        tools.kubectl("-n", "demo", "rollout", "status", each, "--timeout=120s")


def in_pod(tools, label, *command):
    """What a program of the node says in a pod's network namespace."""
    [pod] = [one for one in pods(tools, "demo", label) if one["spec"]["nodeName"] == NODE1.name][:1]
    identity = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    tasks = run(*nodes.inside(NODE1, tools.places, "ctr", "-n", "k8s.io", "task", "ls"))
    [pid] = [line.split()[1] for line in tasks.splitlines() if line.startswith(identity)]
    return run(*nodes.inside(NODE1, tools.places, "nsenter", "-t", pid, "-n", *command))


def test_the_rules_are_of_the_backend_that_was_asked_for(tools, seen):
    """`CLUSTER_NATIVE_NFTABLES=1 make cluster` asks for native nftables.

    A running cluster cannot change: istio-cni stays with iptables where it finds traces of it until a reboot.
    """
    tables = in_pod(tools, "app=sleep", "nft", "list", "tables")
    assert ("istio-ambient" in tables) is mesh.native_nftables()
    assert [curl(tools, "http://web").status for _ in range(10)] == [200] * 10
    pod = f"{ztunnel_of(tools, NODE1)}.{NAMESPACE}"
    workloads = json.loads(tools.istioctl("ztunnel-config", "workload", pod, "-o", "json"))
    assert {one["protocol"] for one in workloads if one["namespace"] == "demo"} == {"HBONE"}
    seen(f"tables of a pod: {' '.join(tables.split())}; ten of ten answered")


def test_a_second_revision_of_istiod_takes_over(tools, seen):
    charts = mesh.charts(tools.places)
    second = ("-n", NAMESPACE, "--set=revision=second", *mesh.COMMON_VALUES, *mesh.ISTIOD_VALUES)
    tools.helm(
        "upgrade",
        "--install",
        "istiod-second",
        charts / "istiod",
        *second,
        "--wait",
        "--timeout=3m",
    )
    try:
        mesh.install_ztunnel(tools, "--set=revision=second")
        pod = ztunnel_of(tools, NODE2)
        address = tools.kubectl(
            "-n",
            NAMESPACE,
            "get",
            "pod",
            pod,
            "-o",
            "jsonpath={.spec.containers[0].env[?(@.name=='XDS_ADDRESS')].value}",
        )
        assert address == f"istiod-second.{NAMESPACE}.svc:15012"
        assert [curl(tools, "http://web").status for _ in range(10)] == [200] * 10
    finally:
        mesh.install_ztunnel(tools)
        tools.helm("uninstall", "istiod-second", "-n", NAMESPACE, "--wait")
    assert curl(tools, "http://web").status == 200
    seen(f"ztunnel at {address}, and back")


def test_another_name_for_ztunnel(tools, seen):
    """`resourceName`: istiod has to be told, or it refuses to issue certificates for others."""
    named = ("--set=trustedZtunnelName=node-proxy",)
    mesh.install_istio(tools, istiod=named)
    try:
        mesh.install_ztunnel(tools, "--set=resourceName=node-proxy", name="node-proxy")
        renew_apps(tools)
        until("the new name serves", 30, lambda: curl(tools, "http://web").status == 200)
        assert endings(tools, "web", count=5) == ["answer"] * 5
        said = tools.kubectl("-n", NAMESPACE, "get", "daemonset", "-o", "name")
        assert "daemonset.apps/node-proxy" in said
    finally:
        mesh.install_istio(tools)
        mesh.install_ztunnel(tools)
        renew_apps(tools)
    assert curl(tools, "http://web").status == 200
    seen("daemonset node-proxy carried traffic with certificates of its own, and back")
