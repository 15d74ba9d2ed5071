"""The DNS proxy of a fictitious pod, on loopback."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

import dns.message
import trio

from tests.support.fake_mesh import FakeMesh
from ztunnel.bounds import DEFAULTS, DnsBounds
from ztunnel.config.model import Config
from ztunnel.decide.dns_names import pod_search_domains
from ztunnel.dns.dns_proxy import DnsProxy
from ztunnel.dns.listeners import open_dns_sockets
from ztunnel.dns.resolv_conf import ResolvConf
from ztunnel.dns.resolver import Resolver
from ztunnel.dns.upstream import Upstream
from ztunnel.messages import Sample
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.observe.traffic import TrafficMetrics
from ztunnel.sockets.factories import HostSockets
from ztunnel.sockets.listen import BindError

DOMAIN = "cluster.local"


class FakeClient:
    """A pod whose workload arrives when the test says so. The proxy waits five seconds for it."""

    def __init__(self, workload: Workload | None) -> None:
        self.workload = workload
        self.came = trio.Event()

    def known(self) -> Workload | None:
        return self.workload

    async def wait(self) -> Workload | None:
        with trio.move_on_after(5):
            await self.came.wait()
        return self.workload


@dataclass
class Pod:
    """``address`` is where the proxy listens; ``nursery`` where its queries run."""

    mesh: FakeMesh
    client: FakeClient
    proxy: DnsProxy
    resolver: Resolver
    traffic: TrafficMetrics
    address: SocketAddress
    nursery: trio.Nursery
    serving: trio.CancelScope

    @property
    def target(self) -> tuple[str, int]:
        return str(self.address.ip), self.address.port

    def counted(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric's samples with these labels."""
        names = ("request_query_type", "request_protocol", "source_canonical_service")
        return sum(
            sample.value
            for sample in self.samples()
            if sample.family == name
            and all(dict(zip(names, sample.labels, strict=False))[key] == labels[key] for key in labels)
        )

    def samples(self) -> list[Sample]:
        return self.traffic.samples()

    async def udp(self, message: bytes, *, timeout: float = 60) -> bytes | None:
        """Send a datagram and wait for one."""
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect(self.target)
            await sock.send(message)
            with trio.move_on_after(timeout):
                return await sock.recv(65535)
        return None

    async def ask(self, name: str, qtype: str = "A", **options) -> dns.message.Message:
        """Ask over UDP."""
        query = dns.message.make_query(name, qtype, **options)
        reply = await self.udp(query.to_wire())
        assert reply is not None
        message = dns.message.from_wire(reply)
        assert message.id == query.id
        return message

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.target)


def make_mesh() -> FakeMesh:
    """Returns a mesh with services of each kind: named, with a wildcard, headless, in several namespaces."""
    mesh = FakeMesh()
    mesh.add_service("productpage", "10.96.0.1 fd96::1", namespace="ns1")
    mesh.add_service("google", "1.1.1.1", namespace="ns1", hostname="www.google.com")
    mesh.add_service("wild", "2.2.2.2", namespace="ns1", hostname="*.wild.com")
    return mesh


def free_address() -> SocketAddress:
    """Returns an address of loopback with a port that no TCP socket had a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        return SocketAddress(ip_address("127.0.0.1"), sock.getsockname()[1])


@asynccontextmanager
async def running_pod(
    upstream_port: int,
    *,
    known: bool = True,
    timeout: float = 5.0,
    address: SocketAddress | None = None,
    reuse_port: bool = False,
    bounds: DnsBounds = DEFAULTS.dns,
) -> AsyncIterator[Pod]:
    """Serve on a free port of 127.0.0.1 (or at ``address``), and forward to the nameserver at that port."""
    mesh = make_mesh()
    workload = mesh.add_workload("client", "10.0.0.1", namespace="ns1")
    client = FakeClient(replace(workload, canonical_name="app") if known else None)
    traffic = TrafficMetrics(now=trio.current_time)
    resolver = Resolver(
        pod="client",
        namespace="ns1",
        config=Config(),
        view=mesh,
        client=client,
        upstream=Upstream(
            ResolvConf((ip_address("127.0.0.1"),), timeout=timeout),
            HostSockets(),
            mark=None,
            random=Random(1),
            port=upstream_port,
        ),
        search_domains=pod_search_domains("ns1", DOMAIN),
        traffic=traffic,
        random=Random(2),
    )
    while True:
        at = address or free_address()
        try:
            sockets = await open_dns_sockets(at, HostSockets(), mark=None, reuse_port=reuse_port)
            break
        except BindError:
            # A port is free for TCP and UDP only by chance, and until somebody else on this machine takes it.
            if address is not None:
                raise
    proxy = DnsProxy(resolver, sockets, name="ns1/client", address=at, bounds=bounds)
    try:
        async with trio.open_nursery() as nursery:
            serving = trio.CancelScope()

            async def serve() -> None:
                with serving:
                    await proxy.serve(nursery)

            nursery.start_soon(serve)
            yield Pod(mesh, client, proxy, resolver, traffic, at, nursery, serving)
            nursery.cancel_scope.cancel()
    finally:
        proxy.close()


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def read_frames(stream: trio.SocketStream, count: int) -> list[bytes]:
    """Returns so many messages of a TCP connection; fewer if it ends before."""
    received = b""
    frames: list[bytes] = []
    while len(frames) < count:
        data = await stream.receive_some()
        if not data:
            return frames
        received += data
        while len(received) >= 2 and len(received) >= 2 + int.from_bytes(received[:2], "big"):
            end = 2 + int.from_bytes(received[:2], "big")
            frames.append(received[2:end])
            received = received[end:]
    return frames
