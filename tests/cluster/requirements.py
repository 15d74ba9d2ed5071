"""What the cluster needs of the machine, and the command that installs what is missing."""

import os
import shutil
from pathlib import Path

# program -> Debian package
_PROGRAMS = {
    "buildah": "buildah",
    "containerd": "containerd",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "kubectl": "kubernetes-client",
    "cc": "gcc",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables-save": "iptables",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
    "pgrep": "procps",
}
_PLUGINS = Path("/usr/lib/cni/bridge")


def missing() -> list[str]:
    """Sentences that say what is missing; empty when all is there."""
    if os.geteuid() != 0:
        return ["It needs root: namespaces, mounts and cgroups are made."]
    wants = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if not _PLUGINS.exists():
        wants.append("containernetworking-plugins")
    said = []
    if wants:
        said.append(
            f"Debian packages: apt-get install --no-install-recommends {' '.join(sorted(set(wants)))}"
        )
    if shutil.which("go") is None:
        said.append("Go 1.26, which compiles the cluster's programs: https://go.dev/dl/")
    if not Path("/sys/fs/cgroup/memory").is_dir() and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        said.append("Control groups: mount /sys/fs/cgroup.")
    return said
