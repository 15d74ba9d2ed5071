"""A data plane for tests. The test sends it the messages of the control side."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from ztunnel.bounds import DEFAULTS, Bounds
from ztunnel.certs.fake_ca import FakeCa
from ztunnel.config.model import Config, ProxyMode
from ztunnel.dataplane.data_plane import DataPlane
from ztunnel.messages import (
    Asked,
    CertificateIssued,
    CertificateWanted,
    DeltaApplied,
    Drained,
    DumpChunk,
    FromDataPlane,
    MeshDelta,
    PodAdded,
    PodFailed,
    PodInfo,
    PodStarted,
    Report,
    ReportWanted,
    Resource,
    ResourceKind,
    ToDataPlane,
    Topic,
)
from ztunnel.model.address import SocketAddress
from ztunnel.pb.istio import security as pbs
from ztunnel.pb.istio import workload as pbw
from ztunnel.sockets.message_socket import control_end

CONFIG = replace(
    Config(),
    proxy_mode=ProxyMode.DEDICATED,
    packet_mark=None,
    socks5_addr=SocketAddress(ip_address("127.0.0.1"), 15080),
    illegal_ports=frozenset({15001, 15006, 15008, 15080}),
    workload_wait=1.0,
)
INFO = PodInfo("local", "default", "default")
UID = "cluster1//Pod/default/local"


def workload(**fields) -> Resource:
    base: dict[str, Any] = {
        "uid": UID,
        "name": "local",
        "namespace": "default",
        "service_account": "default",
        "addresses": [ip_address("127.0.0.1").packed],
        "tunnel_protocol": pbw.TunnelProtocol.HBONE,
        "workload_name": "local",
        "canonical_name": "local",
    }
    made = pbw.Workload(**(base | fields))
    return Resource(made.uid, bytes(pbw.Address(workload=made)))


def deny_port(port: int, name: str = "deny", *, dry_run: bool = False) -> Resource:
    match = pbs.Match(destination_ports=[port])
    policy = pbs.Authorization(
        name=name,
        namespace="default",
        scope=pbs.Scope.NAMESPACE,
        action=pbs.Action.DENY,
        dry_run=dry_run,
        rules=[pbs.Rule(clauses=[pbs.Clause(matches=[match])])],
    )
    return Resource(f"default/{name}", bytes(policy))


class Control:
    """The control side of a test: sends messages, answers requests for certificates, keeps the rest."""

    def __init__(self, to_plane: Any) -> None:
        self.to_plane = to_plane
        self.ca = FakeCa(time.time)
        self.came: list[FromDataPlane] = []
        self._more = trio.lowlevel.ParkingLot()
        self._number = 0
        self.issue = True

    async def take(self, message: FromDataPlane) -> None:
        if isinstance(message, CertificateWanted) and self.issue:
            await self.to_plane.send(CertificateIssued(await self.ca.issue(message.identity)))
        self.came.append(message)
        self._more.unpark_all()

    async def wait_for(self, kind, **fields):
        with trio.fail_after(60):
            while True:
                for message in self.came:
                    if isinstance(message, kind) and all(getattr(message, k) == v for k, v in fields.items()):
                        self.came.remove(message)
                        return message
                await self._more.park()

    async def apply(self, *resources: Resource, removed=(), kind=ResourceKind.ADDRESS):
        self._number += 1
        await self.to_plane.send(MeshDelta(self._number, kind, tuple(resources), tuple(removed)))
        return await self.wait_for(DeltaApplied, number=self._number)

    async def policies(self, *resources: Resource, removed=()):
        return await self.apply(*resources, removed=removed, kind=ResourceKind.AUTHORIZATION)

    async def ask(self, topic: Topic, **parameters: str) -> list[Any]:
        """Returns the items of the answer to a question."""
        self._number += 1
        number = self._number
        await self.to_plane.send(Asked(number, topic, parameters))
        items: list[Any] = []
        while True:
            chunk = await self.wait_for(DumpChunk, number=number)
            items += [msgspec.json.decode(item) for item in chunk.items]
            if chunk.last:
                assert chunk.error == "", chunk.error
                return items

    async def start_pod(self, uid: str = UID, info: PodInfo = INFO) -> None:
        await self.to_plane.send(PodAdded(uid, info))
        with trio.fail_after(60):
            while True:
                for message in self.came:
                    if isinstance(message, PodFailed):
                        pytest.fail(message.error)
                    if isinstance(message, PodStarted) and message.uid == uid:
                        self.came.remove(message)
                        return
                await self._more.park()

    async def report(self):
        self._number += 1
        await self.to_plane.send(ReportWanted(self._number))
        return await self.wait_for(Report, number=self._number)

    async def drained(self) -> None:
        await self.wait_for(Drained)


@asynccontextmanager
async def running_plane(config: Config = CONFIG, bounds: Bounds = DEFAULTS):
    """Yields a data plane in this process, with the workload of `workload`, whose pod was started."""
    to_plane, inbox = trio.open_memory_channel[ToDataPlane](16)
    out, from_plane = trio.open_memory_channel[FromDataPlane](math.inf)
    control = Control(to_plane)
    plane = DataPlane(config, out.send_nowait, random=Random(1), wall_clock=time.time, bounds=bounds)

    async def listen():
        async for message in from_plane:
            await control.take(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.run, inbox)
        nursery.start_soon(listen)
        await control.apply(workload())
        await control.start_pod()
        yield control
        nursery.cancel_scope.cancel()


WORKER_ENVIRONMENT = {
    "PROXY_MODE": "dedicated",
    "PROXY_WORKLOAD_INFO": "default/local/default",
    "XDS_ADDRESS": "",
    "FAKE_CA": "true",
    "LOCAL_XDS": "{}",
    "UNSTABLE_ENABLE_SOCKS5": "true",
    "ISTIO_META_DNS_CAPTURE": "false",
}


@asynccontextmanager
async def worker_process(module: str = "ztunnel.dataplane.worker"):
    """Yields the control side of the same data plane in a child process, over a socketpair, and the process.

    module: what is run; its one argument is the descriptor of the socketpair.
    """
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**os.environ, **WORKER_ENVIRONMENT},
        stdout=subprocess.PIPE,
    )
    theirs.close()
    line = control_end(ours)
    control = Control(line)

    async def listen():
        with suppress(trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                await control.take(await line.receive())

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await control.apply(workload())
            await control.start_pod()
            yield control, process
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await line.aclose()
            with trio.move_on_after(30):
                await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        process.kill()
        process.communicate()


@asynccontextmanager
async def server(handler, ip: str = "127.0.0.1"):
    """Runs a TCP server whose ``handler(stream)`` serves each connection. Yields the port."""
    listeners = await trio.open_tcp_listeners(0, host=ip)

    async def serve(stream):
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, and end when the client ends."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def via_socks(port: int, ip: str = "127.0.0.1") -> trio.SocketStream:
    """Returns a connection to ip:port through the pod's SOCKS5 port."""
    stream = await trio.open_tcp_stream("127.0.0.1", 15080)
    try:
        await stream.send_all(b"\x05\x01\x00")
        assert await stream.receive_some(2) == b"\x05\x00"
        await stream.send_all(b"\x05\x01\x00\x01" + socket.inet_aton(ip) + port.to_bytes(2, "big"))
        reply = b""
        while len(reply) < 10:
            piece = await stream.receive_some(10 - len(reply))
            assert piece, "the SOCKS server hung up"
            reply += piece
        assert reply[1] == 0
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def is_closed(stream: trio.SocketStream) -> bool:
    """Returns whether the other end closes or resets the connection within 5 s, and sends nothing before."""
    with trio.fail_after(5):
        try:
            return await stream.receive_some(100) == b""
        except trio.BrokenResourceError:
            return True
