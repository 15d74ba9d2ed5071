"""What breaks in clusters, and what traffic notices of it."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import pytest

from tests.cluster import nodes
from tests.cluster.look import NODE1, NODE2, curl, end_of, is_ready, kill, pods, process, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.shell import run, until
from tests.cluster.topology import NODES
from tests.cluster.traffic import traffic

FIRST_ACT = """
apiVersion: batch/v1
kind: Job
metadata: {name: first, namespace: demo}
spec:
  completions: 12
  parallelism: 6
  backoffLimit: 0
  template:
    metadata: {labels: {app: first}}
    spec:
      serviceAccountName: sleep
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
        - name: first
          image: localhost/app:1
          imagePullPolicy: IfNotPresent
          command:
            - sh
            - -c
            - |
              for i in 1 2 3; do
                curl -sf -m 15 -o /dev/null -w '%{http_code} %{time_total}\\n' http://web || exit 1
              done
"""


LONELY = """
apiVersion: v1
kind: Service
metadata: {name: lonely, namespace: demo}
spec: {selector: {app: lonely}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: lonely, namespace: demo, labels: {app: lonely}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "localhost/app:1", imagePullPolicy: IfNotPresent}]
"""


def scale(tools, what, replicas, namespace="demo"):
    tools.kubectl("-n", namespace, "scale", what, f"--replicas={replicas}")
    tools.kubectl("-n", namespace, "rollout", "status", what, "--timeout=150s")


@pytest.fixture
def web_on_each_node(tools):
    """The scheduler prefers to spread the two pods of web, and need not: then one of them is moved."""
    found = pods(tools, "demo", "app=web")
    if {pod["spec"]["nodeName"] for pod in found} != {node.name for node in NODES}:
        crowded = found[0]["spec"]["nodeName"]
        tools.kubectl("cordon", crowded)
        try:
            tools.kubectl("-n", "demo", "delete", "pod", found[0]["metadata"]["name"])
            tools.kubectl("-n", "demo", "rollout", "status", "deployment/web", "--timeout=90s")
        finally:
            tools.kubectl("uncordon", crowded)
    assert {pod["spec"]["nodeName"] for pod in pods(tools, "demo", "app=web")} == {NODE1.name, NODE2.name}


@contextmanager
def without_istiod(tools):
    tools.kubectl("-n", NAMESPACE, "scale", "deployment/istiod", "--replicas=0")
    until("istiod is gone", 60, lambda: not pods(tools, NAMESPACE, "app=istiod"))
    try:
        yield
    finally:
        tools.kubectl("-n", NAMESPACE, "scale", "deployment/istiod", "--replicas=1")
        tools.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/istiod", "--timeout=150s")


def test_kill_9_of_ztunnel_costs_seconds(tools, seen):
    with traffic(tools, seconds=30, rate=25) as outcome:
        time.sleep(4)
        kill(tools, NODE1, NAMESPACE, "app=ztunnel")
    seen(f"{outcome}; no mesh for {outcome.gap:.1f} s; {outcome.slow_words}")
    assert outcome.new > 600
    assert outcome.gap < 5


@pytest.mark.parametrize(
    ("label", "name"), [("app=istiod", "istiod"), ("k8s-app=istio-cni-node", "istio-cni")]
)
def test_kill_9_costs_no_connection(tools, seen, label, name):
    del name
    node = next(
        node
        for node in NODES
        if any(pod["spec"]["nodeName"] == node.name for pod in pods(tools, NAMESPACE, label))
    )
    with traffic(tools, seconds=20, rate=25) as outcome:
        time.sleep(3)
        kill(tools, node, NAMESPACE, label)
    seen(outcome)
    assert (outcome.new_failed, outcome.kept_failed, outcome.stream_breaks) == (0, 0, 0), outcome.errors


def test_pods_come_and_go_while_istiod_is_away_for_two_minutes(tools, seen):
    known = {pod["metadata"]["name"] for pod in pods(tools, "demo", "app=web")}
    deleted: list[float] = []
    with traffic(tools, seconds=300, rate=15, until_done=True) as outcome:
        with without_istiod(tools):
            # Nobody is told of the new ones: of the two that clients know, one has to stay.
            for replicas, is_known in ((4, True), (5, False), (6, False)):
                tools.kubectl("-n", "demo", "scale", "deployment/web", f"--replicas={replicas}")
                time.sleep(20)
                names = [pod["metadata"]["name"] for pod in pods(tools, "demo", "app=web")]
                gone = next(name for name in names if (name in known) is is_known)
                tools.kubectl("-n", "demo", "delete", "pod", gone, "--wait=false")
                deleted += [time.time()] if is_known else []
                time.sleep(20)
        back = time.monotonic()
        tools.kubectl("-n", "demo", "rollout", "status", "deployment/web", "--timeout=60s")
        took = time.monotonic() - back
    scale(tools, "deployment/web", 2)
    seen(f"{outcome}; all pods ready {took:.1f} s after istiod was back")
    # Its process ends at once, with what it was about to answer.
    assert outcome.new_failed <= 2, outcome.errors
    [when] = deleted
    assert all(when - 2 < began < when + 2 for began, _ in outcome.failures), outcome.errors
    assert took < 15


def test_a_ztunnel_that_never_synced_is_ready_within_5_s_of_istiods_return(tools, seen):
    with without_istiod(tools):
        old = ztunnel_of(tools, NODE2)
        tools.kubectl("-n", NAMESPACE, "delete", "pod", old, "--wait=false")
        time.sleep(50)  # its backoff has long reached its cap
        new = ztunnel_of(tools, NODE2)
        assert new != old

    def ready():
        return any(
            pod["metadata"]["name"] == new and is_ready(pod) for pod in pods(tools, NAMESPACE, "app=ztunnel")
        )

    took = until("ztunnel is ready", 60, ready)
    seen(f"ready {took:.1f} s after istiod was")
    assert took < 5


# Without it a drain evicts all pods of the node at once, and they may be all that there are.
DISRUPTION_BUDGET = """
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: demo}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
"""


def test_a_drained_node_costs_no_new_connection(tools, seen, apply):
    apply(DISRUPTION_BUDGET)
    with traffic(tools, seconds=60, rate=25) as outcome:
        time.sleep(2)
        try:
            tools.kubectl(
                "drain",
                NODE2.name,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
                "--force",
                "--timeout=90s",
                timeout=120,
            )
            assert {pod["spec"]["nodeName"] for pod in pods(tools, "demo", "app=web")} == {NODE1.name}
        finally:
            tools.kubectl("uncordon", NODE2.name)
    tools.kubectl("-n", "demo", "rollout", "restart", "deployment/web")
    seen(outcome)
    assert outcome.new_failed == 0, outcome.errors


def test_the_eviction_of_ztunnels_pod_costs_no_new_connection(tools, seen):
    name = ztunnel_of(tools, NODE1)
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": NAMESPACE},
    }

    def successor_is_ready():
        return any(
            is_ready(pod)
            for pod in pods(tools, NAMESPACE, "app=ztunnel")
            if pod["spec"].get("nodeName") == NODE1.name and pod["metadata"]["name"] != name
        )

    with traffic(tools, seconds=40, rate=25) as outcome:
        time.sleep(2)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
        tools.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        took = until("the new ztunnel is ready", 60, successor_is_ready)
    seen(f"{outcome}; the new one was ready after {took:.1f} s")
    # The old one serves for 4 s more. A start that takes longer, on a busy machine, leaves nobody.
    assert outcome.new_failed == 0 or (took > 4 and outcome.gap < took), outcome.errors


def test_a_pod_deleted_by_force_costs_what_is_under_way_and_nothing_later(tools, seen, web_on_each_node):
    """Its process is killed with what it was about to answer, and the service has its address for a while."""
    with (
        end_of(tools, NODE1, "demo", "app=web") as ended,
        traffic(tools, seconds=20, rate=25) as outcome,
    ):
        time.sleep(3)
        victims = [pod for pod in pods(tools, "demo", "app=web") if pod["spec"]["nodeName"] == NODE1.name]
        name = victims[0]["metadata"]["name"]
        tools.kubectl("-n", "demo", "delete", "pod", name, "--force", "--grace-period=0")
        killed = ended()
    seen(f"{outcome}; those that failed were under way")
    assert outcome.new > 400
    assert all(began < killed for began, _ in outcome.failures), (killed, outcome.failures, outcome.errors)
    assert outcome.new_failed <= 2, outcome.errors


def memory(tools, node):
    """Resident and proportional memory of the node's ztunnel, all its processes, in MB."""
    summed = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Rss:/{r+=$2} /^Pss:/{p+=$2} END{print r, p}'"
    pid = process(tools, node, NAMESPACE, "app=ztunnel")
    said = run(*nodes.inside(node, tools.places, "nsenter", "-t", pid, "-m", "-p", "sh", "-c", summed))
    resident, proportional = (int(each) / 1000 for each in said.split())
    assert resident > 10, "no process was measured"
    return resident, proportional


def test_60_pods_scaled_up_and_down(tools, seen):
    before = memory(tools, NODE1)
    started = time.monotonic()
    scale(tools, "deployment/web", 60)
    up = time.monotonic() - started
    answers = {curl(tools, "http://web").body for _ in range(30)}
    assert len(answers) > 10
    during = memory(tools, NODE1)
    scale(tools, "deployment/web", 2)
    until("the pods are gone", 90, lambda: len(pods(tools, "demo", "app=web")) == 2)
    assert curl(tools, "http://web").status == 200
    after = memory(tools, NODE1)
    shown = (f"{resident:.0f} and {proportional:.0f}" for resident, proportional in (before, during, after))
    seen(f"all ready after {up:.0f} s; RSS and PSS in MB before, with 60 pods, after: {'; '.join(shown)}")
    assert during[0] < before[0] + 20, "half a megabyte for each pod would be a leak"


def test_a_jobs_first_act_is_a_connection(tools, seen, apply):
    apply(FIRST_ACT)
    tools.kubectl("-n", "demo", "wait", "--for=condition=complete", "job/first", "--timeout=120s")
    said = tools.kubectl("-n", "demo", "logs", "-l", "app=first", "--tail=-1").split("\n")
    times = [float(line.split()[1]) for line in said if line.startswith("200 ")]
    assert len(times) == 36
    seen(f"36 of 36 answered, the slowest after {max(times):.2f} s")


def test_the_loss_of_a_node_fails_no_new_connection(tools, seen, web_on_each_node):
    with traffic(tools, seconds=40, rate=20) as outcome:
        time.sleep(3)
        run("ip", "link", "set", NODE2.link, "down")
        time.sleep(25)
        run("ip", "link", "set", NODE2.link, "up")
    tools.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")
    seen(f"{outcome}; {outcome.slow_words}")
    assert outcome.new_failed == 0, outcome.errors


def test_a_service_whose_only_endpoint_is_silent_fails_after_10_s(tools, seen, apply):
    """There is no other endpoint to be patient for: one dial, and its time limit is the whole wait."""
    [client] = pods(tools, "demo", "app=sleep")
    node = NODE2 if client["spec"]["nodeName"] == NODE1.name else NODE1
    apply(LONELY.replace("NODE", node.name))
    tools.kubectl("-n", "demo", "wait", "--for=condition=Ready", "pod/lonely", "--timeout=60s")
    until(
        "both nodes know it",
        30,
        lambda: all(
            "lonely" in tools.istioctl("ztunnel-config", "workload", f"{ztunnel_of(tools, each)}.{NAMESPACE}")
            for each in NODES
        ),
    )
    silent = pods(tools, "demo", "app=lonely")[0]["status"]["podIP"]
    run("ip", "-n", node.netns, "route", "add", "blackhole", silent)
    try:
        answer = curl(tools, "http://lonely", seconds=30)
    finally:
        run("ip", "-n", node.netns, "route", "delete", "blackhole", silent)
    seen(f"failed after {answer.seconds:.1f} s")
    assert answer.status == 0
    assert 9.5 < answer.seconds < 12.5, answer
    until("it answers now", 30, lambda: curl(tools, "http://lonely").status == 200)
