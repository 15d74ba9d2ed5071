"""What the machine holds that a cluster could leave behind.

Recorded before `make cluster`, compared after `make cluster-down`.
"""

import json
from pathlib import Path

from tests.cluster.shell import run
from tests.cluster.topology import BRIDGE, NODES, UNDERLAY

_PATHS = (
    "/opt/cni",
    "/etc/cni",
    "/run/ztunnel",
    "/run/istio-cni",
    "/run/containerd",
    "/run/netns",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/log/pods",
    "/var/log/containers",
)
_SWITCHES = (
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv6/conf/all/forwarding",
)


def footprint(state: Path) -> dict[str, list[str]]:
    """Links, routes, rules, namespaces, mounts, cgroups, switches, paths.

    And the processes that belong to the cluster.
    """
    return {
        "links": sorted(line.split(": ")[1].split("@")[0] for line in run("ip", "-o", "link").splitlines()),
        "routes": sorted(
            line.strip()
            for line in run("ip", "route", "show", "table", "all").splitlines()
            if "cache" not in line
        ),
        "network namespaces": sorted(line.split()[0] for line in run("ip", "netns").splitlines() if line),
        "nft rules": sorted(set(run("nft", "list", "tables").splitlines())),
        "iptables rules": [
            line for line in run("iptables-save", check=False).splitlines() if line and line[0] not in "#:"
        ],
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": sorted(
            str(path) for node in NODES for path in Path("/sys/fs/cgroup").glob(f"**/{node.cgroup}")
        ),
        "switches": [f"{path}={Path(path).read_text().strip()}" for path in _SWITCHES],
        "paths": [
            entry
            for path in _PATHS
            if Path(path).exists()
            for entry in [path, *(str(below) for below in Path(path).iterdir())]
        ],
        "processes": processes(state),
    }


def processes(state: Path) -> list[str]:
    """Processes that run from the cluster's state or in one of its namespaces, as "number command"."""
    spaces = set()
    for node in NODES:
        try:
            spaces.add(Path(f"/run/netns/{node.netns}").stat().st_ino)
        except OSError:
            continue
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            cgroup = (entry / "cgroup").read_text()
            space = (entry / "ns/net").stat().st_ino
        except OSError:
            continue
        ours = any(f"/{node.cgroup}" in cgroup for node in NODES) or space in spaces or f"{state}/" in command
        if ours:
            found.append(f"{entry.name} {command[:100]}")
    return sorted(found)


def record(state: Path) -> None:
    """Writes down what is there before the cluster is."""
    (state / "footprint.json").write_text(json.dumps(footprint(state)))


def left_behind(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What of the cluster is there after and was not there before, and switches that changed.

    Others make namespaces, links and mounts on the same machine meanwhile: of those, only what has a name or
    an address of the cluster's counts.
    """
    found = []
    for kind, now in after.items():
        for each in now:
            if each in before.get(kind, []) or (kind in _SHARED and not _is_ours(each)):
                continue
            found.append(f"{kind}: {each}")
    return found


_SHARED = ("links", "routes", "network namespaces", "mounts", "paths")
_MARKS = (BRIDGE, f"{UNDERLAY}.", "10.244.", "10.96.", "/cluster/state", *_PATHS)


def _is_ours(each: str) -> bool:
    if each.startswith("/run/netns/"):
        each = each.removeprefix("/run/netns/")
        return each in {node.netns for node in NODES} or each.startswith("cni-")
    return each in {node.netns for node in NODES} or any(mark in each for mark in _MARKS)
