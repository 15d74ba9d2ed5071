"""Several data planes, each in a process of its own, that act as one.

How it works. The control side opens each pod's listening sockets, keeps them, and gives every worker
descriptors of the same sockets. A free worker accepts (`ztunnel.sockets.shared_wait`), so one busy pod uses
all workers, and the accept queue stays when a worker ends. Changes (mesh, certificates, pods, log levels) are
sent to all workers; a change of the mesh is in force when all have acknowledged it. Questions are sent to all
workers too.

A worker that ends is replaced at once. The new one gets all that is in force: the mesh from the cache, the
revocation lists, the log filter, and last the pods, so it accepts nothing before it has the mesh. It requests
certificates itself, when the mesh makes it need them. A worker that does not apply a change of the mesh in
time is killed and replaced, because the others would wait for it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TypeVar

import msgspec
import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import Config
from ztunnel.control.link import DataPlaneGoneError, DataPlaneLink, QuestionFailedError
from ztunnel.control.mesh_cache import CACHE_PART, MeshCache
from ztunnel.control.worker_handle import Forks, SharedPod, Worker, kill
from ztunnel.errors import os_error_text
from ztunnel.messages import (
    AtWork,
    DumpSection,
    FromDataPlane,
    LogLevels,
    MeshDelta,
    PodAdded,
    PodFailed,
    PodRemoved,
    PodStarted,
    PodStopped,
    Rejected,
    Report,
    Resource,
    RevocationsChanged,
    ToDataPlane,
    Topic,
)
from ztunnel.netns.namespace import Namespace
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.pod_listeners import drain_name, open_listeners, say_drained, say_established
from ztunnel.sockets.factories import HostSockets, NamespaceSockets
from ztunnel.sockets.listen import BindError
from ztunnel.sockets.message_socket import FrameError, control_end

log = get_logger("workers")
pod_log = get_logger("proxy")
drain_log = get_logger("drain")

_T = TypeVar("_T")


class Workers:
    """Acts as a `DataPlaneLink`, with ``config.num_worker_threads`` processes behind it.

    on_message: called with messages that are no answers, as if one data plane had sent them.
    on_ended: called with the number of a worker that has ended; its counters change no more.
    """

    def __init__(
        self,
        config: Config,
        forks: Forks,
        on_message: Callable[[FromDataPlane], None],
        on_ended: Callable[[int], None] = lambda _: None,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        self._config = config
        self._forks = forks
        self._on_message = on_message
        self._on_ended = on_ended
        self._workers: dict[int, Worker] = {}
        self._mesh_cache = MeshCache(bounds.mesh_cache_slack)
        self._in_order = trio.Lock()
        self._remembered: dict[type, ToDataPlane] = {}
        self._pods: dict[str, SharedPod] = {}
        self._draining = False
        self._more = trio.lowlevel.ParkingLot()
        self._all_there = trio.Event()

    async def run(self) -> None:
        """Keep all workers running until cancelled, or until they have ended after a drain."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, name="ends of workers")
                async with trio.open_nursery() as keeping:
                    for number in range(1, self._config.num_worker_threads + 1):
                        keeping.start_soon(self._keep, number, name=f"worker {number}")
                nursery.cancel_scope.cancel()
        finally:
            for pod in self._pods.values():
                pod.close()
            self._pods.clear()
            self._mesh_cache.close()

    # -- processes ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Log how workers have ended. The end of its socket shows that a worker has ended."""
        while True:
            await trio.lowlevel.wait_readable(self._forks.sock)
            try:
                ended = self._forks.told()
            except EOFError:
                log.error("the process that workers are forked from has ended; new ones start more slowly")
                return
            for pid, status in ended:
                how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
                say = log.error if status and not self._draining else log.info
                say("a worker has ended", pid=pid, how=how)

    async def _keep(self, number: int) -> None:
        """Run a worker, and a new one when it has ended."""
        bounds = self._bounds
        pause = 0.0
        while not self._draining:
            began = trio.current_time()
            await self._run_one(number)
            self._on_ended(number)
            lived = trio.current_time() - began
            # At once, unless it ends again and again.
            longer = min(max(bounds.worker_first_pause, 2 * pause), bounds.worker_longest_pause)
            pause = 0.0 if lived > bounds.worker_short_life else longer
            if not self._draining:
                log.warn("starting a worker in place of one that has ended", worker=number)
                await trio.sleep(pause)

    async def _run_one(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._forks.order(theirs)
        line = control_end(ours, self._bounds.worker_message)
        worker: Worker | None = None
        link = DataPlaneLink(line, line, lambda message: self._from(worker, message), self._bounds)
        worker = self._workers[number] = Worker(number, link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_all, worker, name=f"first messages to worker {number}")
                try:
                    await link.run()
                except FrameError as error:
                    log.error("a worker is killed", worker=number, error=error, code=error.code)
                    kill(worker)
                nursery.cancel_scope.cancel()
        finally:
            del self._workers[number]
            await line.aclose()
            for pod in list(self._pods.values()):
                self._started(pod, worker, answered=False)

    async def _tell_all(self, worker: Worker) -> None:
        """Send a new worker everything that is in force."""
        for message in list(self._remembered.values()):  # a change that comes meanwhile is sent to it too
            await worker.link.send(message)
        try:
            async with self._in_order:
                for delta in self._mesh_cache.deltas():
                    await self._apply_at(worker, delta)
                told: set[SharedPod] = set()
                while missing := [pod for pod in self._pods.values() if pod not in told]:
                    told.add(missing[0])
                    await worker.link.send(missing[0].shared())
                worker.synced = True
        except (DataPlaneGoneError, OSError):
            return  # the end of its socket is noticed elsewhere; without descriptors its next question fails
        self._more.unpark_all()
        if sum(one.synced for one in self._workers.values()) == self._config.num_worker_threads:
            self._all_there.set()

    async def _synced(self) -> list[Worker]:
        """Returns the synced workers; waits until there is one."""
        await self._all_there.wait()
        while not (synced := self._now_synced()):
            await self._more.park()
        return synced

    def _now_synced(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.synced]

    # -- what they are told ------------------------------------------------------------------------------

    async def send(self, message: ToDataPlane) -> None:
        """Send a message to all of them. We own the descriptor of a PodAdded from then on."""
        if isinstance(message, PodAdded):
            await self._add(message)
            return
        if isinstance(message, PodRemoved):
            pod = self._pods.pop(message.uid, None)
            if pod is not None:
                pod.close()
        elif isinstance(message, RevocationsChanged | LogLevels):
            self._remembered[type(message)] = message
        for worker in list(self._workers.values()):
            await worker.link.send(message)

    async def apply(self, delta: MeshDelta) -> tuple[Rejected, ...]:
        """Let all workers apply a change of the mesh. Returns what was rejected."""
        rejected: list[Rejected] = []
        for part in _parts(delta):
            answers: list[tuple[Rejected, ...]] = []
            while not answers:
                # Not while others wait for the lock: a new worker needs it to become synced.
                await self._synced()
                async with self._in_order:
                    # Read here, since a worker that was synced meanwhile counts too.
                    await self._apply_at_all(self._now_synced(), part, answers)
                    if answers:
                        self._mesh_cache.record(part, frozenset(one.name for one in answers[0]))
            rejected += answers[0]
        return tuple(rejected)

    async def _apply_at_all(
        self, workers: list[Worker], part: MeshDelta, answers: list[tuple[Rejected, ...]]
    ) -> None:
        async def at(worker: Worker) -> None:
            try:
                answers.append(await self._apply_at(worker, part))
            except DataPlaneGoneError:
                return

        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(at, worker, name=f"mesh delta at worker {worker.number}")

    async def _apply_at(self, worker: Worker, part: MeshDelta) -> tuple[Rejected, ...]:
        with trio.move_on_after(self._bounds.worker_hung):
            return await worker.link.apply(part)
        log.error("a worker does not take over the mesh and is killed", worker=worker.number)
        kill(worker)
        raise DataPlaneGoneError

    # -- pods --------------------------------------------------------------------------------------------

    async def _add(self, message: PodAdded) -> None:
        netns = message.netns
        namespace = None
        try:
            if self._draining:
                self._on_message(PodFailed(message.uid, "this process is draining", message.attempt))
                return
            await self._all_there.wait()
            namespace = None if netns is None else Namespace.duplicate(netns)
            factory = HostSockets() if namespace is None else NamespaceSockets(namespace)
            listeners = await open_listeners(self._config, factory, inbound_only=message.inbound_only)
            pod = SharedPod(message, listeners)
            netns = None
        except BindError as error:
            self._on_message(PodFailed(message.uid, error.brief, message.attempt))
            return
        except OSError as error:
            self._on_message(PodFailed(message.uid, os_error_text(error), message.attempt))
            return
        finally:
            if namespace is not None:
                namespace.close()
            if netns is not None:
                os.close(netns)
        name = f"{message.info.namespace}/{message.info.name}"
        say_established(pod_log.bind_span("proxy", wl=name), listeners)
        before = self._pods.pop(message.uid, None)
        if before is not None:
            before.close()
        self._pods[message.uid] = pod
        pod.starting = set(self._now_synced())
        for worker in list(pod.starting):
            if self._pods.get(message.uid) is not pod:
                return
            try:
                shared = pod.shared()
            except OSError as error:
                self._on_message(PodFailed(message.uid, os_error_text(error), message.attempt))
                return
            await worker.link.send(shared)

    def _from(self, worker: Worker | None, message: FromDataPlane) -> None:
        """Process a message of one worker, as if there were only one data plane."""
        assert worker is not None
        if isinstance(message, AtWork):
            worker.pid = message.pid
            log.info("a worker has started", worker=worker.number, pid=message.pid)
            return
        if not isinstance(message, PodStarted | PodStopped | PodFailed):
            self._on_message(message)
            return
        pod = self._pods.get(message.uid)
        if pod is None or pod.message.attempt != message.attempt:
            return
        if isinstance(message, PodStarted):
            self._started(pod, worker, answered=True)
        elif isinstance(message, PodFailed) or not self._draining:
            # A pod that has ended in one process counts as ended: the agent is asked for it again.
            self._on_message(message)

    def _started(self, pod: SharedPod, worker: Worker, *, answered: bool) -> None:
        """A worker serves a pod, or has ended and never will. The last worker's answer is passed on."""
        pod.starting.discard(worker)
        pod.started = pod.started or answered
        if pod.started and not pod.starting and not pod.announced:
            pod.announced = True
            self._on_message(PodStarted(pod.message.uid, pod.message.attempt))

    # -- what they are asked -----------------------------------------------------------------------------

    async def reports(self) -> dict[int, Report]:
        """Returns the report of each. Raises trio.TooSlowError."""
        return await self._of_all("report", DataPlaneLink.report)

    async def dump(self, section: DumpSection) -> AsyncGenerator[tuple[msgspec.Raw, ...], None]:
        """Returns a section of the admin dump: all have the same mesh. Raises trio.TooSlowError."""
        async with aclosing((await self._synced())[0].link.dump(section)) as pieces:
            async for items in pieces:
                yield items

    async def ask(self, topic: Topic, parameters: Mapping[str, str]) -> list[msgspec.Raw]:
        """Returns the items of all answers to a question. Raises trio.TooSlowError, QuestionFailedError."""
        answers = await self._of_all("question", lambda link: link.ask(topic, parameters))
        return [item for items in answers.values() for item in items]

    async def _of_all(self, what: str, ask: Callable[[DataPlaneLink], Awaitable[_T]]) -> dict[int, _T]:
        """Returns the answers of all, by number. A worker that ends meanwhile is left out.

        Raises what `ask` raises.
        """
        found: dict[int, _T] = {}
        failed: list[trio.TooSlowError | QuestionFailedError] = []

        async def one(worker: Worker) -> None:
            try:
                found[worker.number] = await ask(worker.link)
            except DataPlaneGoneError:
                return
            except (trio.TooSlowError, QuestionFailedError) as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for worker in self._workers.values():
                if worker.synced:
                    nursery.start_soon(one, worker, name=f"{what} to worker {worker.number}")
        if failed:
            raise failed[0]
        return dict(sorted(found.items()))

    async def drain(self, deadline: float) -> None:
        """Drain all: they close what is open after ``deadline`` seconds. Returns when all is closed.

        Our own descriptors are closed first, so that the socket is closed when the last worker has accepted
        what waits.
        """
        self._draining = True
        pods = list(self._pods.values())
        for pod in pods:
            pod.listeners.close()
            for name, listener in pod.listeners.components.items():
                drain_log.info("listener drained", address=listener.address, component=drain_name(name))
        async with trio.open_nursery() as nursery:
            for worker in self._workers.values():
                nursery.start_soon(worker.link.drain, deadline, name=f"drain of worker {worker.number}")
        for pod in pods:
            say_drained(drain_log, pod.listeners)


def _parts(delta: MeshDelta) -> Iterator[MeshDelta]:
    """Returns a delta in parts that are small enough to be sent: resources first, then removals."""
    part: list[Resource] = []
    for resource in delta.resources:
        part.append(resource)
        if len(part) == CACHE_PART:
            yield msgspec.structs.replace(delta, resources=tuple(part), removed=())
            part = []
    yield msgspec.structs.replace(delta, resources=tuple(part))
