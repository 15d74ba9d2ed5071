"""DNS capture: dig in a pod, the CNI's redirection, a ztunnel, and a resolver that a test commands."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from tests.needs import needs_programs
from tests.support.census import take_census
from tests.support.fake_resolver import (
    Behaviour,
    FakeResolver,
    answer_with,
    fake_resolver,
    reply_to,
    silent,
    with_resolv_conf,
)
from tests.support.mesh import DedicatedDeployment, Mesh
from tests.support.node_deployment import NodeDeployment
from tests.support.pod import MeshPod, eventually
from tests.support.traffic import read_exactly, serve
from ztunnel.demo.dedicated import Ztunnel, dedicated_environment, ztunnel_command
from ztunnel.demo.redirection import RedirectionOptions

WEB = "web.default.svc.cluster.local."
ELSEWHERE = "elsewhere.example."
SOMEBODY = "10.96.255.53"
"""A nameserver that the application believes in; nobody has the address."""

ENVIRONMENT = {
    "ISTIO_META_DNS_CAPTURE": "true",
    "UNSTABLE_ENABLE_SOCKS5": "true",
    "LOG_FORMAT": "json",
    "RUST_LOG": "info,access=debug,ztunnel::dns=debug",
}


class DnsDeployment(DedicatedDeployment):
    """Dedicated ztunnels that have the resolver of the test."""

    def __init__(self, resolv_conf: Path) -> None:
        super().__init__()
        self._resolv_conf = resolv_conf

    def _start(self, mesh: Mesh, pod: MeshPod) -> Ztunnel:
        environment = dedicated_environment(
            namespace=pod.namespace,
            name=pod.name,
            service_account=pod.serviceaccount,
            mesh_file=mesh.file,
            root=mesh.root,
            inherit=os.environ,
            extra=mesh.environment | pod.environment,
        )
        process = mesh.machine.spawn(
            f"ztunnel-{pod.name}",
            [*with_resolv_conf(self._resolv_conf), *ztunnel_command("proxy", "ztunnel")],
            namespace=pod.pod.namespace,
            env=environment,
        )
        ztunnel = self._ztunnels[pod.name] = Ztunnel(process, pod.pod.namespace)
        return ztunnel


@dataclass
class DnsMesh:
    """A client and a server in the mesh, and a pod outside it where the resolver runs."""

    mesh: Mesh
    client: MeshPod
    server: MeshPod
    resolver: MeshPod
    vip: str

    @asynccontextmanager
    async def upstream(self, behave: Behaviour) -> AsyncIterator[FakeResolver]:
        """The real resolver, on port 53."""
        async with fake_resolver(behave, self.resolver.ipv4, 53, make=self.resolver.socket) as resolver:
            yield resolver

    async def dig(self, *arguments: str, server: str = SOMEBODY) -> dns.message.Message:
        """What dig is answered."""
        command = ["dig", f"@{server}", "+noall", "+comments", "+question", "+answer", "+authority"]
        command += ["+additional", "+tries=1", "+timeout=20", "+noedns", *arguments]
        result = await trio.to_thread.run_sync(partial(self.client.run, *command, timeout=40))
        assert result.returncode == 0, result.stdout + result.stderr
        return parse_dig(result.stdout)


def parse_dig(text: str) -> dns.message.Message:
    """dig's output as a message: its header, and the records of its sections."""
    status = text.partition("status: ")[2].partition(",")[0]
    flags = text.partition("flags: ")[2].partition(";")[0]
    lines = [f"rcode {status}", f"flags {flags.upper()}"]
    section = ""
    for line in text.splitlines():
        if line.startswith(";; ") and line.endswith("SECTION:"):
            section = line.split()[1]
            lines.append(f";{section}")
        elif section == "QUESTION" and line.startswith(";") and not line.startswith(";;"):
            lines.append(line[1:])
        elif section and line and not line.startswith(";"):
            lines.append(line)
    return dns.message.from_text("\n".join(lines))


def texts(message: dns.message.Message) -> list[str]:
    return sorted(
        f"{rrset.name} {rrset.ttl} {record.to_text()}" for rrset in message.answer for record in rrset
    )


@pytest.fixture(scope="module", params=["dedicated", "shared"])
def _dns_mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsMesh]:
    resolv_conf = tmp_path_factory.mktemp("dns") / "resolv.conf"
    deployment = DnsDeployment(resolv_conf) if request.param == "dedicated" else NodeDeployment()
    with Mesh.open(deployment=deployment, environment=ENVIRONMENT) as mesh:
        redirection = RedirectionOptions(dns=True)
        client = mesh.node("a").pod("client", redirection=redirection)
        server = mesh.node("b").pod("server", redirection=redirection)
        resolver = mesh.node("b").pod("resolver", captured=False, registered=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server], vips=["10.96.0.10", "fd96::a"])
        resolv_conf.write_text(
            "search default.svc.cluster.local svc.cluster.local cluster.local\n"
            f"nameserver {resolver.ipv4}\n"
            "options timeout:3 attempts:1\n"  # a busy machine answers a thousand second tries in that
        )
        if isinstance(deployment, NodeDeployment):
            mesh.write_file()
            for pod in (client, server):
                node = deployment.node(mesh, pod.pod.node)
                node.launch(prefix=with_resolv_conf(resolv_conf)).wait_ready()
        mesh.start()
        yield DnsMesh(mesh, client, server, resolver, vip)
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.fixture
async def dns_mesh(_dns_mesh: DnsMesh) -> AsyncIterator[DnsMesh]:
    yield _dns_mesh
    for pod in (_dns_mesh.client, _dns_mesh.server):
        assert pod.ztunnel.process.returncode is None, pod.ztunnel.process.output()[-4000:]
        assert not pod.ztunnel.log_lines("Traceback"), pod.ztunnel.process.output()[-8000:]


async def test_names_of_the_mesh(dns_mesh: DnsMesh) -> None:
    async with dns_mesh.upstream(silent) as upstream:
        for name in ("web", "web.default", "web.default.svc", WEB, "WEB.default.SVC.cluster.local"):
            answer = await dns_mesh.dig(name)
            owner = name.lower().removesuffix(".") + "."
            assert texts(answer) == [f"{owner} 30 10.96.0.10"]
            assert answer.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
        assert texts(await dns_mesh.dig(WEB, "AAAA")) == [f"{WEB} 30 fd96::a"]
        assert texts(await dns_mesh.dig("web.default.default.svc.cluster.local")) == [
            "web.default. 30 10.96.0.10",
            "web.default.default.svc.cluster.local. 30 web.default.",
        ]
        assert texts(await dns_mesh.dig(WEB, "+tcp")) == [f"{WEB} 30 10.96.0.10"]
        assert texts(await dns_mesh.dig(WEB, "+edns", "+dnssec", "+bufsize=1400"))
    assert not upstream.asked


@pytest.mark.parametrize("arguments", [[], ["+tcp"]])
async def test_loopback_in_both_families(dns_mesh: DnsMesh, arguments: list[str]) -> None:
    for address in ["127.0.0.1", "::1"] if dns_mesh.mesh.network.has_ipv6 else ["127.0.0.1"]:
        answer = await dns_mesh.dig("-p", "15053", WEB, *arguments, server=address)
        assert texts(answer) == [f"{WEB} 30 10.96.0.10"]


async def test_nameservers_of_ipv6_are_redirected_too(dns_mesh: DnsMesh) -> None:
    if not dns_mesh.mesh.network.has_ipv6:
        pytest.skip("this kernel has no IPv6")
    for arguments in ([], ["+tcp"]):
        assert texts(await dns_mesh.dig(WEB, *arguments, server="fd96::53")) == [f"{WEB} 30 10.96.0.10"]


@pytest.mark.parametrize(
    ("qtype", "record"),
    [
        ("A", "5 IN A 9.9.9.9"),
        ("SRV", "5 IN SRV 1 2 3 there.example."),
        ("HTTPS", '5 IN HTTPS 1 . alpn="h2,h3"'),
        ("TXT", '5 IN TXT "a text"'),
        ("TYPE65300", r"5 IN TYPE65300 \# 3 010203"),
    ],
)
async def test_everything_else_is_forwarded(dns_mesh: DnsMesh, qtype: str, record: str) -> None:
    behave = answer_with(f"eLsewhere.example. {record}")
    async with dns_mesh.upstream(behave) as upstream:
        answer = await dns_mesh.dig(
            "eLsewhere.example", qtype, "+edns", "+dnssec", "+nsid", "+cookie=0123456789abcdef"
        )
    ((query, tcp),) = upstream.asked
    assert not tcp
    asked = dns.message.from_wire(query)
    assert str(asked.question[0].name) == "eLsewhere.example."
    assert asked.ednsflags == dns.flags.DO
    assert len(asked.options) == 2
    assert [rrset.ttl for rrset in answer.answer] == [5]
    assert answer.flags & 0xFFF0 == dns.flags.QR | dns.flags.RD | dns.flags.RA
    # It leaves with the pod's own address, as it would without us.
    assert upstream.clients == {dns_mesh.client.ipv4}


async def test_bytes_are_kept(dns_mesh: DnsMesh) -> None:
    """What no library would write again like this: odd compression, flags, rubbish behind the end."""
    replies: list[bytes] = []

    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        replies.append(reply_to(query, "eLsewhere.example. 5 IN TXT text") + b"\x00rubbish\xff")
        return replies

    query = dns.message.make_query("eLsewhere.example.", "TXT", use_edns=0).to_wire() + b"more"
    async with dns_mesh.upstream(behave) as upstream:
        sock = trio.socket.from_stdlib_socket(dns_mesh.client.socket(kind=socket.SOCK_DGRAM))
        with sock, trio.fail_after(10):
            await sock.connect((SOMEBODY, 53))
            await sock.send(query)
            reply = await sock.recv(65535)
    assert upstream.asked[0][0][2:] == query[2:]
    assert reply == query[:2] + replies[0][2:]


async def test_truncation_and_the_clients_own_retry(dns_mesh: DnsMesh) -> None:
    big = [f"{ELSEWHERE} 5 IN A 10.1.{number // 250}.{number % 250}" for number in range(2000)]
    # Made before it is asked for: on a busy machine that takes longer than ztunnel waits.
    whole = reply_to(dns.message.make_query(ELSEWHERE, "A").to_wire(), *big)

    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        return [query[:2] + whole[2:] if tcp else reply_to(query, *big[:3], truncated=True)]

    async with dns_mesh.upstream(behave) as upstream:
        answer = await dns_mesh.dig(ELSEWHERE)
        assert len(texts(answer)) == 2000
        assert [tcp for _, tcp in upstream.asked] == [False, True]
        cut = await dns_mesh.dig(ELSEWHERE, "+ignore")
        assert len(texts(cut)) == 3
        assert cut.flags & dns.flags.TC


@pytest.mark.parametrize(
    ("rcode", "queries"), [("NXDOMAIN", 1), ("NOERROR", 1), ("SERVFAIL", 2), ("REFUSED", 2)]
)
async def test_codes_of_the_resolver_are_passed_on(dns_mesh: DnsMesh, rcode: str, queries: int) -> None:
    async with dns_mesh.upstream(answer_with(rcode=dns.rcode.from_text(rcode))) as upstream:
        answer = await dns_mesh.dig(ELSEWHERE)
    assert dns.rcode.to_text(answer.rcode()) == rcode
    assert answer.flags & dns.flags.RA
    assert len(upstream.asked) == queries


async def test_a_dead_resolver(dns_mesh: DnsMesh) -> None:
    answer = await dns_mesh.dig(ELSEWHERE)  # nobody listens: refused at once
    assert answer.rcode() == dns.rcode.SERVFAIL
    async with dns_mesh.upstream(silent) as upstream:
        answer = await dns_mesh.dig(ELSEWHERE)
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert not answer.flags & dns.flags.RA
    assert len(upstream.asked) == 2


async def test_a_lying_resolver(dns_mesh: DnsMesh) -> None:
    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        lie = reply_to(query, f"{ELSEWHERE} 5 IN A 6.6.6.6")
        yield bytes((lie[0] ^ 1,)) + lie[1:]
        yield lie.replace(b"\x09elsewhere", b"\x09somewhere")
        yield b"\xff" * 700
        yield reply_to(query, f"{ELSEWHERE} 5 IN A 9.9.9.9")

    async with dns_mesh.upstream(behave):
        assert texts(await dns_mesh.dig(ELSEWHERE)) == [f"{ELSEWHERE} 5 9.9.9.9"]


ANSWERED = b"\x81\x80"
"""The flags of an answer without an error (RFC 1035, section 4.1.1): QR, RD, RA."""


@needs_programs("dig")  # Asked before: a test that is skipped halfway leaves its queries to the next one.
@pytest.mark.parametrize("kind", ["dead", "slow", "lying"])
async def test_a_thousand_queries_at_once(dns_mesh: DnsMesh, kind: str) -> None:
    """Each is answered, the mesh's names go on, and memory does not grow with it."""

    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        seen.setdefault(query[12:], []).append(query)
        if kind == "slow" and len(seen[query[12:]]) == 2:
            # An answer without records, made without a parser: a thousand of them are due at once.
            yield seen[query[12:]][0][:2] + ANSWERED + query[4:]
        if kind == "lying":
            for number in range(10):
                yield number.to_bytes(2, "big") + query[2:]

    seen: dict[bytes, list[bytes]] = {}
    process = dns_mesh.client.ztunnel.process
    before = resident_kilobytes(process.pid)
    codes: list[int] = []
    async with dns_mesh.upstream(behave):
        sock = trio.socket.from_stdlib_socket(dns_mesh.client.socket(kind=socket.SOCK_DGRAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        with sock, trio.fail_after(20):
            await sock.connect((SOMEBODY, 53))
            began = time.monotonic()
            for number in range(1000):
                query = dns.message.make_query(f"{kind}-{number}.example.", "A", id=number)
                await sock.send(query.to_wire())
            answer = await dns_mesh.dig(WEB)
            assert texts(answer)
            ids: set[bytes] = set()
            while len(ids) < 1000:
                reply = await sock.recv(65535)
                ids.add(reply[:2])
                codes.append(reply[3] & 0x0F)
    took = time.monotonic() - began
    grown = resident_kilobytes(process.pid) - before
    print(f"{kind}: {took:.1f} s, {grown} kB more")
    if kind == "slow":
        assert codes.count(dns.rcode.NOERROR) > 900
    else:
        assert set(codes) == {dns.rcode.SERVFAIL}
    assert grown < 40_000
    assert dns_mesh.client.metric("istio_dns_requests_total") >= 1000


def resident_kilobytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError


async def test_rubbish_does_no_harm(dns_mesh: DnsMesh) -> None:
    sock = trio.socket.from_stdlib_socket(dns_mesh.client.socket(kind=socket.SOCK_DGRAM))
    with sock:
        await sock.connect((SOMEBODY, 53))
        for message in (b"", b"\x00" * 11, b"\xff" * 500, os.urandom(1400), b"\x00\x01" + bytes(60_000)):
            await sock.send(message)
        async with await dns_mesh.client.connect(SOMEBODY, 53) as stream:
            await stream.send_all(b"\x00\x00\x00\x03abc\xff\xff" + os.urandom(100))
            assert texts(await dns_mesh.dig(WEB))


async def test_socks5_with_a_hostname(dns_mesh: DnsMesh) -> None:
    behave = answer_with(f"{ELSEWHERE} 5 IN A {dns_mesh.server.ipv4}")
    async with dns_mesh.upstream(behave), serve(dns_mesh.server, 8080):
        for name, port in ((b"web.default", 80), (b"elsewhere.example", 8080)):
            async with await dns_mesh.client.connect("127.0.0.1", 15080) as stream:
                request = b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")
                await stream.send_all(b"\x05\x01\x00" + request + b"hello")
                assert await read_exactly(stream, 17) == b"\x05\x00\x05\x00\x00\x01" + bytes(6) + b"hello"
    async with (
        dns_mesh.upstream(answer_with(rcode=dns.rcode.NXDOMAIN)),
        await dns_mesh.client.connect("127.0.0.1", 15080) as stream,
    ):
        await stream.send_all(b"\x05\x01\x00\x05\x01\x00\x03\x04none\x00\x50")
        assert await read_exactly(stream, 12) == b"\x05\x00\x05\x04\x00\x01" + bytes(6)


async def test_logs_and_metrics(dns_mesh: DnsMesh) -> None:
    client = dns_mesh.client
    labels = {"request_query_type": "aaaa", "request_protocol": "udp"}
    names = ("requests_total", "upstream_requests_total", "upstream_failures_total")
    before = [client.metric(f"istio_dns_{name}", **labels) for name in names]
    async with dns_mesh.upstream(answer_with(f"{ELSEWHERE} 5 IN AAAA fd00::9")):
        await dns_mesh.dig(ELSEWHERE, "AAAA")
        await dns_mesh.dig(WEB, "AAAA")
        await dns_mesh.dig("nothing.example.", "AAAA", "+tcp")
    after = [client.metric(f"istio_dns_{name}", **labels) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1, 0]
    assert client.metric("istio_dns_upstream_request_duration_seconds_count", **labels) >= 1

    def line(domain: str) -> list[dict[str, Any]]:
        return client.log(scope="ztunnel::dns", domain=domain, query="AAAA", src__workload="client")

    assert line(ELSEWHERE)[-1]["result"] == "forwarded"
    assert line(WEB)[-1]["result"] == "success"
    assert line(WEB)[-1]["endpoints"] == 1
    (started,) = client.log(message="starting local DNS server", dns_proxy={"wl": "default/client"})
    assert started["address"] == "localhost:15053"
    assert client.log(message="Task 'dns proxy' complete") or [
        entry for entry in client.log() if entry["message"].startswith("Task 'dns proxy' complete")
    ]


# -- starting and ending, on a mesh of their own ---------------------------------------------------------


def dedicated_client(mesh: Mesh, tmp_path: Path) -> tuple[MeshPod, MeshPod]:
    """A client with DNS, not yet started, and the pod that its resolver is in."""
    client = mesh.node("a").pod("client", redirection=RedirectionOptions(dns=True))
    resolver = mesh.node("a").pod("resolver", captured=False, registered=False)
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {resolver.ipv4}\noptions timeout:2 attempts:1\n")
    mesh.deployment = DnsDeployment(path)
    mesh.environment |= ENVIRONMENT
    return client, resolver


async def test_a_query_under_way_is_answered_during_the_drain(fresh_mesh: Mesh, tmp_path: Path) -> None:
    client, resolver = dedicated_client(fresh_mesh, tmp_path)
    fresh_mesh.start()

    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, f"{ELSEWHERE} 5 IN A 9.9.9.9")] if len(upstream.asked) == 2 else []

    async with fake_resolver(behave, resolver.ipv4, 53, make=resolver.socket) as upstream:
        sock = trio.socket.from_stdlib_socket(client.socket(kind=socket.SOCK_DGRAM))
        with sock, trio.fail_after(15):
            await sock.connect((SOMEBODY, 53))
            await sock.send(dns.message.make_query(ELSEWHERE, "A").to_wire())
            await eventually(lambda: upstream.asked, "asked")
            client.ztunnel.process.signal(signal.SIGTERM)
            await eventually(lambda: client.log(message="shutting down the DNS server"), "shut")
            assert (await sock.recv(65535))[3] & 0x0F == dns.rcode.NOERROR
    assert await trio.to_thread.run_sync(client.ztunnel.process.wait, 10) == 0
    assert client.log(message="dns server drained")


async def test_a_taken_port_fails_the_start(fresh_mesh: Mesh, tmp_path: Path) -> None:
    client, _ = dedicated_client(fresh_mesh, tmp_path)
    with client.socket(kind=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 15053))
        with pytest.raises(RuntimeError, match=r"Bind\(127\.0\.0\.1:15053, Address already in use"):
            fresh_mesh.start()


async def test_dns_alone_can_be_served(fresh_mesh: Mesh, tmp_path: Path) -> None:
    client, _ = dedicated_client(fresh_mesh, tmp_path)
    client.environment["ENABLE_PROXY"] = "false"
    client.redirection = None
    fresh_mesh.service("web", ports={80: 8080})
    fresh_mesh.start()

    def ask(arguments: Sequence[str]) -> str:
        return client.run("dig", "@127.0.0.1", "-p", "15053", "+short", *arguments).stdout.strip()

    assert await trio.to_thread.run_sync(ask, [WEB]) == "10.96.0.10"
    with pytest.raises(ConnectionRefusedError):
        await client.connect("127.0.0.1", 15001)


async def test_without_a_mark_queries_do_not_go_round(fresh_mesh: Mesh, tmp_path: Path) -> None:
    """A dedicated ztunnel without PACKET_MARK: its own queries are redirected to itself."""
    client, resolver = dedicated_client(fresh_mesh, tmp_path)
    client.environment["PACKET_MARK"] = "0"
    fresh_mesh.start()
    async with fake_resolver(silent, resolver.ipv4, 53, make=resolver.socket) as upstream:
        for arguments in ([], ["+tcp"]):
            command = ["dig", f"@{SOMEBODY}", ELSEWHERE, "+tries=1", "+timeout=10", *arguments]
            result = await trio.to_thread.run_sync(partial(client.run, *command))
            assert "SERVFAIL" in result.stdout
    assert not upstream.asked
    loop = "forwarding failed (net error: the query is one that was forwarded from here)"
    assert 1 <= len(client.log(scope="ztunnel::dns", result=loop)) <= 4
