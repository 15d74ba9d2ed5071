"""The rules of the CNI in the pods, as iptables and as nftables, with DNS: who sees whom, and what passes.

Each test runs under every backend, in one mesh each: two nodes, and pods with less IPv6 than others.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import dns.message
import dns.rdatatype
import pytest
import trio

from tests.support.pod import MeshPod
from tests.support.quiet import quiet
from tests.support.traffic import Server, ended_by, read_exactly, serve
from tests.support.two_nodes import TwoNodes
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.network import BACKENDS, netlink, set_kernel_setting
from ztunnel.demo.redirection import RedirectionOptions

PROBE_IPV4 = "169.254.7.127"
PROBE_IPV6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
NO_DUPLICATE_DETECTION = 0x02  # IFA_F_NODAD
NAMESERVER = "10.96.0.53"


@pytest.fixture(scope="module", params=BACKENDS)
def nodes(request: pytest.FixtureRequest) -> Iterator[TwoNodes]:
    with TwoNodes.open(
        {"ISTIO_META_DNS_CAPTURE": "true"},
        backend=request.param,
        redirection=RedirectionOptions(dns=True),
    ) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _quiet(nodes: TwoNodes) -> None:
    quiet([nodes.client, nodes.server])


@asynccontextmanager
async def echo_server(pod: MeshPod, address: str = "::") -> AsyncIterator[Server]:
    async with serve(pod, 8080, address=address) as application:
        yield application
    assert application.failures == []


async def echoes(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
        await stream.send_eof()
        assert await ended_by(stream) == "end"


async def connect_from(
    namespace: OwnedNamespace, address: str, port: int, source: str | None = None
) -> trio.SocketStream:
    """A connection of a process in a namespace that is no pod's. The caller closes it."""
    with namespace.entered():
        sock = trio.socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        if source is not None:
            await sock.bind((source, 0))
        with trio.fail_after(5):
            await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def inbound(pod: MeshPod) -> int:
    """How many connections to a pod its ztunnel has logged."""
    return len([line for line in pod.access_log(direction="inbound") if line.get("dst.workload") == pod.name])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", ["server", "neighbour"])
async def test_an_application_sees_the_address_of_the_client_pod(nodes, target, version):
    client, pod = nodes.client, getattr(nodes, target)
    source, address = (client.ipv4, pod.ipv4) if version == 4 else (client.ipv6, pod.ipv6)
    before = inbound(pod)
    async with echo_server(pod) as application:
        await echoes(await client.connect(address, 8080))
    assert application.peer_addresses == [source]
    authority = f"{address}:8080" if version == 4 else f"[{address}]:8080"
    lines = await pod.logged(count=before + 1, direction="inbound", dst__workload=pod.name)
    assert (lines[-1]["dst.hbone_addr"], lines[-1]["src.identity"]) == (authority, client.identity)


@pytest.mark.parametrize("version", [4, 6])
async def test_so_it_does_for_plaintext_from_outside_the_mesh(nodes, version):
    outside, server = nodes.outside, nodes.server
    source, address = (outside.ipv4, server.ipv4) if version == 4 else (outside.ipv6, server.ipv6)
    before = inbound(server)
    async with echo_server(server) as application:
        await echoes(await outside.connect(address, 8080))
    assert application.peer_addresses == [source]
    lines = await server.logged(count=before + 1, direction="inbound", dst__workload="server")
    assert "src.identity" not in lines[-1]


@pytest.mark.parametrize("version", [4, 6])
async def test_and_for_plaintext_out_of_the_mesh(nodes, version):
    outside, client = nodes.outside, nodes.client
    source, address = (client.ipv4, outside.ipv4) if version == 4 else (client.ipv6, outside.ipv6)
    async with echo_server(outside) as application:
        await echoes(await client.connect(address, 8080))
    assert application.peer_addresses == [source]


@pytest.mark.parametrize("version", [4, 6])
async def test_the_node_itself_reaches_its_pods(nodes, version):
    server = nodes.server
    node = server.pod.node
    source, address = (node.gateway_ipv4, server.ipv4) if version == 4 else (node.gateway_ipv6, server.ipv6)
    before = inbound(server)
    async with echo_server(server) as application:
        await echoes(await connect_from(node.namespace, address, 8080))
    assert application.peer_addresses == [source]
    await server.logged(count=before + 1, direction="inbound", dst__workload="server")


@pytest.mark.parametrize("probe", [PROBE_IPV4, PROBE_IPV6])
async def test_probes_of_the_kubelet_pass_ztunnel_by(nodes, probe):
    server = nodes.server
    node = server.pod.node
    version_6 = ":" in probe
    with netlink(node.namespace) as routes:
        [loopback] = routes.link_lookup(ifname="lo")
        length, flags = (128, NO_DUPLICATE_DETECTION) if version_6 else (32, 0)
        routes.addr("replace", index=loopback, address=probe, prefixlen=length, flags=flags)
    before = inbound(server)
    async with echo_server(server) as application:
        address = server.ipv6 if version_6 else server.ipv4
        await echoes(await connect_from(node.namespace, address, 8080, probe))
        # One that is no probe comes through it, and is logged after whatever came before.
        await echoes(await connect_from(node.namespace, address, 8080))
    assert application.peer_addresses[0] == probe
    await server.logged(count=before + 1, direction="inbound", dst__workload="server")
    assert inbound(server) == before + 1


@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_reaches_itself_by_its_own_address_past_ztunnel(nodes, version):
    client = nodes.client
    address = client.ipv4 if version == 4 else client.ipv6
    before = len(client.access_log())
    async with echo_server(client) as application:
        await echoes(await client.connect(address, 8080))
    assert application.peer_addresses == [address]
    assert len(client.access_log()) == before


async def test_and_by_a_service_through_the_mesh(nodes):
    server = nodes.server
    before = inbound(server)
    async with echo_server(server) as application:
        await echoes(await server.connect(nodes.vip, 80))
    assert application.peer_addresses == [server.ipv4]
    await server.logged(count=before + 1, direction="inbound", dst__workload="server")


@pytest.mark.parametrize("off", ["all", "lo"])
async def test_a_pod_with_less_ipv6_works_and_harms_no_other(nodes, off):
    mesh = nodes.mesh
    pod = mesh.node("a").pod(f"no-v6-{off}", redirection=None)
    mesh.network.redirect(pod.pod, RedirectionOptions(dns=True), backend=mesh.redirection_backend)
    set_kernel_setting(pod.pod.namespace, f"net/ipv6/conf/{off}/disable_ipv6", "1")
    mesh.start()
    await mesh.update()
    async with echo_server(nodes.server) as application:
        await echoes(await pod.connect(nodes.server.ipv4, 8080))
    assert application.peer_addresses == [pod.ipv4]
    async with echo_server(pod, "0.0.0.0") as application:
        await echoes(await nodes.client.connect(pod.ipv4, 8080))
        await echoes(await nodes.outside.connect(pod.ipv4, 8080))
    assert application.peer_addresses == [nodes.client.ipv4, nodes.outside.ipv4]
    assert lookup(pod, "web.default.svc.cluster.local", tcp=False) == [nodes.vip]
    async with echo_server(nodes.server) as application:
        await echoes(await nodes.client.connect(nodes.server.ipv6, 8080))
    assert application.peer_addresses == [nodes.client.ipv6]


def lookup(pod: MeshPod, name: str, *, tcp: bool) -> list[str]:
    """Ask some nameserver from inside a pod for the IPv4 addresses of a name, as an application would."""
    query = dns.message.make_query(name, dns.rdatatype.A)
    with pod.socket(kind=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((NAMESERVER, 53))
        wire = query.to_wire()
        if tcp:
            sock.sendall(len(wire).to_bytes(2, "big") + wire)
            with sock.makefile("rb") as file:
                answer = file.read(int.from_bytes(file.read(2), "big"))
        else:
            sock.send(wire)
            answer = sock.recv(65_535)
    response = dns.message.from_wire(answer)
    assert response.id == query.id
    return [str(address) for rrset in response.answer for address in rrset]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_lookups_to_any_nameserver_are_answered_by_ztunnel(nodes, tcp):
    assert lookup(nodes.client, "web.default.svc.cluster.local", tcp=tcp) == [nodes.vip]


async def test_the_servers_of_ztunnel_are_not_in_the_pods(nodes):
    for port in (15000, 15020, 15021):
        with nodes.client.socket() as sock:
            sock.settimeout(2)
            with pytest.raises(ConnectionRefusedError):
                sock.connect(("127.0.0.1", port))


@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_its_listeners_give_nothing_to_who_calls_them_directly(nodes, port):
    # Through the mesh, on the own loopback, and from outside.
    for pod, address in (
        (nodes.client, nodes.server.ipv4),
        (nodes.client, "127.0.0.1"),
        (nodes.outside, nodes.server.ipv4),
    ):
        try:
            stream = await pod.connect(address, port)
        except (ConnectionRefusedError, ConnectionResetError):
            continue
        async with stream:
            try:
                await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            except trio.BrokenResourceError:
                continue  # it was reset before we said anything
            assert await ended_by(stream) in {"end", "reset"}


async def test_a_pod_that_bypasses_inbound_capture_is_reached_directly(nodes):
    mesh = nodes.mesh
    pod = mesh.node("a").pod(
        "bypass", redirection=RedirectionOptions(dns=True, inbound=False), protocol="TCP"
    )
    mesh.start()
    await mesh.update()
    async with echo_server(pod) as application, echo_server(nodes.server) as other:
        await echoes(await nodes.outside.connect(pod.ipv4, 8080))
        await echoes(await pod.connect(nodes.server.ipv4, 8080))
    assert application.peer_addresses == [nodes.outside.ipv4]
    assert other.peer_addresses == [pod.ipv4]
    assert inbound(pod) == 0


async def test_what_arrives_on_a_rerouted_interface_is_the_pods_own_traffic(nodes):
    """As for virtual machines in a pod: what they send comes in by an interface, and leaves by 15001."""
    mesh = nodes.mesh
    host = mesh.node("a").pod("vm-host", redirection=RedirectionOptions(virtual_interfaces=("vm0",)))
    guest = mesh.machine.namespace(f"guest-{mesh.redirection_backend}")
    with netlink(host.pod.namespace) as outer, netlink(guest) as inner:
        outer.link("add", ifname="vm0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": guest.descriptor})
        [outside], [inside] = outer.link_lookup(ifname="vm0"), inner.link_lookup(ifname="eth0")
        outer.addr("add", index=outside, address="192.168.50.1", prefixlen=24)
        inner.addr("add", index=inside, address="192.168.50.2", prefixlen=24)
        outer.link("set", index=outside, state="up")
        inner.link("set", index=inside, state="up")
        inner.route("add", dst="0.0.0.0/0", gateway="192.168.50.1")
    set_kernel_setting(host.pod.namespace, "net/ipv4/ip_forward", "1")
    mesh.start()
    await mesh.update()
    async with echo_server(nodes.server) as application:
        await echoes(await connect_from(guest, nodes.server.ipv4, 8080))
    assert application.peer_addresses == [host.ipv4]
