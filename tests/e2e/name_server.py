"""A DNS server for tests, and ztunnels that use it instead of the machine's resolver."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
from collections.abc import AsyncIterator, Mapping

import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

from tests.support.mesh import DedicatedDeployment, Mesh
from tests.support.pod import MeshPod
from ztunnel.demo.dedicated import Ztunnel, dedicated_environment, ztunnel_command


class ResolvingDeployment(DedicatedDeployment):
    """Dedicated mode, each ztunnel with an ``/etc/resolv.conf`` that names the pod ``resolver``."""

    def __init__(self) -> None:
        super().__init__()
        self.resolver: MeshPod | None = None

    def _start(self, mesh: Mesh, pod: MeshPod) -> Ztunnel:
        assert self.resolver is not None
        conf = mesh.machine.directory / "resolv.conf"
        conf.write_text(f"nameserver {self.resolver.ipv4}\n")
        environment = dedicated_environment(
            namespace=pod.namespace,
            name=pod.name,
            service_account=pod.serviceaccount,
            mesh_file=mesh.file,
            root=mesh.root,
            inherit=os.environ,
            extra={"LOG_FORMAT": "json", "RUST_LOG": "info,access=debug"} | mesh.environment,
        )
        command = shlex.join(ztunnel_command("proxy", "ztunnel"))
        inner = f"mount --bind {shlex.quote(str(conf))} /etc/resolv.conf && exec {command}"
        process = mesh.machine.spawn(
            f"ztunnel-{pod.name}",
            ["unshare", "--mount", "sh", "-c", inner],
            namespace=pod.pod.namespace,
            env=environment,
        )
        started = self._ztunnels[pod.name] = Ztunnel(process, pod.pod.namespace)
        return started


class NameServer:
    """What it was asked, and what it answers: addresses by name; other names do not exist."""

    def __init__(self, names: Mapping[str, list[str]]) -> None:
        self.names = dict(names)
        self.asked: list[str] = []

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(f"{name} {dns.rdatatype.to_text(question.rdtype)}")
        if name not in self.names:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response
        for address in self.names[name]:
            kind = dns.rdatatype.AAAA if ":" in address else dns.rdatatype.A
            if kind == question.rdtype:
                response.answer.append(
                    dns.rrset.from_text(question.name, 60, dns.rdataclass.IN, kind, address)
                )
        return response


@contextlib.asynccontextmanager
async def name_server(pod: MeshPod, names: Mapping[str, list[str]]) -> AsyncIterator[NameServer]:
    """Answer DNS over UDP in a pod inside the ``async with``."""
    server = NameServer(names)
    sock = pod.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((pod.ipv4, 53))
    udp = trio.socket.from_stdlib_socket(sock)

    async def serve() -> None:
        while True:
            data, peer = await udp.recvfrom(65_535)
            await udp.sendto(server.answer(dns.message.from_wire(data)).to_wire(), peer)

    with udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield server
            nursery.cancel_scope.cancel()
