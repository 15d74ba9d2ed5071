"""The task that talks to the CNI agent: it connects, reconnects, and has pods started and stopped.

It takes one packet at a time. `ZdsSession` says what the packet means, and the task does it before it reads
the next one. So acks go out in the order of the requests, each after the pod's sockets are bound. Pods
continue to work while the agent is away.

Backoff: it reconnects at once after a useful connection (one whose snapshot came) and after the first useless
one. After that the pauses grow, so an agent that accepts and closes at once is not flooded with connections.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.errors import os_error_text
from ztunnel.inpod.codec import AddPod, decode_request, encode_ack, encode_hello
from ztunnel.inpod.packet_connection import Packet, PacketConnection
from ztunnel.inpod.zds_errors import AgentUnreachableError, PodStartError, ZdsReadError
from ztunnel.inpod.zds_session import (
    Command,
    Commands,
    Fail,
    PodCounts,
    PodView,
    Reconnect,
    Release,
    SendAck,
    SendHello,
    SessionPhase,
    StartPod,
    StopPod,
    ZdsSession,
)
from ztunnel.messages import PodInfo
from ztunnel.observe.durations import duration_text
from ztunnel.observe.logging import get_logger

log = get_logger("inpod::workloadmanager")
pod_log = get_logger("inpod::statemanager")


class PodManager(Protocol):
    """Runs the proxies of the node's pods. One task calls it, one call at a time."""

    async def start(self, uid: str, info: PodInfo, netns: int) -> None:
        """Open all sockets of a pod and serve it from then on. Returns when they are bound.

        netns: the descriptor of its network namespace. The caller owns it; duplicate it if it is needed after
            this call.

        Raises `PodStartError`. Then, and after a cancellation, nothing of the pod is left.
        """
        ...

    async def stop(self, uid: str) -> None:
        """Close a pod's listeners and connections. Returns soon, without waiting for their ends.

        A pod of the same uid may be started right after it.
        """
        ...


class _ConnectionOver(Exception):
    """The connection cannot be used any more. ``str()`` says why."""


class ZdsClient:
    """Talks to the CNI agent at ``path`` while `run` runs.

    on_ready: called with True or False when readiness changes; at first it is not ready. randomness: for the
        jitter of pauses.
    """

    def __init__(
        self,
        path: str,
        manager: PodManager,
        *,
        on_ready: Callable[[bool], None],
        randomness: random.Random,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        self._path = path
        self._manager = manager
        self._on_ready = on_ready
        self._randomness = randomness
        self._session = ZdsSession(bounds.cni_retry)
        self._ready = False
        self._resync_at: float | None = None
        self._receiving = trio.CancelScope()

    def counts(self) -> PodCounts:
        """Returns the values of the ``workload_manager_*`` metrics."""
        return self._session.counts()

    def pods(self) -> Iterator[PodView]:
        """Returns the pods of the admin dump, without their connections."""
        return self._session.pods()

    def pod_ended(self, uid: str) -> None:
        """Note that a running pod has ended without having been stopped.

        The agent would never mention it again, and its traffic would have no proxy. So the client reconnects
        after a while: the agent then sends all pods, and running ones are left as they are.
        """
        self._session.ended(uid)
        if self._resync_at is None:
            self._resync_at = trio.current_time() + self._bounds.cni_retry
            self._receiving.deadline = min(self._receiving.deadline, self._resync_at)

    async def run(self) -> None:
        """Talk to the agent until cancelled.

        Holds no descriptor when it ends. Running pods continue: they belong to the manager. Raises
        `ZdsProtocolError` when the agent breaks the protocol; that has to end the process.
        """
        useless = 0
        while True:
            connection = await self._connect()
            greeted = False
            try:
                with connection:
                    await self._carry_out(self._session.connected(), connection)
                    greeted = True
                    await self._converse(connection)
            except _ConnectionOver as over:
                reason = str(over)
            except OSError as error:
                reason = os_error_text(error)
            finally:
                useful = self._session.phase is SessionPhase.UPDATES
                self._disconnected()
            useless = 0 if useful else useless + 1
            # There is no pause after the first useless connection, unless not even our hello could be sent.
            step = useless if not greeted else useless - 1
            seconds = self._pause(step)
            log.warn(f"connection to the Istio CNI node agent is lost, reconnecting: {reason}")
            if seconds:
                await trio.sleep(seconds)

    def _pause(self, step: int) -> float:
        if step <= 0:
            return 0.0
        bounds = self._bounds
        seconds = min(bounds.cni_first_lost_pause * 2.0 ** min(step - 1, 32), bounds.cni_longest_pause)
        return seconds * self._randomness.uniform(1 - bounds.cni_jitter, 1 + bounds.cni_jitter)

    async def _connect(self) -> PacketConnection:
        pause = self._bounds.cni_first_pause
        while True:
            await trio.lowlevel.checkpoint()
            try:
                connection = PacketConnection.connect(self._path)
            except OSError as error:
                unreachable = AgentUnreachableError(self._path, os_error_text(error))
                log.warn(f"{unreachable}. retrying in {duration_text(pause)}")
                await trio.sleep(pause)
                pause = min(pause * 2, self._bounds.cni_longest_pause)
            else:
                log.info("connected to the Istio CNI node agent", path=self._path)
                return connection

    async def _converse(self, connection: PacketConnection) -> None:
        """Serve a connection until it ends. Raises `_ConnectionOver`, OSError, `ZdsProtocolError`."""
        session = self._session
        while True:
            # Requests come before retries: a waiting packet is taken first, even if a retry is due.
            await trio.lowlevel.checkpoint()
            packet: Packet | None = None
            deadlines = [at for at in (session.retry_at, self._resync_at) if at is not None]
            with trio.move_on_at(min(deadlines, default=math.inf)) as self._receiving:
                packet = await connection.receive()
            if packet is not None:
                commands = self._read(packet)
            elif self._resync_at is not None and trio.current_time() >= self._resync_at:
                self._resync_at = None
                raise _ConnectionOver("a pod ended by itself, and the agent is to send it again")
            elif self._receiving.cancelled_caught:
                commands = session.retry(trio.current_time())
            else:
                raise _ConnectionOver("the agent closed it")
            await self._carry_out(commands, connection)

    def _read(self, packet: Packet) -> Commands:
        with packet:
            try:
                packet.check_complete()
                request = decode_request(packet.data, packet.descriptors)
            except ZdsReadError as error:
                return self._session.unreadable(error)
            namespace = packet.take_namespace() if isinstance(request, AddPod) else None
            return self._session.receive(request, namespace)

    async def _carry_out(self, commands: Commands, connection: PacketConnection) -> None:
        waiting = deque(commands)
        while waiting:
            waiting.extend(await self._carry_out_one(waiting.popleft(), connection))
        self._show_readiness()

    async def _carry_out_one(self, command: Command, connection: PacketConnection) -> Commands:
        match command:
            case SendHello():
                await connection.send(encode_hello(), self._bounds.cni_send)
            case SendAck(error):
                if error is not None:
                    log.warn("request refused", error=error)
                self._show_readiness()
                await connection.send(encode_ack(error), self._bounds.cni_send)
            case StartPod():
                return await self._start(command)
            case StopPod(uid):
                pod_log.info("stopping proxy of pod", uid=uid)
                await self._manager.stop(uid)
            case Release():
                command.netns.close()
            case Reconnect():
                raise _ConnectionOver("a message could not be read")
            case Fail(failure):
                raise failure
        return []

    async def _start(self, command: StartPod) -> Commands:
        info = command.info
        pod_log.info("starting proxy of pod", uid=command.uid, name=info.name, namespace=info.namespace)
        failure = PodStartError("deadline has elapsed")
        with trio.move_on_after(self._bounds.cni_start):
            try:
                await self._manager.start(command.uid, info, command.netns.descriptor)
            except PodStartError as error:
                failure = error
            else:
                return self._session.started()
        pod_log.warn(str(failure), uid=command.uid, name=info.name, namespace=info.namespace)
        return self._session.failed(failure, trio.current_time())

    def _disconnected(self) -> None:
        self._resync_at = None
        for command in self._session.disconnected():
            if isinstance(command, Release):
                command.netns.close()
        self._show_readiness()

    def _show_readiness(self) -> None:
        ready = self._session.ready
        if ready is not self._ready:
            self._ready = ready
            self._on_ready(ready)
