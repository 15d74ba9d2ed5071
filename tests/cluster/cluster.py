"""A whole cluster: up, and down again."""

import json
import shutil
from pathlib import Path

from tests.cluster import control_plane, mesh, nodes, programs, requirements
from tests.cluster.footprint import footprint, left_behind, processes, record
from tests.cluster.images import Images
from tests.cluster.mesh import Tools
from tests.cluster.places import CHECKOUT, Places, Progress
from tests.cluster.shell import until
from tests.cluster.topology import BRIDGE, NODES

MANIFESTS = CHECKOUT / "tests" / "cluster" / "manifests"


def up(places: Places, progress: Progress) -> None:
    """Brings up what is not up: cluster, Istio, our ztunnel, two applications. Each step may be repeated.

    Raises SystemExit with what is missing on the machine, CommandFailed, TimeoutError, and RuntimeError, also
    when another cluster is up: there can be one on a machine.
    """
    lacking = requirements.missing()
    if lacking:
        raise SystemExit(
            "\n".join(["The cluster cannot start. Missing:", *(f"  {each}" for each in lacking)])
        )
    if is_on_this_machine() and not places.state.exists():
        raise RuntimeError(
            f"a cluster is up on this machine that is not of {places.cache}: `make cluster-down` where it "
            "was started, or with its CLUSTER_CACHE, ends it"
        )
    programs.build(places, progress)
    images = Images(places, progress)
    images.make()
    progress.say("programs and images are there")
    places.state.mkdir(parents=True, exist_ok=True)
    places.state.chmod(0o700)
    if not (places.state / "footprint.json").exists():
        record(places.state)
    (places.state / "ztunnel-tag").write_text(bare(places, progress, images))
    tools = Tools(places)
    mesh.forget_interrupted(tools)
    mesh.install_istio(tools)
    progress.say("istiod and istio-cni are ready")
    mesh.install_ztunnel(tools)
    progress.say("ztunnel is ready on both nodes")
    tools.kubectl("apply", "-f", MANIFESTS / "apps.yaml")
    for name in ("web", "sleep"):
        tools.kubectl("-n", "demo", "rollout", "status", f"deployment/{name}", "--timeout=120s")
    progress.say("the applications are ready")


def bare(places: Places, progress: Progress, images: Images) -> str:
    """Kubernetes alone: control plane, two nodes, CoreDNS. Answers the tag of our image in it."""
    nodes.connect()
    control_plane.issue(places)
    control_plane.start(places)
    progress.say("the API server is ready")
    for node in NODES:
        nodes.start(node, places)
    tag = images.into_nodes()
    tools = Tools(places)
    tools.kubectl("apply", "-f", MANIFESTS / "cluster.yaml")
    until(
        "the nodes are registered",
        60,
        lambda: len(tools.kubectl("get", "node", "-o", "name").split()) == len(NODES),
    )
    tools.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")
    tools.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
    progress.say("both nodes and CoreDNS are ready")
    return tag


def down(places: Places) -> list[str]:
    """Ends the cluster and removes its state.

    Answers what is left that was not there before; nothing, as it should be. Of a cluster with another cache
    it answers the processes, and touches nothing.
    """
    if not places.state.exists() and (others := processes(places.state)):
        return [f"of a cluster that is not of {places.cache}: {each}" for each in others]
    for node in NODES:
        nodes.stop(node, places)
    control_plane.stop(places)
    nodes.disconnect()
    known = places.state / "footprint.json"
    before = json.loads(known.read_text()) if known.exists() else None
    if places.state.exists():
        shutil.rmtree(places.state)
    return left_behind(before, footprint(places.state)) if before is not None else []


def is_on_this_machine() -> bool:
    """Whether a cluster is up, or what is left of one."""
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def hints(places: Places) -> str:
    """How to reach the cluster, and five commands worth trying."""
    istioctl = programs.program("istioctl").path(places).parent
    state = places.state
    ours = (
        f"export KUBECONFIG={state}/admin.conf KUBECACHEDIR={state}/kubectl "
        f"PATH={istioctl}:{mesh.helm().parent}:$PATH"
    )
    return f"""\
The cluster is up. To reach it:

  {ours}

Worth trying:

  kubectl -n demo exec deploy/sleep -- curl -s web
  kubectl -n istio-system logs ds/ztunnel --tail=3
  istioctl ztunnel-config workload
  kubectl -n istio-system rollout restart ds/ztunnel
  kubectl -n istio-system get pods -o wide

`make cluster-down` ends it, and leaves nothing but programs and images in {places.cache}.
"""
