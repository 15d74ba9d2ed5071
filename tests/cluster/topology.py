"""Names and addresses of the cluster: what lies where, in one place."""

from dataclasses import dataclass

BRIDGE = "zt-cluster"  # the nodes' switch, on the host
UNDERLAY = "10.231.0"  # .1 is the host, .11 and .12 are the nodes
PODS = "10.244.0.0/16"  # node N has 10.244.N.0/24
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
HOST = f"{UNDERLAY}.1"


@dataclass(frozen=True)
class Node:
    """One node: a network namespace on the bridge, with mounts, processes and a host name of its own."""

    number: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def netns(self) -> str:
        return f"zt-{self.name}"

    @property
    def link(self) -> str:
        """The host's end of its link."""
        return f"zt-{self.name}"

    @property
    def ip(self) -> str:
        return f"{UNDERLAY}.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def cgroup(self) -> str:
        return f"zt-{self.name}"


NODES = (Node(1), Node(2))
API_SERVER = f"https://{NODES[0].ip}:6443"
