"""Nodes and pods as network namespaces: veth pairs, addresses, routes, and the network between the nodes.

Each node has a subnet for its pods, ``10.77.<n>.0/24`` and ``fd77:<n>::/64``, and one address on the network
between nodes (called wire), ``10.78.0.<n>`` and ``fd78::<n>``. Pods are reached by host routes over one veth
pair each, as with most CNI plugins; the node's end has the gateway address ``.1`` of the subnet. The wire is
a namespace with a bridge, where everything between nodes can be captured. Nothing is made in the namespace in
which this program was started.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

from ztunnel.demo import processes
from ztunnel.demo.machine import Machine
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.nftables import apply_rules
from ztunnel.demo.redirection import (
    MARK_MASK,
    REPLY_MARK,
    REPLY_RULE_PRIORITY,
    REPLY_TABLE,
    RedirectionOptions,
    iptables_rules,
    nftables_rules,
)

_NO_DUPLICATE_DETECTION = 0x02  # IFA_F_NODAD: a fresh IPv6 address is usable at once
_NAME_LENGTH = 15

BACKENDS = ("iptables", "nftables", "netlink")
"""Ways to set rules: the programs iptables-restore and nft, and nftables rules without any program."""


class RedirectionUnavailableError(RuntimeError):
    """None of the backends could be set up; the text says what each answered."""


@contextmanager
def netlink(namespace: OwnedNamespace) -> Iterator[IPRoute]:
    """A netlink socket into a namespace, closed at the end of the ``with``."""
    with namespace.entered():
        routes = IPRoute()
    try:
        yield routes
    finally:
        routes.close()


def set_kernel_setting(namespace: OwnedNamespace, name: str, value: str) -> None:
    """Set ``/proc/sys/<name>`` of a namespace. Raises OSError."""
    with namespace.entered():
        Path("/proc/sys", name).write_text(value)


class Pod:
    """A namespace with one interface ``eth0`` to its node, and the addresses on it."""

    def __init__(self, name: str, node: Node, namespace: OwnedNamespace, ipv4: str, ipv6: str | None) -> None:
        self.name = name
        self.node = node
        self.namespace = namespace
        self.ipv4 = ipv4
        self.ipv6 = ipv6

    @property
    def addresses(self) -> list[str]:
        """IPv4 first, then IPv6 if there is one."""
        return [self.ipv4] if self.ipv6 is None else [self.ipv4, self.ipv6]


class Node:
    """A namespace that routes between its pods and the wire."""

    def __init__(self, name: str, index: int, network: Network, namespace: OwnedNamespace) -> None:
        self.name = name
        self.index = index
        self.network = network
        self.namespace = namespace
        self.pods: list[Pod] = []

    @property
    def gateway_ipv4(self) -> str:
        """The node's address on the side of its pods."""
        return f"10.77.{self.index}.1"

    @property
    def gateway_ipv6(self) -> str:
        """The node's IPv6 address on the side of its pods."""
        return f"fd77:{self.index}::1"

    def pod(self, name: str, *, ipv4: str | None = None, ipv6: str | None = None) -> Pod:
        """Make a pod on this node; addresses not given are the next free ones of the node's subnet."""
        number = len(self.pods) + 10
        ipv4 = ipv4 or f"10.77.{self.index}.{number}"
        if self.network.has_ipv6:
            ipv6 = ipv6 or f"fd77:{self.index}::{number:x}"
        namespace = self.network.make_namespace(name)
        pod = Pod(name, self, namespace, ipv4, ipv6)
        self.pods.append(pod)
        link = f"veth-{name}"[:_NAME_LENGTH] if len(name) <= 10 else f"veth{number}"
        with netlink(self.namespace) as outer, netlink(namespace) as inner:
            outer.link(
                "add",
                ifname=link,
                kind="veth",
                peer={"ifname": "eth0", "net_ns_fd": namespace.descriptor},
            )
            outside, inside = _index(outer, link), _index(inner, "eth0")
            pairs = [(ipv4, self.gateway_ipv4, "0.0.0.0/0", 32)]
            if ipv6 is not None:
                pairs.append((ipv6, self.gateway_ipv6, "::/0", 128))
            for address, gateway, _, length in pairs:
                outer.addr(
                    "add", index=outside, address=gateway, prefixlen=length, flags=_address_flags(gateway)
                )
                inner.addr(
                    "add", index=inside, address=address, prefixlen=length, flags=_address_flags(address)
                )
            inner.link("set", index=_index(inner, "lo"), state="up")
            inner.link("set", index=inside, state="up")
            outer.link("set", index=outside, state="up")
            for address, gateway, default, length in pairs:
                outer.route("add", dst=f"{address}/{length}", oif=outside, scope="link")
                inner.route("add", dst=f"{gateway}/{length}", oif=inside, scope="link")
                inner.route("add", dst=default, gateway=gateway, oif=inside)
        return pod


class Network:
    """The nodes of a machine and the wire between them. Lives as long as the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.has_ipv6 = Path("/proc/sys/net/ipv6").exists()
        self.nodes: dict[str, Node] = {}
        self.wire = self.make_namespace("wire")
        self._redirection_backend: str | None = None
        with netlink(self.wire) as wire:
            wire.link("set", index=_index(wire, "lo"), state="up")
            # Without snooping, neighbour discovery (multicast) is flooded from the first packet on.
            wire.link("add", ifname="wire", kind="bridge", br_mcast_snooping=0)
            wire.link("set", index=_index(wire, "wire"), state="up")

    def make_namespace(self, name: str) -> OwnedNamespace:
        """Make a namespace whose IPv6 addresses, link-local ones too, are usable at once."""
        namespace = self.machine.namespace(name)
        if self.has_ipv6:
            for scope in ("all", "default"):
                set_kernel_setting(namespace, f"net/ipv6/conf/{scope}/accept_dad", "0")
        return namespace

    def node(self, name: str) -> Node:
        """Returns the node of that name, made when asked for first."""
        if name in self.nodes:
            return self.nodes[name]
        index = len(self.nodes) + 1
        namespace = self.make_namespace(f"node-{name}")
        node = Node(name, index, self, namespace)
        set_kernel_setting(namespace, "net/ipv4/ip_forward", "1")
        if self.has_ipv6:
            set_kernel_setting(namespace, "net/ipv6/conf/all/forwarding", "1")
        with netlink(namespace) as inner, netlink(self.wire) as wire:
            port = self.wire_port(node)
            wire.link(
                "add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": namespace.descriptor}
            )
            wire.link("set", index=_index(wire, port), master=_index(wire, "wire"), state="up")
            inside = _index(inner, "eth0")
            inner.link("set", index=_index(inner, "lo"), state="up")
            for address, length in self._wire_addresses(node):
                inner.addr(
                    "add", index=inside, address=address, prefixlen=length, flags=_address_flags(address)
                )
            inner.link("set", index=inside, state="up")
            for other in self.nodes.values():
                with netlink(other.namespace) as there:
                    self._add_routes(inner, other)
                    self._add_routes(there, node)
        self.nodes[name] = node
        return node

    def wire_port(self, node: Node) -> str:
        """Returns the interface in the namespace `wire` at which a node's traffic can be captured."""
        return f"node-{node.name}"[:_NAME_LENGTH]

    def _wire_addresses(self, node: Node) -> list[tuple[str, int]]:
        addresses = [(f"10.78.0.{node.index}", 24)]
        if self.has_ipv6:
            addresses.append((f"fd78::{node.index}", 64))
        return addresses

    def _add_routes(self, at: IPRoute, to: Node) -> None:
        subnets = [f"10.77.{to.index}.0/24", f"fd77:{to.index}::/64"]
        for (gateway, _), subnet in zip(self._wire_addresses(to), subnets, strict=False):
            at.route("add", dst=subnet, gateway=gateway)

    def redirect(self, pod: Pod, options: RedirectionOptions, *, backend: str | None = None) -> str:
        """Redirect a pod's traffic to ztunnel, as istio-cni does. Returns one of `BACKENDS`.

        backend: the one to use. Without it they are tried in order, and the first that works is used from
            then on. Raises RedirectionUnavailableError when none works.
        """
        wanted = backend or self._redirection_backend
        refusals = []
        for candidate in (wanted,) if wanted else BACKENDS:
            refusal = self._apply(candidate, pod, options)
            if refusal is None:
                self._add_reply_route(pod)
                self._redirection_backend = self._redirection_backend or candidate
                return candidate
            refusals.append(f"{candidate}: {refusal}")
        raise RedirectionUnavailableError("; ".join(refusals))

    def _apply(self, backend: str, pod: Pod, options: RedirectionOptions) -> str | None:
        if backend == "netlink":
            try:
                apply_rules(pod.namespace, nftables_rules(options))
            except OSError as error:
                return str(error)
            return None
        if backend == "nftables":
            inputs = [("nft -f -", nftables_rules(options))]
        else:
            inputs = [("iptables-restore --noflush", iptables_rules(options))]
            if self.has_ipv6:
                inputs.append(("ip6tables-restore --noflush", iptables_rules(options, ipv6=True)))
        for command, text in inputs:
            program, *arguments = command.split()
            path = shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin")
            if path is None:
                return f"{program} is not installed"
            result = processes.run(
                [path, *arguments],
                namespace=pod.namespace,
                text_input=text,
                env={
                    "PATH": "/usr/sbin:/sbin:/usr/bin:/bin",
                    "XTABLES_LOCKFILE": f"{self.machine.directory}/xtables",
                },
            )
            if result.returncode != 0:
                return f"{command} answered {result.stderr.strip() or result.stdout.strip()!r}"
        return None

    def _add_reply_route(self, pod: Pod) -> None:
        families = [(socket.AF_INET, "0.0.0.0/0")]
        if self.has_ipv6:
            families.append((socket.AF_INET6, "::/0"))
        with netlink(pod.namespace) as inner:
            for family, everything in families:
                inner.rule(
                    "add",
                    family=family,
                    priority=REPLY_RULE_PRIORITY,
                    fwmark=REPLY_MARK,
                    fwmask=MARK_MASK,
                    table=REPLY_TABLE,
                )
                inner.route(
                    "add",
                    family=family,
                    type="local",
                    scope="host",
                    dst=everything,
                    oif=_index(inner, "lo"),
                    table=REPLY_TABLE,
                )


def _index(routes: IPRoute, interface: str) -> int:
    found: list[int] = list(routes.link_lookup(ifname=interface))
    if not found:
        raise OSError(f"no interface {interface}")
    return found[0]


def _address_flags(address: str) -> int:
    return _NO_DUPLICATE_DETECTION if ipaddress.ip_address(address).version == 6 else 0
