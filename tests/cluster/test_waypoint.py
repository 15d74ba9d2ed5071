"""istiod's own waypoint with a real Envoy, between our ztunnels.

The Gateway object makes istiod deploy it, by its own template, with Istio's own agent.
manifests/waypoint.yaml says what a plain Envoy cannot load.
"""

from __future__ import annotations

import pytest

from tests.cluster import cluster, mesh
from tests.cluster.look import NODE1, NODE2, curl, endings, logs, pods, ztunnel_of
from tests.cluster.shell import until
from tests.cluster.test_rollouts import restart
from tests.cluster.traffic import traffic

LABEL = "gateway.networking.k8s.io/gateway-name=waypoint"

PATHS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: demo}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  action: DENY
  rules: [{from: [{source: {serviceAccounts: ["demo/sleep"]}}], to: [{operation: {paths: ["/private*"]}}]}]
"""

ONLY_THE_WAYPOINT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-the-waypoint, namespace: demo}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {serviceAccounts: ["demo/waypoint"]}}]}]
"""

REDIRECT = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: demo}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /old}}]
      filters:
        - type: RequestRedirect
          requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}
    - backendRefs: [{name: web, port: 80}]
"""


def whom_web_saw(tools):
    """The address that web takes for its client's; empty without an answer."""
    return curl(tools, "http://web").body.strip().rpartition(" ")[2]


@pytest.fixture(scope="module")
def waypoint(tools):
    """The address of the waypoint's pod; the service web is behind it."""
    assert mesh.install_gateway_api(tools)
    manifest = cluster.MANIFESTS / "waypoint.yaml"
    tools.kubectl("apply", "-f", manifest)
    try:
        until(
            "istiod deploys it",
            60,
            lambda: "waypoint" in tools.kubectl("-n", "demo", "get", "deployment", "-o", "name"),
        )
        tools.kubectl("-n", "demo", "rollout", "status", "deployment/waypoint", "--timeout=120s")
        tools.kubectl("-n", "demo", "label", "service", "web", "istio.io/use-waypoint=waypoint")
        [pod] = pods(tools, "demo", LABEL)
        address = pod["status"]["podIP"]
        until("web is behind it", 30, lambda: whom_web_saw(tools) == address)
        yield address
    finally:
        tools.kubectl("-n", "demo", "label", "service", "web", "istio.io/use-waypoint-")
        tools.kubectl("delete", "--wait=true", "-f", manifest)
        until(
            "web is reached without it",
            60,
            lambda: bool(own := whom_web_saw(tools)) and own in addresses(tools, "app=sleep"),
        )


def addresses(tools, label):
    return {pod["status"]["podIP"] for pod in pods(tools, "demo", label)}


def test_requests_go_through_the_waypoint_and_calls_to_pods_do_not(tools, seen, waypoint):
    assert {whom_web_saw(tools) for _ in range(10)} == {waypoint}
    said = tools.kubectl("-n", "demo", "exec", "deploy/sleep", "--", "curl", "-si", "-m", "10", "http://web")
    assert "server: istio-envoy" in said
    [direct, *_] = sorted(addresses(tools, "app=web"))
    own = curl(tools, f"http://{direct}:8080").body.strip().rpartition(" ")[2]
    assert own in addresses(tools, "app=sleep")
    lines = [line for node in (NODE1, NODE2) for line in logs(tools, ztunnel_of(tools, node))]
    assert any(
        'dst.service="web.demo.svc.cluster.local"' in line and f"{waypoint}:15008" in line for line in lines
    )
    listed = tools.istioctl("ztunnel-config", "service", "--service-namespace", "demo")
    assert any("web" in line and "waypoint" in line for line in listed.splitlines())
    seen("ten of ten through Envoy; by a pod's address none")


def test_a_policy_on_paths_is_applied_by_the_waypoint(tools, seen, apply, waypoint):
    apply(PATHS)
    until("the path is refused", 30, lambda: curl(tools, "http://web/private/x").status == 403)
    assert curl(tools, "http://web/public").status == 200
    seen("403 for /private/x by the client's identity, 200 for /public")


def test_a_route_of_the_waypoint(tools, seen, apply, waypoint):
    apply(REDIRECT)
    until("it is redirected", 30, lambda: curl(tools, "http://web/old").status == 302)
    assert curl(tools, "http://web/").status == 200
    seen("302 for /old by an HTTPRoute")


def test_a_server_that_takes_nobody_but_the_waypoint(tools, seen, apply, waypoint):
    apply(ONLY_THE_WAYPOINT)
    [direct, *_] = sorted(addresses(tools, "app=web"))
    until("others are refused", 30, lambda: set(endings(tools, direct, 8080, count=3)) == {"reset"})
    assert curl(tools, "http://web").status == 200
    seen("the service answered through it; a pod's address reset the connection")


def test_ztunnels_restart_with_a_waypoint_fails_no_new_connection(tools, seen, waypoint):
    with traffic(tools, seconds=300, rate=25, until_done=True) as outcome:
        restart(tools)
    seen(outcome)
    assert outcome.new > 50
    assert outcome.new_failed == 0, outcome.errors
