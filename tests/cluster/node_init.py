"""Process 1 of a node: containerd, kubelet and kube-proxy, in namespaces of their own.

Those are network, mounts, processes, host name and IPC.

usage: python -m tests.cluster.node_init NODE CACHE        (started by tests.cluster.nodes, never by hand)

The node writes nowhere but below its directory in the cluster's state: /run is a new tmpfs; /etc, /opt,
/var/lib and /var/log are
overlays over the host's. When this process ends, the kernel ends everything in the node, and its mounts go
with it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from tests.cluster import programs
from tests.cluster.places import Places
from tests.cluster.shell import run, until
from tests.cluster.topology import DNS_SERVICE, NODES, PODS, Node

CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
_WEIGHT = 20
"""A node's share of the processors, in processes: it stands for a machine, and would count as one process."""


def main(node: Node, places: Places) -> None:
    """Makes the node and keeps its three programs running until a signal ends it."""
    home = places.state / node.name
    run("hostname", node.name)
    _mounts(home)
    _switches()
    _cgroups(node)
    _write_configuration(node, places, home)
    daemons = {
        "containerd": ["containerd", "-c", str(home / "containerd.toml")],
        "kubelet": [
            str(programs.program("kubelet").path(places)),
            f"--config={home}/kubelet.yaml",
            f"--kubeconfig={places.state}/{node.name}.conf",
            f"--hostname-override={node.name}",
            f"--node-ip={node.ip}",
            "--root-dir=/var/lib/kubelet",
            "--v=1",
        ],
        "kube-proxy": [
            str(programs.program("kube-proxy").path(places)),
            f"--config={home}/proxy.yaml",
            "--v=1",
        ],
    }
    signal.signal(signal.SIGTERM, _end)
    running: dict[int, str] = {}
    for name, command in daemons.items():
        running[_start(command, home / f"{name}.log")] = name
        if name == "containerd":
            until("containerd answers", 60, lambda: bool(run("ctr", "version", check=False).strip()))
    (home / "up").touch()
    while True:
        pid, _ = os.waitpid(-1, 0)  # orphans of the node's containers come here as well
        if (ended := running.pop(pid, None)) is not None:
            time.sleep(1)
            running[_start(daemons[ended], home / f"{ended}.log")] = ended


def _end(_signal: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _start(command: list[str], log: Path) -> int:
    with log.open("ab") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out).pid


def _mounts(home: Path) -> None:
    run("mount", "--make-rprivate", "/")
    run("mount", "--make-rshared", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "node-run", "/run")
    for each in ("containerd", "netns", "ztunnel", "istio-cni", "lock"):
        Path("/run", each).mkdir()
    for each in ("etc", "opt", "var/lib", "var/log"):
        upper, work = home / "overlay" / each / "upper", home / "overlay" / each / "work"
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        run(
            "mount",
            "-t",
            "overlay",
            "-o",
            f"lowerdir=/{each},upperdir={upper},workdir={work}",
            "node",
            f"/{each}",
        )
        run("mount", "--make-shared", f"/{each}")
    # Neither containers' file systems nor kubelet's volumes can lie on an overlay.
    for each in ("/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods"):
        own = home / each.replace("/", "-").strip("-")
        own.mkdir(exist_ok=True)
        Path(each).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", own, each)
        run("mount", "--make-shared", each)
    plugins, networks = Path("/opt/cni/bin"), Path("/etc/cni/net.d")
    plugins.mkdir(parents=True, exist_ok=True)
    networks.mkdir(parents=True, exist_ok=True)
    for each in ("bridge", "host-local", "loopback", "portmap"):
        run("cp", "-u", f"/usr/lib/cni/{each}", plugins)


def _switches() -> None:
    run(
        "sysctl",
        "-qw",
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.rp_filter=0",
        "net.ipv4.conf.default.rp_filter=0",
        "net.ipv6.conf.all.forwarding=1",
    )


def _cgroups(node: Node) -> None:
    """A subtree of its own in each hierarchy; process 1 moves into it, and what it starts is born there."""
    unified = Path("/sys/fs/cgroup")
    if (unified / "cgroup.controllers").exists():  # version 2: one hierarchy, controllers handed down
        hand_down = " ".join(f"+{each}" for each in (unified / "cgroup.controllers").read_text().split())
        own = unified / node.cgroup
        (unified / "cgroup.subtree_control").write_text(hand_down)
        (own / "runtime").mkdir(parents=True, exist_ok=True)
        (own / "runtime" / "cgroup.procs").write_text(str(os.getpid()))
        (own / "cgroup.subtree_control").write_text(hand_down)
        (own / "cpu.weight").write_text(str(100 * _WEIGHT))
        return
    for controller in CONTROLLERS:
        root = Path("/sys/fs/cgroup") / controller
        if not root.is_dir():
            continue
        for directory in (root / node.cgroup, root / node.cgroup / "runtime"):
            directory.mkdir(exist_ok=True)
            if controller == "cpuset":  # empty at birth, and nothing runs in an empty set
                for each in ("cpuset.cpus", "cpuset.mems"):
                    (directory / each).write_text((root / each).read_text())
        (root / node.cgroup / "runtime" / "cgroup.procs").write_text(str(os.getpid()))
        if controller == "cpu":
            (root / node.cgroup / "cpu.shares").write_text(str(1024 * _WEIGHT))


def _write_configuration(node: Node, places: Places, home: Path) -> None:
    pki = places.state / "pki"
    (home / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (home / "containerd.toml").write_text(_CONTAINERD)
    kubelet: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/{node.name}.crt",
        "tlsPrivateKeyFile": f"{pki}/{node.name}.key",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{home}/resolv.conf",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "syncFrequency": "15s",  # a changed ConfigMap reaches its pods by then, not after a minute or two
        "failSwapOn": False,
        "oomScoreAdj": 0,  # a container's root has no CAP_SYS_RESOURCE
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "evictionHard": {
            "memory.available": "10Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "maxPods": 200,
        "nodeStatusReportFrequency": "1m",
    }
    proxy: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{places.state}/proxy.conf"},
        "mode": "nftables",
        "clusterCIDR": PODS,
        "hostnameOverride": node.name,
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/netns/ipam",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (home / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
    (home / "proxy.yaml").write_text(yaml.safe_dump(proxy))
    conflist = Path("/etc/cni/net.d/10-pods.conflist")
    if not conflist.exists():  # istio-cni adds itself to the one that is there
        conflist.write_text(json.dumps(network))


# restrict_oom_score_adj, disable_apparmor: a container's root can neither lower oom scores nor load profiles.
_CONTAINERD = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""

if __name__ == "__main__":
    main(next(each for each in NODES if each.name == sys.argv[1]), Places(Path(sys.argv[2])))
