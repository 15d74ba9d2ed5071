"""Installing, upgrading, rolling back and restarting ztunnel under traffic."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.cluster import mesh
from tests.cluster.look import NODE1, NODE2, curl, is_ready, pods, warnings, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.places import CHECKOUT
from tests.cluster.shell import CommandFailed, until
from tests.cluster.traffic import traffic

SECONDS = 45.0


def restart(tools):
    tools.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/ztunnel")
    tools.kubectl("-n", NAMESPACE, "rollout", "status", "daemonset/ztunnel", "--timeout=120s")


def test_helm_upgrade_with_the_same_values_cuts_nothing(tools, seen):
    before = {ztunnel_of(tools, node) for node in (NODE1, NODE2)}
    with traffic(tools, seconds=12, rate=25) as outcome:
        mesh.install_ztunnel(tools)
    assert {ztunnel_of(tools, node) for node in (NODE1, NODE2)} == before
    seen(outcome)
    assert (outcome.new_failed, outcome.kept_failed, outcome.stream_breaks) == (0, 0, 0), outcome.errors


def test_a_rollout_restart_fails_no_new_connection_at_100_a_second(tools, seen):
    with traffic(tools, seconds=SECONDS, rate=100) as outcome:
        time.sleep(3)
        restart(tools)
    seen(f"{outcome}; {outcome.slow_words}")
    assert outcome.new_failed == 0, outcome.errors
    # Open connections stay with the old ztunnel, and it may drain for 25 of its 30 s of grace: two nodes,
    # two cuts.
    assert outcome.kept_failed <= 2
    assert outcome.stream_breaks <= 2


def test_with_a_long_grace_period_a_restart_cuts_nothing(tools, seen):
    mesh.install_ztunnel(tools, "--set=terminationGracePeriodSeconds=300")
    try:
        with traffic(tools, seconds=SECONDS, rate=25) as outcome:
            time.sleep(2)
            restart(tools)
    finally:
        mesh.install_ztunnel(tools)
    seen(outcome)
    assert (outcome.new_failed, outcome.kept_failed, outcome.stream_breaks) == (0, 0, 0), outcome.errors
    assert outcome.lines > SECONDS / 2


def test_an_upgrade_and_a_rollback_by_helm_fail_no_new_connection(tools, seen):
    with traffic(tools, seconds=60, rate=25) as outcome:
        mesh.install_ztunnel(tools, "--set=logLevel=info\\,access=debug", "--set=env.CLUSTER_TEST=upgraded")
        upgraded = tools.kubectl("-n", NAMESPACE, "get", "daemonset", "ztunnel", "-o", "yaml")
        tools.helm("rollback", "ztunnel", "-n", NAMESPACE, "--wait", "--timeout=3m")
        tools.kubectl("-n", NAMESPACE, "rollout", "status", "daemonset/ztunnel", "--timeout=120s")
    assert "CLUSTER_TEST" in upgraded
    assert "CLUSTER_TEST" not in tools.kubectl("-n", NAMESPACE, "get", "daemonset", "ztunnel", "-o", "yaml")
    seen(outcome)
    assert outcome.new_failed == 0, outcome.errors


def test_what_an_interrupted_upgrade_leaves_is_gone_on_from(tools, seen):
    chart = CHECKOUT / "charts" / "ztunnel"
    wrong = (*mesh.ZTUNNEL_VALUES, "--set=tag=there-is-no-such", "--wait")
    command = [str(mesh.helm()), "upgrade", "ztunnel", str(chart), "-n", NAMESPACE, *wrong]
    with subprocess.Popen(command, env=tools.env, stdout=subprocess.DEVNULL) as upgrade:
        until("helm is at it", 30, lambda: "ztunnel" in tools.helm("list", "--pending", "-qn", NAMESPACE))
        upgrade.kill()
    with pytest.raises(CommandFailed, match="another operation"):
        mesh.install_ztunnel(tools)
    mesh.forget_interrupted(tools)
    mesh.install_ztunnel(tools)
    assert curl(tools, "http://web").status == 200
    seen("helm refused, its record of the interrupted command was removed, then it upgraded")


@pytest.mark.parametrize("times", [20])
def test_ready_within_two_seconds_of_the_start_and_no_warning(tools, seen, times):
    took: list[float] = []
    for _ in range(times):
        old = ztunnel_of(tools, NODE1)
        tools.kubectl("-n", NAMESPACE, "delete", "pod", old, "--wait=false")
        state: dict[str, float] = {}

        def ready(old: str = old, state: dict[str, float] = state) -> bool:
            new = [
                pod
                for pod in pods(tools, NAMESPACE, "app=ztunnel")
                if pod["spec"].get("nodeName") == NODE1.name and pod["metadata"]["name"] != old
            ]
            if not new:
                return False
            statuses = new[0]["status"].get("containerStatuses", [{}])
            if "running" in statuses[0].get("state", {}):
                state.setdefault("running", time.monotonic())
            return is_ready(new[0])

        until("the new ztunnel is ready", 60, ready, every=0.05)
        now = time.monotonic()
        took.append(now - state["running"])
        name = ztunnel_of(tools, NODE1)
        assert warnings(tools, name) == []
    seen(f"{times} restarts: {min(took):.1f} to {max(took):.1f} s from running to Ready")
    assert max(took) < 2.5  # two seconds, and what kubectl takes to see it
