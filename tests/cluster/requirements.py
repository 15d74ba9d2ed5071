"""What the cluster needs of the machine, and the command that installs what is missing."""

import os
import shutil
from pathlib import Path

from tests.needs import deps

# What of the list for all tests the cluster runs too.
_ALSO = ("ip", "iptables", "nft", "curl", "debootstrap", "unshare")


def missing() -> list[str]:
    """Sentences that say what is missing; empty when all is there."""
    if os.geteuid() != 0:
        return ["It needs root: namespaces, mounts and cgroups are made."]
    said = []
    wanted = [*_ALSO, *(deps.read_list(cluster=True).keys() - deps.read_list().keys())]
    wants = sorted(program for program in wanted if not deps.is_there(program))
    if wants:
        said.append(f"{', '.join(wants)}, which `scripts/deps --cluster` installs:\n{deps.explain(wants)}")
    if shutil.which("go") is None:
        said.append("Go 1.26, which compiles the cluster's programs: https://go.dev/dl/")
    if not Path("/sys/fs/cgroup/memory").is_dir() and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        said.append("Control groups: mount /sys/fs/cgroup.")
    return said
