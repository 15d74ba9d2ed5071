"""A CNI agent for tests within one Trio run. It sends what the test tells it to, and checks nothing."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path
from typing import Self

import trio

from ztunnel.messages import PodInfo
from ztunnel.pb.istio.workload import zds


def add_packet(uid: str, info: PodInfo | None = None) -> bytes:
    workload = (
        None
        if info is None
        else zds.WorkloadInfo(name=info.name, namespace=info.namespace, service_account=info.service_account)
    )
    return bytes(zds.WorkloadRequest(add=zds.AddWorkload(uid=uid, workload_info=workload)))


def keep_packet(uid: str) -> bytes:
    return bytes(zds.WorkloadRequest(keep=zds.KeepWorkload(uid=uid)))


def delete_packet(uid: str) -> bytes:
    return bytes(zds.WorkloadRequest(del_=zds.DelWorkload(uid=uid)))


SNAPSHOT_SENT = bytes(zds.WorkloadRequest(snapshot_sent=zds.SnapshotSent()))


class AgentConnection:
    """The agent's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, packet: bytes, descriptors: tuple[int, ...] = ()) -> None:
        control = []
        if descriptors:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.sock.sendmsg([packet], control)

    async def receive(self) -> bytes:
        """Returns a packet, which is empty at the end of the connection."""
        while True:
            try:
                return self.sock.recv(1024)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    async def ack(self) -> str:
        """Returns the error of the next ack, empty for success."""
        packet = await self.receive()
        assert packet, "the connection ended instead of an ack"
        ack = zds.WorkloadResponse.parse(packet).ack
        assert ack is not None
        return ack.error

    async def ask(self, packet: bytes, *descriptors: int) -> str:
        self.send(packet, descriptors)
        return await self.ack()

    async def add(self, uid: str, info: PodInfo, netns: int) -> str:
        return await self.ask(add_packet(uid, info), netns)

    def silent(self) -> bool:
        """Returns whether no packet came without a request."""
        try:
            return self.sock.recv(1024) is None
        except BlockingIOError:
            return True

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class Agent:
    """Listens at ``path``; a context manager that closes all it opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: list[AgentConnection] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._sock.bind(os.fspath(path))
        self._sock.listen(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        for connection in self._connections:
            connection.close()
        self.path.unlink(missing_ok=True)

    async def accept(self) -> AgentConnection:
        """Returns the next connection, whose hello was not read yet."""
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            sock.settimeout(0)
            connection = AgentConnection(sock)
            self._connections.append(connection)
            return connection

    async def greeted(self) -> AgentConnection:
        """Returns the next connection, after a valid hello."""
        connection = await self.accept()
        assert (await connection.receive()).hex() == "0801"
        return connection
