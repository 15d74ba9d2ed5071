"""What belongs to the node's ztunnel as a process: its own pod, the options of its sockets, its limits."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.census import open_descriptors
from tests.support.pod import MeshPod, eventually
from tests.support.traffic import read_all, read_exactly, refused_by, serve
from tests.support.two_nodes import TwoNodes, ended
from ztunnel.demo.dedicated import Ztunnel
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.messages import PodInfo

MARK = 1337
IP_TRANSPARENT = 19
TCP_USER_TIMEOUT = 18
PIDFD_GETFD = 438
KEEPALIVE = {"time": 77, "interval": 11, "retries": 4}
DESCRIPTORS = 200

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    environment = {
        "KEEPALIVE_TIME": f"{KEEPALIVE['time']}s",
        "KEEPALIVE_INTERVAL": f"{KEEPALIVE['interval']}s",
        "KEEPALIVE_RETRIES": str(KEEPALIVE["retries"]),
        "USER_TIMEOUT_ENABLED": "true",
        "CONNECTION_TERMINATION_DEADLINE": "2s",
    }
    with TwoNodes.open(environment) as opened:
        yield opened


async def echoes(stream: trio.SocketStream, data: bytes = b"hello") -> None:
    await stream.send_all(data)
    assert await read_exactly(stream, len(data)) == data


# -- its own pod -----------------------------------------------------------------------------------------


async def get(pod: MeshPod, address: str, port: int, path: str) -> bytes:
    async with await pod.connect(address, port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        return await read_all(stream)


async def test_its_metrics_are_reached_over_hbone_as_its_own_identity(nodes):
    mesh, node = nodes.mesh, nodes.node(nodes.server)
    own = mesh.node("b").pod("own", namespace="istio-system", serviceaccount="ztunnel", captured=False)
    await mesh.update()
    old = node.current
    names = {"POD_NAME": own.name, "POD_NAMESPACE": own.namespace, "SERVICE_ACCOUNT": own.serviceaccount}
    ztunnel = node.launch(names, home=own.pod)
    await eventually(ztunnel.ready, "ready", 20)
    old.process.signal(signal.SIGTERM)
    await ended(old, 10)
    for client in (nodes.client, nodes.server):
        answer = await get(client, own.ipv4, 15020, "/metrics")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"istio_build" in answer
        [line] = await nodes.server.logged(direction="inbound", src__workload=client.name)
        assert line["src.identity"] == client.identity
        assert line["dst.identity"] == own.identity == "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
        assert (line["dst.workload"], line["dst.hbone_addr"]) == ("own", f"{own.ipv4}:15020")
    [sample] = nodes.server.metrics(
        "istio_tcp_connections_opened_total", reporter="destination", source_workload="client-deployment"
    )
    assert sample.labels["destination_principal"] == own.identity
    # It is no pod of the agent's, and has one listener only, without the marks of those.
    assert {pod["info"]["name"] for pod in nodes.server.config_dump()["workloadState"].values()} == {"server"}
    found = [options for options in sockets(ztunnel, own.pod.namespace) if options.listening]
    assert {options.local[1] for options in found} == {15008, 15000, 15020, 15021}
    assert {(options.mark, options.reuse_port, options.transparent) for options in found} == {
        (0, False, False)
    }

    key = mesh.policy("nobody", namespace="istio-system", rules=[], workloads=[own])
    try:
        await mesh.update()
        assert (
            await refused_by(nodes.client, own.ipv4, 15020, say=b"GET /metrics HTTP/1.1\r\n\r\n") == "reset"
        )
        [line] = await nodes.server.logged(direction="inbound", level="error", dst__workload="own")
        assert "policy rejection" in line["error"]
    finally:
        mesh.remove_policy(key)
        mesh.pods.remove(own)
        await mesh.update()


# -- its sockets -----------------------------------------------------------------------------------------


class Options:
    """A TCP socket of another process, looked at through a duplicate of its descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        def tcp(option: int) -> int:
            return sock.getsockopt(socket.IPPROTO_TCP, option)

        def general(option: int) -> int:
            return sock.getsockopt(socket.SOL_SOCKET, option)

        self.local: tuple[str, int] = sock.getsockname()[:2]
        self.remote: tuple[str, int] | None = None
        try:
            self.remote = sock.getpeername()[:2]
        except OSError:
            pass
        self.listening = bool(general(socket.SO_ACCEPTCONN))
        self.mark = general(socket.SO_MARK)
        self.reuse_port = bool(general(socket.SO_REUSEPORT))
        self.transparent = bool(sock.getsockopt(socket.IPPROTO_IP, IP_TRANSPARENT))
        self.no_delay = bool(tcp(socket.TCP_NODELAY))
        self.user_timeout = tcp(TCP_USER_TIMEOUT)
        self.keepalive: dict[str, int] | None = None
        if general(socket.SO_KEEPALIVE):
            self.keepalive = {
                "time": tcp(socket.TCP_KEEPIDLE),
                "interval": tcp(socket.TCP_KEEPINTVL),
                "retries": tcp(socket.TCP_KEEPCNT),
            }


@contextmanager
def borrowed(pid: int) -> Iterator[list[socket.socket]]:
    """Duplicates of the TCP sockets of a process."""
    found = []
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            descriptor = _libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
            if descriptor < 0:
                continue
            try:
                sock = socket.socket(fileno=descriptor)
            except OSError:
                os.close(descriptor)
                continue
            if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM:
                found.append(sock)
            else:
                sock.close()
        yield found
    finally:
        os.close(pidfd)
        for sock in found:
            sock.close()


def namespace_inode(sock: socket.socket) -> int:
    """Which network namespace a socket belongs to (SIOCGSKNS)."""
    descriptor = fcntl.ioctl(sock.fileno(), 0x894C)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def sockets(ztunnel: Ztunnel, namespace: OwnedNamespace) -> list[Options]:
    """The TCP sockets that a ztunnel has in a namespace."""
    with borrowed(ztunnel.process.pid) as found:
        return [Options(sock) for sock in found if namespace_inode(sock) == namespace.inode]


async def test_every_socket_in_a_pod_has_its_options(nodes):
    client, server, outside = nodes.client, nodes.server, nodes.outside
    async with (
        serve(server, 8080) as application,
        await client.connect(server.ipv4, 8080) as tunnelled,
        await outside.connect(server.ipv4, 8080) as plain,
    ):
        await echoes(tunnelled)
        await echoes(plain)
        at_client = sockets(client.ztunnel, client.pod.namespace)
        at_server = sockets(server.ztunnel, server.pod.namespace)
    for found in (at_client, at_server):
        listeners = {options.local[1]: options for options in found if options.listening}
        assert set(listeners) == {15001, 15006, 15008}
        for options in listeners.values():
            assert (options.mark, options.reuse_port, options.transparent) == (MARK, True, True)
        # The stock of sockets for later dials, and the connections.
        assert all(options.mark in {0, MARK} for options in found)
    connected = [options for options in at_client + at_server if options.remote]
    by_kind = {
        "accepted from the application": [one for one in at_client if one.remote and one.local[1] == 15001],
        "dialled tunnel": [one for one in at_client if one.remote and one.remote[1] == 15008],
        "accepted tunnel": [one for one in at_server if one.remote and one.local[1] == 15008],
        "accepted plaintext": [one for one in at_server if one.remote and one.local[1] == 15006],
        "dialled application": [one for one in at_server if one.remote and one.remote[1] == 8080],
    }
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "accepted from the application": 1,
        "dialled tunnel": 1,
        "accepted tunnel": 1,
        "accepted plaintext": 1,
        "dialled application": 2,
    }
    assert all(options.no_delay and options.mark == MARK for options in connected)
    timeout = (KEEPALIVE["time"] + KEEPALIVE["retries"] * KEEPALIVE["interval"]) * 1000
    for kind, found in by_kind.items():
        for options in found:
            expected = (None, 0) if kind == "accepted tunnel" else (KEEPALIVE, timeout)
            assert (options.keepalive, options.user_timeout) == expected, kind
    assert set(application.peer_addresses) == {client.ipv4, outside.ipv4}


# -- its limits ------------------------------------------------------------------------------------------


async def test_out_of_descriptors_it_sheds_connections_and_recovers_by_itself(nodes):
    server, outside, node = nodes.server, nodes.outside, nodes.node(nodes.server)
    old = node.current
    ztunnel = node.launch(prefix=["prlimit", f"--nofile={DESCRIPTORS // 2}:{DESCRIPTORS}"])
    await eventually(ztunnel.ready, "ready", 20)
    old.process.signal(signal.SIGTERM)
    await ended(old, 10)
    assert ztunnel.log_lines(f"set file descriptor limits from {DESCRIPTORS // 2} to {DESCRIPTORS}")
    before = len(open_descriptors(ztunnel.process.pid))
    async with serve(server, 8080), AsyncExitStack() as held:
        served, shed = [], 0
        for _ in range(DESCRIPTORS):
            try:
                stream = await held.enter_async_context(await outside.connect(server.ipv4, 8080))
                await echoes(stream)
            except (ConnectionResetError, trio.BrokenResourceError, AssertionError):
                shed += 1
            else:
                served.append(stream)
        assert len(served) > 20
        assert shed > 20
        # Not one of those that were served is lost, and the servers of the node answer.
        await echoes(served[0])
        await echoes(served[-1])
        assert ztunnel.ready()
        assert ztunnel.http("GET", 15000, "/config_dump")[0] == 200
        assert server.metric("process_max_fds") == DESCRIPTORS
        # Accepting stopped before a dial lacked a descriptor, whatever number was open before.
        refused = partial(ztunnel.log_lines, "connections refused: over 176 descriptors are open")
        await eventually(refused, "a line about it")
        # A new pod is served all the same.
        fresh = OwnedNamespace.make("fresh")
        try:
            info = PodInfo("fresh", "default", "fresh")
            assert node.cni.add_pod("fresh", info, fresh.descriptor).error == ""
            node.cni.delete_pod("fresh")
        finally:
            fresh.close()
    async with serve(server, 8080):
        try:
            await eventually(lambda: len(open_descriptors(ztunnel.process.pid)) <= before + 16, "recovered")
        except AssertionError as error:
            left = ztunnel.http("GET", 15000, "/debug/sockets"), ztunnel.http("GET", 15000, "/connections")
            raise AssertionError(before, left, ztunnel.log_lines()[-40:]) from error
        for _ in range(20):
            async with await outside.connect(server.ipv4, 8080) as stream:
                await echoes(stream)
    await eventually(partial(ztunnel.log_lines, "connections accepted again"), "a line about it")
    assert not ztunnel.log_lines("Traceback")
