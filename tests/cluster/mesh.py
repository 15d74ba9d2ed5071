"""Istio's base, istiod and CNI agent by Istio's own charts, and our ztunnel by ours.

What a user does by helm.
"""

import json
import os
import shutil
from pathlib import Path

from tests.cluster import programs
from tests.cluster.places import CHECKOUT, Places
from tests.cluster.shell import CommandFailed, run

NAMESPACE = "istio-system"
COMMON_VALUES = (
    "--set=profile=ambient",
    "--set=global.hub=localhost/istio",
    "--set=global.tag=1",
    "--set=global.variant=",
    "--set=global.imagePullPolicy=IfNotPresent",
)
ZTUNNEL_VALUES = (
    "--set=profile=ambient",
    "--set=hub=localhost/mesh",
    "--set=variant=",
    "--set=imagePullPolicy=IfNotPresent",
)
ISTIOD_VALUES = (
    "--set=resources.requests.cpu=50m",
    "--set=resources.requests.memory=256Mi",
    "--set=autoscaleEnabled=false",
    "--set-string=env.AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY=true",
)
# With both backends in its image istio-cni picks nft first and legacy after a restart, and then leaves
# rules behind.
CNI_VALUES = ("--set=env.FORCE_IPTABLES_BINARY=nft",)


class Tools:
    """kubectl, helm and istioctl against this cluster."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.kubeconfig = places.state / "admin.conf"
        self.env = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(places.state / "kubectl"),
        }

    def kubectl(
        self, *arguments: str | Path, stdin: str | None = None, timeout: float = 180.0, check: bool = True
    ) -> str:
        """What kubectl says. Raises CommandFailed."""
        return run("kubectl", *arguments, env=self.env, stdin=stdin, timeout=timeout, check=check)

    def apply(self, manifest: str) -> None:
        """Applies objects, given as YAML."""
        self.kubectl("apply", "-f", "-", stdin=manifest)

    def helm(self, *arguments: str | Path, timeout: float = 300.0) -> str:
        """What helm says. Raises CommandFailed."""
        return run(helm(), *arguments, env=self.env, timeout=timeout)

    def istioctl(
        self, *arguments: str, timeout: float = 180.0, check: bool = True, cwd: Path | None = None
    ) -> str:
        """What istioctl says, on both outputs. Raises CommandFailed."""
        return run(
            programs.program("istioctl").path(self.places),
            *arguments,
            env=self.env,
            timeout=timeout,
            check=check,
            cwd=cwd,
            both=True,
        )


def helm() -> Path:
    """The project's own helm, built when it is not there yet."""
    return Path(run(CHECKOUT / "scripts" / "tools", "helm", timeout=1200).strip())


def charts(places: Places) -> Path:
    """Istio's charts of the pinned version, copied into the cache, where they can be written."""
    target = places.cache / "charts" / programs.ISTIO.pinned
    if not target.exists():
        source = programs.charts()
        half = target.with_name(target.name + ".new")
        shutil.rmtree(half, ignore_errors=True)
        for name, path in (
            ("base", "base"),
            ("istiod", "istio-control/istio-discovery"),
            ("cni", "istio-cni"),
        ):
            shutil.copytree(source / path, half / name, copy_function=shutil.copyfile)
        run("chmod", "-R", "u+w", half)
        half.rename(target)
    return target


def native_nftables() -> bool:
    """Whether istio-cni is to write its rules as nftables itself, and not through iptables."""
    return bool(os.environ.get("CLUSTER_NATIVE_NFTABLES"))


def forget_interrupted(tools: Tools) -> None:
    """Removes helm's record of an interrupted command, with which it refuses to go on. The objects stay."""
    for release in json.loads(tools.helm("list", "--pending", "-n", NAMESPACE, "-o", "json")):
        record = f"sh.helm.release.v1.{release['name']}.v{release['revision']}"
        tools.kubectl("-n", NAMESPACE, "delete", "secret", record)


def install_istio(tools: Tools, *, istiod: tuple[str, ...] = (), cni: tuple[str, ...] = ()) -> None:
    """Installs or upgrades Istio without a ztunnel; returns when it is ready. Raises CommandFailed."""
    here = charts(tools.places)
    if native_nftables():
        native = ("--set=global.nativeNftables=true", "--set=env.FORCE_IPTABLES_BINARY=")
        istiod, cni = (*istiod, native[0]), (*cni, *native)
    if NAMESPACE not in tools.kubectl("get", "namespace", "-o", "name"):
        tools.kubectl("create", "namespace", NAMESPACE)
    install = ("upgrade", "--install", "-n", NAMESPACE)
    tools.helm(*install, "istio-base", here / "base", *COMMON_VALUES)
    tools.helm(
        *install, "istiod", here / "istiod", *COMMON_VALUES, *ISTIOD_VALUES, *istiod, "--wait", "--timeout=3m"
    )
    tools.helm(
        *install, "istio-cni", here / "cni", *COMMON_VALUES, *CNI_VALUES, *cni, "--wait", "--timeout=3m"
    )


def install_ztunnel(
    tools: Tools, *values: str, chart: Path = CHECKOUT / "charts" / "ztunnel", name: str = "ztunnel"
) -> None:
    """Installs or upgrades our ztunnel as docs/install.md says.

    Returns when it is ready. Raises CommandFailed.
    """
    tools.helm(
        "upgrade",
        "--install",
        "ztunnel",
        chart,
        "-n",
        NAMESPACE,
        *ZTUNNEL_VALUES,
        f"--set=tag={(tools.places.state / 'ztunnel-tag').read_text()}",
        *values,
        "--wait",
        "--timeout=3m",
    )
    tools.kubectl("-n", NAMESPACE, "rollout", "status", f"daemonset/{name}", "--timeout=120s")


def install_gateway_api(tools: Tools) -> bool:
    """Installs the CRDs of the Gateway API as Istio's source carries them. Answers whether it has them."""
    found = sorted(programs.istio_source().glob("tests/integration/pilot/testdata/gateway-api-crd.yaml"))
    if not found:
        return False
    try:
        tools.kubectl("apply", "--server-side", "-f", found[0])
    except CommandFailed:
        tools.kubectl("create", "-f", found[0])
    return True
