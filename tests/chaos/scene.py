"""Where faults happen: the mesh, what runs in its pods, and what asks for names."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from socket import AF_INET, SOCK_DGRAM

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import trio

from tests.support.conversations import Applications, nonblocking, only_the_client
from tests.support.fake_resolver import Behaviour, fake_resolver, reply_to
from tests.support.node_deployment import NodeZtunnel
from tests.support.pod import MeshPod
from tests.support.whole_mesh import WholeMesh

MESH_NAME = "web.default.svc.cluster.local."
NAMESERVER = "10.96.255.53"
"""What the pods believe in; nobody has the address."""
FALSE = "6.6.6.6"
NAMES = 200
LIFETIME = 20.0
"""Seconds that a certificate is valid: some are renewed in each round."""


class Names:
    """Names outside the mesh, the resolver that knows their addresses, and pods that ask."""

    def __init__(self, mesh: WholeMesh) -> None:
        self._mesh = mesh
        self._up = True
        self._serving: trio.CancelScope | None = None
        self.behave: Behaviour = self.honest
        self.delay = 0.0
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        """Be the resolver until cancelled."""
        pod = self._mesh.resolver
        while True:
            if self._up:
                with trio.CancelScope() as self._serving:
                    async with fake_resolver(self._answer, pod.ipv4, 53, make=pod.socket) as resolver:
                        while True:
                            resolver.delay = self.delay
                            await trio.sleep(0.02)
            await trio.sleep(0.02)

    def _answer(self, query: bytes, tcp: bool) -> Iterable[bytes]:
        return self.behave(query, tcp)

    def honest(self, query: bytes, tcp: bool) -> list[bytes]:
        """The one right answer."""
        name = str(dns.message.from_wire(query).question[0].name)
        number = name.partition(".")[0].removeprefix("n")
        if not number.isdigit():
            return [reply_to(query, rcode=dns.rcode.NXDOMAIN)]
        return [reply_to(query, f"{name} 60 IN A {address_of(int(number))}")]

    def lying(self, random: Random) -> Behaviour:
        """Answers to other questions, with other ids, in pieces; at times the right one behind them."""

        def behave(query: bytes, tcp: bool) -> list[bytes]:
            name = str(dns.message.from_wire(query).question[0].name)
            false = reply_to(query, f"{name} 60 IN A {FALSE}")
            other = dns.message.make_query("other.example.", "A")
            other.id = dns.message.from_wire(query).id
            lies = [
                bytes([false[0] ^ 0x55]) + false[1:],
                reply_to(other.to_wire(), f"other.example. 60 IN A {FALSE}"),
                false[: random.randrange(12)],
                random.randbytes(random.randrange(1, 200)),
            ]
            told = random.sample(lies, random.randrange(1, len(lies)))
            if tcp:
                return told[:1]
            if random.random() < 0.2:
                return [*told, reply_to(query, truncated=True)]
            return [*told, *(self.honest(query, tcp) if random.random() < 0.5 else [])]

        return behave

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Nobody listens at the resolver's address."""
        self._up = False
        if self._serving is not None:
            self._serving.cancel()
        try:
            yield
        finally:
            self._up = True

    async def ask(self, pod: MeshPod, random: Random, timeout: float = 6.0) -> str:
        """One question of a pod. Returns how it ended: answered, failed, truncated or silent."""
        number = random.randrange(NAMES)
        name, right = f"n{number}.elsewhere.example.", address_of(number)
        if random.random() < 0.3:
            name, right = MESH_NAME, self._mesh.vip
        query = dns.message.make_query(name, "A", id=random.randrange(1 << 16))
        with trio.socket.from_stdlib_socket(nonblocking(pod.socket(AF_INET, SOCK_DGRAM))) as sock:
            try:
                with trio.fail_after(timeout):
                    await sock.connect((NAMESERVER, 53))
                    await sock.send(query.to_wire())
                    reply = dns.message.from_wire(await sock.recv(65_535))
            except trio.TooSlowError:
                return "silent"
            except OSError:
                return "failed"
            except dns.exception.DNSException as error:
                self.violations.append(f"{pod.name} was told what cannot be read about {name}: {error!r}")
                return "violation"
        if reply.rcode() == dns.rcode.SERVFAIL:
            return "failed"
        if reply.flags & dns.flags.TC and not reply.answer:
            return "truncated"  # whoever wants an answer asks again over TCP
        told = [str(item) for rrset in reply.answer for item in rrset]
        if reply.id != query.id or reply.rcode() != dns.rcode.NOERROR or told != [right]:
            self.violations.append(f"{pod.name} was told {reply.rcode().name} {told} of {name}, not {right}")
            return "violation"
        return "answered"


def address_of(number: int) -> str:
    """The address of a name outside the mesh."""
    return f"192.0.2.{number}"


@dataclass
class Scene:
    """What a fault may touch. ``nursery``: for what goes on behind a fault's end, an upgrade for instance."""

    mesh: WholeMesh
    applications: Applications
    names: Names
    nursery: trio.Nursery

    def some_node(self, random: Random) -> NodeZtunnel:
        """One of the two."""
        return self.mesh.node(random.choice([self.mesh.client, self.mesh.server]))

    def tell_truth(self) -> None:
        """What istiod says while it does not lie: the server, and the policy that selects it."""
        policy = only_the_client(self.mesh.client)
        self.mesh.put_policy(policy)
        self.mesh.put_server(f"{policy.namespace}/{policy.name}")


Fault = Callable[[Scene, Random], AbstractAsyncContextManager[None]]
