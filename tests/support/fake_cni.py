"""The ZDS server of istio-cni's node agent, which behaves as the real one does.

    with FakeCni(path) as cni:
        cni.wait_ready()                       # a ztunnel has connected and taken the snapshot
        ack = cni.add_pod("uid-1", PodInfo("client", "default", "client"), pod.namespace.descriptor)
        assert ack.error == ""
        cni.delete_pod("uid-1")

The agent waits for the ack of one request before it sends the next. It sends an add to the newest connection,
and the add fails without one. It sends a delete to all. A new connection gets every cached pod (a keep, where
the namespace is not found any more), then the end of the snapshot. A connection on which a packet comes
without a request is dropped.

It runs on threads of its own, one for each connection, so that it answers whatever the test is doing. All
methods may be called from any thread and block; in a trio test use ``trio.to_thread.run_sync``.
"""

from __future__ import annotations

import array
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ztunnel.messages import PodInfo
from ztunnel.pb.istio.workload import zds

ACK_SECONDS = 5.0
HELLO = bytes(zds.ZdsHello(version=zds.Version.V1))
SNAPSHOT_SENT = bytes(zds.WorkloadRequest(snapshot_sent=zds.SnapshotSent()))


class NoZtunnelError(Exception):
    """No ztunnel is connected, or it hung up before it answered."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a request (``add uid-1``): its error, empty for success, and the seconds it took."""

    request: str
    error: str
    seconds: float


@dataclass(slots=True)
class _Pod:
    info: PodInfo
    descriptor: int | None


@dataclass(slots=True)
class _Request:
    name: str
    packet: bytes
    descriptor: int | None = None  # a duplicate of the request's own, closed when it has been sent
    answer: Future[Ack] = field(default_factory=Future)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class CniConnection:
    """One connected ztunnel, as the agent sees it."""

    def __init__(self, sock: socket.socket, first: list[_Request], changed: Callable[[], None]) -> None:
        self.acks: list[Ack] = []
        self.unsolicited: list[bytes] = []
        self.greeted = False
        self.ready = False
        self.closed = False
        self._sock = sock
        self._changed = changed
        self._lock = threading.Lock()
        self._requests = deque(first)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="fake CNI connection", daemon=True)
        self._thread.start()

    def ask(self, request: _Request) -> Future[Ack]:
        """Queue a request behind those that wait."""
        with self._lock:
            if self.closed:
                request.close()
                request.answer.set_exception(NoZtunnelError("the ztunnel has hung up"))
            else:
                self._requests.append(request)
                os.write(self._wake_writer, b"x")
        return request.answer

    def drop(self) -> None:
        """Hang up, as an agent does that ends."""
        with self._lock:
            if not self.closed:
                with suppress(OSError):  # the other end may have gone first
                    self._sock.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until nothing of the connection is left."""
        self._thread.join(ACK_SECONDS + 1)

    def _run(self) -> None:
        try:
            self._sock.settimeout(ACK_SECONDS)
            self.greeted = self._sock.recv(1024) == HELLO
            while self.greeted:
                with self._lock:
                    request = self._requests.popleft() if self._requests else None
                if request is not None:
                    self._exchange(request)
                elif not self._idle():
                    break
        except OSError:
            pass
        finally:
            self._end()

    def _idle(self) -> bool:
        """Wait for a request. Returns False when the ztunnel hung up, or sent a packet without a request."""
        readable, _, _ = select.select([self._sock.fileno(), self._wake_reader], [], [])
        if self._sock.fileno() in readable:
            if data := self._sock.recv(1024):
                self.unsolicited.append(data)
            return False
        os.read(self._wake_reader, 4096)
        return True

    def _exchange(self, request: _Request) -> None:
        started = time.monotonic()
        try:
            control = []
            if request.descriptor is not None:
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [request.descriptor]))]
            self._sock.sendmsg([request.packet], control)
            packet = self._sock.recv(1024)
        except OSError as error:
            request.answer.set_exception(NoZtunnelError(f"{request.name}: {error}"))
            raise
        finally:
            request.close()
        if not packet:
            request.answer.set_exception(NoZtunnelError(f"{request.name}: hung up instead of an ack"))
            raise ConnectionResetError
        answer = zds.WorkloadResponse.parse(packet).ack
        ack = Ack(request.name, "" if answer is None else answer.error, time.monotonic() - started)
        self.acks.append(ack)
        if request.packet == SNAPSHOT_SENT:
            self.ready = True
        request.answer.set_result(ack)
        self._changed()

    def _end(self) -> None:
        with self._lock:
            self.closed = True
            self.ready = False
            self._sock.close()
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            waiting = list(self._requests)
            self._requests.clear()
        for request in waiting:
            request.close()
            request.answer.set_exception(NoZtunnelError("the ztunnel has hung up"))
        self._changed()


class FakeCni:
    """The agent, listening at ``path`` while the ``with`` lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[CniConnection] = []
        self._pods: dict[str, _Pod] = {}
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        with self._changed:
            for pod in self._pods.values():
                if pod.descriptor is not None:
                    os.close(pod.descriptor)
            self._pods.clear()

    def listen(self) -> None:
        """Begin to listen. After `close`, it is a restarted agent that still knows its pods."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(16)
        self._thread = threading.Thread(
            target=self._accept, args=(self._listener,), name="fake CNI", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and hang up."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            if self._thread is not None:
                self._thread.join(ACK_SECONDS)
            listener.close()
            self.path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.drop()
            connection.join()

    def add_pod(self, uid: str, info: PodInfo, netns: int) -> Ack:
        """Add a pod; ``netns`` is duplicated. Waits for the ack, whose error would go to the kubelet.

        The pod stays cached even so. Raises `NoZtunnelError` when no ztunnel answers.
        """
        with self._changed:
            self._cache(uid, info, netns)
            newest = next((one for one in reversed(self.connections) if not one.closed), None)
            if newest is None:
                raise NoZtunnelError("no ztunnel is connected")
            answer = newest.ask(self._add_request(uid, info, os.dup(netns)))
        return answer.result(ACK_SECONDS + 1)

    def cache_pod(self, uid: str, info: PodInfo, netns: int) -> None:
        """Cache a pod without an add: it comes with the next snapshot. ``netns`` is duplicated."""
        with self._changed:
            self._cache(uid, info, netns)

    def _cache(self, uid: str, info: PodInfo, netns: int) -> None:
        old = self._pods.get(uid)
        if old is not None and old.descriptor is not None:
            os.close(old.descriptor)
        self._pods[uid] = _Pod(info, os.dup(netns))

    def delete_pod(self, uid: str) -> list[Ack]:
        """Delete a pod, on all connections. Returns their acks.

        Raises `NoZtunnelError` if one hung up, when all others have answered.
        """
        packet = bytes(zds.WorkloadRequest(del_=zds.DelWorkload(uid=uid)))
        with self._changed:
            pod = self._pods.pop(uid, None)
            if pod is not None and pod.descriptor is not None:
                os.close(pod.descriptor)
            answers = [
                connection.ask(_Request(f"del {uid}", packet))
                for connection in self.connections
                if not connection.closed
            ]
        acks: list[Ack] = []
        gone: NoZtunnelError | None = None
        for answer in answers:
            try:
                acks.append(answer.result(ACK_SECONDS + 1))
            except NoZtunnelError as error:
                gone = error
        if gone is not None:
            raise gone
        return acks

    def forget_namespace(self, uid: str) -> None:
        """Let the agent be unable to find a pod's namespace: later snapshots have a keep for it."""
        with self._changed:
            pod = self._pods[uid]
            if pod.descriptor is not None:
                os.close(pod.descriptor)
                pod.descriptor = None

    def wait_ready(self, count: int = 1, seconds: float = 10.0) -> list[CniConnection]:
        """Wait until so many ztunnels have taken the snapshot; gives them. Raises TimeoutError."""

        def ready() -> list[CniConnection]:
            return [connection for connection in self.connections if connection.ready]

        with self._changed:
            if not self._changed.wait_for(lambda: len(ready()) >= count, seconds):
                raise TimeoutError(f"{len(ready())} of {count} ztunnels have taken the snapshot")
            return ready()

    @property
    def acks(self) -> list[Ack]:
        """All acks of all connections, of each in order."""
        return [ack for connection in self.connections for ack in connection.acks]

    def _add_request(self, uid: str, info: PodInfo, descriptor: int) -> _Request:
        workload = zds.WorkloadInfo(
            name=info.name, namespace=info.namespace, service_account=info.service_account
        )
        packet = bytes(zds.WorkloadRequest(add=zds.AddWorkload(uid=uid, workload_info=workload)))
        return _Request(f"add {uid}", packet, descriptor)

    def _snapshot(self) -> list[_Request]:
        requests = []
        for uid, pod in self._pods.items():
            if pod.descriptor is None:
                packet = bytes(zds.WorkloadRequest(keep=zds.KeepWorkload(uid=uid)))
                requests.append(_Request(f"keep {uid}", packet))
            else:
                requests.append(self._add_request(uid, pod.info, os.dup(pod.descriptor)))
        return [*requests, _Request("snapshot_sent", SNAPSHOT_SENT)]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections.append(CniConnection(sock, self._snapshot(), self._notify))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
