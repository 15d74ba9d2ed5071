"""The pods of a data plane: one nursery for each, so that they do not affect each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import trio

from ztunnel.dataplane.drain import drain_samples, report_progress
from ztunnel.errors import os_error_text
from ztunnel.messages import (
    FromDataPlane,
    InboundConnection,
    OutboundConnection,
    PodAdded,
    PodConnections,
    PodFailed,
    PodStarted,
    PodStopped,
    Sample,
)
from ztunnel.netns.namespace import Namespace
from ztunnel.observe import families
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.pod import PodProxy
from ztunnel.proxy.pod_listeners import adopt
from ztunnel.proxy.pod_views import stalled
from ztunnel.proxy.podcontext import PodContext, Shared
from ztunnel.proxy.recheck import close_forbidden, close_revoked, evict_stale
from ztunnel.slices import batches
from ztunnel.sockets.factories import HostSockets, NamespaceSockets, SocketFactory, SpareSockets
from ztunnel.sockets.listen import BindError
from ztunnel.tls.revocation import Revocations

_SHOWN = 200
"""Connections that are shown between two checkpoints."""

_COUNTED = 1000
"""Connections that are counted between two checkpoints: some 2 ms."""

log = get_logger("inpod::statemanager")


class Pods:
    """Starts, stops and drains pods, each in a task of the given nursery."""

    def __init__(self, shared: Shared, send: Callable[[FromDataPlane], None], nursery: trio.Nursery) -> None:
        self._shared = shared
        self._send = send
        self._nursery = nursery
        self._spares = SpareSockets()
        self._pods: dict[str, PodProxy] = {}
        self._alive: set[PodProxy] = set()
        self._deadline: float | None = None
        self._policy_changed = trio.Event()
        self._emptied = trio.lowlevel.ParkingLot()

    async def recheck_policies(self) -> None:
        """Until cancelled: after a change of policy, check it again for every open connection."""
        while True:
            await self._policy_changed.wait()
            self._policy_changed = trio.Event()
            for pod in list(self._pods.values()):
                await close_forbidden(pod.context)
                await trio.lowlevel.checkpoint()

    def add(self, message: PodAdded) -> None:
        """Start a pod. PodStarted or PodFailed is the answer.

        An old pod with the same uid is stopped, not waited for.

        It owns the descriptors from now on.
        """
        if self._deadline is not None:
            for descriptor in message.descriptors():
                os.close(descriptor)
            self._send(PodFailed(message.uid, "this process is draining", message.attempt))
            return
        self.remove(message.uid)
        namespace = None
        in_namespace = None
        factory: SocketFactory = HostSockets(self._shared.budget)
        listening: SocketFactory = HostSockets()
        if message.netns is not None:
            try:
                namespace = Namespace(message.netns, end_seconds=self._shared.bounds.connection.visit_end)
            except OSError as error:
                for descriptor in message.descriptors():
                    os.close(descriptor)
                self._send(PodFailed(message.uid, os_error_text(error), message.attempt))
                return
            in_namespace = NamespaceSockets(namespace, budget=self._shared.budget, spares=self._spares)
            factory = in_namespace
            listening = NamespaceSockets(namespace)
        pod = PodProxy(
            PodContext(
                self._shared,
                message.uid,
                message.info,
                factory,
                inbound_only=message.inbound_only,
                listening=listening,
            ),
            adopt(message.listeners) if message.listeners is not None else None,
        )
        self._pods[message.uid] = pod
        self._alive.add(pod)
        name = f"pod {message.info.namespace}/{message.info.name}"
        self._nursery.start_soon(self._run_pod, pod, namespace, in_namespace, message.attempt, name=name)

    def remove(self, uid: str) -> None:
        """Stop a pod at once. PodStopped follows when it has ended. An unknown uid is ignored."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            pod.stop()

    def drain(self, deadline: float) -> None:
        """Drain all pods. `wait_empty` returns when the last one has ended.

        Logs the progress. No pod is started any more.
        """
        if self._deadline is not None:
            return
        self._deadline = trio.current_time() + deadline
        for pod in self._pods.values():
            pod.drain(deadline)
        bounds = self._shared.bounds.log
        self._nursery.start_soon(
            report_progress, lambda: self._alive, self._deadline, bounds, name="drain progress"
        )

    def drain_samples(self) -> list[Sample]:
        """Returns the metrics of a drain in progress; none otherwise."""
        return [] if self._deadline is None else drain_samples(self._alive, self._deadline)

    async def stall_samples(self) -> list[Sample]:
        """Returns the metrics of streams that are stalled now; other tasks run in between."""
        streams = held = 0
        for pod in list(self._pods.values()):
            table = pod.context.connections
            for entries in batches([*table.outbound, *table.inbound], _COUNTED):
                part = stalled(entries)
                streams, held = streams + part[0], held + part[1]
                await trio.lowlevel.checkpoint()
        ejected = sum(len(pod.outbound.ejection.since()) for pod in self._pods.values() if pod.outbound)
        return [
            Sample(families.EJECTED.name, (), ejected),
            Sample(families.STALLED_STREAMS.name, (), streams),
            Sample(families.HELD_BYTES.name, (), held),
        ]

    def stop(self) -> None:
        """End all pods at once."""
        for pod in self._pods.values():
            pod.stop()

    async def wait_empty(self) -> None:
        """Wait until no pod is left."""
        while self._alive:
            await self._emptied.park()

    def policy_changed(self) -> None:
        """Check policy again for every open connection."""
        self._policy_changed.set()

    def workloads_changed(self, uids: Collection[str]) -> None:
        """Workloads were added, changed or removed: check tunnels to them, and connections to ours."""
        if not uids:
            return
        ours = False
        for pod in self._pods.values():
            evict_stale(pod, uids)
            if not ours and pod.context.connections.inbound:
                workload = pod.context.known_workload()
                ours = workload is not None and workload.uid in uids
        if ours:
            self.policy_changed()

    def revocations_changed(self, revocations: Revocations) -> None:
        """Check open tunnels against new revocation lists."""
        for pod in list(self._pods.values()):
            close_revoked(pod, revocations)

    def all(self) -> list[PodProxy]:
        """Returns every pod that is served."""
        return list(self._pods.values())

    async def connections(self) -> tuple[PodConnections, ...]:
        """Returns the open connections of every pod, for the admin dump; other tasks run in between."""
        shown: list[PodConnections] = []
        for uid, pod in list(self._pods.items()):
            if pod.context.inbound_only:
                continue
            table = pod.context.connections
            inbound: list[InboundConnection] = []
            outbound: list[OutboundConnection] = []
            for entries in batches(list(table.inbound), _SHOWN):
                inbound += [entry.view() for entry in entries if entry.facts is not None]
                await trio.lowlevel.checkpoint()
            for leaving in batches(list(table.outbound), _SHOWN):
                outbound += [entry.view() for entry in leaving]
                await trio.lowlevel.checkpoint()
            shown.append(PodConnections(uid, tuple(inbound), tuple(outbound)))
        return tuple(shown)

    async def _run_pod(
        self, pod: PodProxy, namespace: Namespace | None, sockets: NamespaceSockets | None, attempt: int
    ) -> None:
        """Run one pod from its start to its end. Every failure of it ends here."""
        uid = pod.context.uid
        started = False
        failure: str | None = None

        def on_started() -> None:
            nonlocal started
            started = True
            self._send(PodStarted(uid, attempt))

        try:
            await pod.run(on_started)
        except BindError as error:
            failure = error.brief
        except OSError as error:
            failure = os_error_text(error)
        except Exception as error:
            log.error(
                "a pod's task failed; its listeners and connections are closed", uid=uid, exc_info=error
            )
            failure = f"internal error: {error!r}"
        finally:
            if sockets is not None:
                sockets.close()
            if namespace is not None:
                namespace.close()
            if self._pods.get(uid) is pod:
                del self._pods[uid]
            self._alive.discard(pod)
            if not self._alive:
                self._emptied.unpark_all()
            self._ended(uid, attempt, failure, started=started)

    def _ended(self, uid: str, attempt: int, failure: str | None, *, started: bool) -> None:
        if started:
            if failure is not None:
                log.error("pod ended", uid=uid, error=failure)
            self._send(PodStopped(uid, attempt))
        elif failure is not None:
            self._send(PodFailed(uid, failure, attempt))
