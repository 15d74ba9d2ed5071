"""Processes the control side's messages, and maintains the mesh, the certificates and the pods."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import trio

from ztunnel.bounds import DEFAULTS, Bounds
from ztunnel.config.model import Config
from ztunnel.dataplane.answers import AnswerContext, answer
from ztunnel.dataplane.dump_stream import Dumps
from ztunnel.dataplane.pods import Pods
from ztunnel.dns.on_demand import OnDemandResolver
from ztunnel.messages import (
    Asked,
    CertificateFailed,
    CertificateForgotten,
    CertificateIssued,
    CertificateUnneeded,
    CertificateWanted,
    DeltaApplied,
    DemandAnswered,
    Drain,
    Drained,
    DumpChunk,
    DumpTaken,
    DumpWanted,
    FromDataPlane,
    LogLevels,
    MeshDelta,
    PodAdded,
    PodRemoved,
    Rejected,
    Report,
    ReportWanted,
    ResourceKind,
    RevocationsChanged,
    Sample,
    ToDataPlane,
)
from ztunnel.observe import families
from ztunnel.observe.access_log import current_sampling, set_sampling
from ztunnel.observe.logging import get_logger, set_filter
from ztunnel.observe.process import process_samples
from ztunnel.observe.sampling import Sampling
from ztunnel.observe.task_tree import TaskAges
from ztunnel.observe.traffic import TrafficMetrics
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.demands import Demands
from ztunnel.proxy.history import History
from ztunnel.proxy.podcontext import Shared
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.hangup import Hangups
from ztunnel.sockets.splice import PipePool
from ztunnel.state.application import Application
from ztunnel.state.store import MeshStore
from ztunnel.tls.accelerated import unavailable
from ztunnel.tls.context import TlsOptions
from ztunnel.tls.revocation import Revocations

log = get_logger("state")

APPLY_SLICE = 32
"""Resources that are applied between two checkpoints: half a millisecond, which may delay any other task."""

DUMP_SLICE = 64
"""Objects of the admin dump that are made between two checkpoints."""


class DataPlane:
    """One data plane. `run` is its whole life.

    send: sends a message to the control side; must not block.
    bounds: timeouts and limits of everything in it.
    random, wall_clock: the sources of randomness and of the time of day.
    own_process: whether it is alone in its process; its report then includes the process's descriptors and
        tasks.
    ages: of the tasks of its own process, for the answers about them.
    """

    def __init__(
        self,
        config: Config,
        send: Callable[[FromDataPlane], None],
        *,
        random: Random,
        wall_clock: Callable[[], float],
        bounds: Bounds = DEFAULTS,
        own_process: bool = False,
        ages: TaskAges | None = None,
    ) -> None:
        self._send = send
        self._ages = ages
        self._own_process = own_process
        self._config = config
        self.store = MeshStore(config.local_node)
        self._bounds = bounds
        self._dumps = Dumps(self.store, send, bounds)
        self._shared = Shared(
            config=config,
            store=self.store,
            certificates=CertificateStore(
                send,
                TlsOptions(
                    tls12=config.tls12_enabled,
                    post_quantum_only=config.pqc,
                    accelerated=config.tls_accelerator,
                ),
                wall_clock,
            ),
            traffic=TrafficMetrics(
                max_series=config.metrics_max_series,
                drop_labels=config.metrics_drop_labels,
                now=trio.current_time,
            ),
            resolver=OnDemandResolver(ipv6=config.ipv6_enabled, random=random, bounds=bounds.dns),
            random=random,
            wall_clock=wall_clock,
            budget=DescriptorBudget.current(),
            hangups=Hangups(bounds.connection.hangup_interval),
            pipes=PipePool(),
            history=History(config.connection_history, random, bounds.history),
            demands=Demands(self.store, send, bounds.connection.demand_timeout)
            if config.xds_on_demand
            else None,
            bounds=bounds,
        )

    async def run(self, inbox: trio.abc.ReceiveChannel[ToDataPlane]) -> None:
        """Process messages until the channel closes or a drain is complete.

        A task of its own applies the deltas in order and in slices, so a large one delays neither traffic nor
        a certificate. During a drain everything continues, but no pod is started. When it returns, all pods
        have stopped.
        """
        ending = trio.Event()
        if self._config.tls_accelerator and (why := unavailable()) is not None:
            log.info(f"TLS reads and writes are Python's: {why}")
        with self._shared.pipes, self._shared.hangups as hangups:
            async with trio.open_nursery() as nursery:
                pods = Pods(self._shared, self._send, nursery)
                nursery.start_soon(pods.recheck_policies, name="policy re-check")
                nursery.start_soon(self._watch_loop, name="loop watch")
                nursery.start_soon(hangups.run, name="hang-ups")
                nursery.start_soon(self._take, inbox, pods, nursery, ending, name="messages")
                await ending.wait()
                await pods.wait_empty()
                self._send(Drained())
                nursery.cancel_scope.cancel()

    async def _watch_loop(self) -> None:
        """Until cancelled: measure how late this task is woken, which is how long others block the loop."""
        while True:
            due = trio.current_time() + self._bounds.log.loop_watch
            await trio.sleep_until(due)
            self._shared.traffic.duration(families.LOOP_LAG, trio.current_time() - due)

    async def _take(
        self,
        inbox: trio.abc.ReceiveChannel[ToDataPlane],
        pods: Pods,
        nursery: trio.Nursery,
        ending: trio.Event,
    ) -> None:
        """Process messages until the channel closes. ``ending`` is set then, or when a drain begins."""
        deltas, delta_inbox = trio.open_memory_channel[MeshDelta](1000)
        nursery.start_soon(self._apply_deltas, delta_inbox, pods, name="mesh deltas")
        async with inbox, deltas:
            async for message in inbox:
                if isinstance(message, MeshDelta):
                    await deltas.send(message)
                else:
                    self._handle(message, pods, nursery)
                    if isinstance(message, Drain):
                        ending.set()
                del message  # perhaps the whole mesh, and the next message may take long
        # The control process has ended, so nothing would ever end the pods.
        pods.stop()
        ending.set()

    def _handle(self, message: ToDataPlane, pods: Pods, nursery: trio.Nursery) -> None:
        certificates = self._shared.certificates
        match message:
            case CertificateIssued():
                certificates.issued(message.certificate)
            case CertificateFailed():
                certificates.failed(message.identity, message.error)
            case CertificateForgotten():
                certificates.forgotten(message.identity)
            case RevocationsChanged():
                revocations = Revocations.parse(message.crls)
                certificates.revocations(revocations)
                pods.revocations_changed(revocations)
            case PodAdded():
                pods.add(message)
            case PodRemoved():
                pods.remove(message.uid)
            case Drain():
                pods.drain(message.deadline)
            case DemandAnswered():
                if self._shared.demands is not None:
                    self._shared.demands.answered(message.key)
            case LogLevels():
                set_filter(message.filter)
                if message.sampling != str(current_sampling()):
                    set_sampling(Sampling.parse(message.sampling))
            case ReportWanted():
                nursery.start_soon(self._report, message.number, pods, name="report")
            case Asked():
                nursery.start_soon(self._answer, message, pods, name=f"answer to {message.topic.value}")
            case DumpWanted() | DumpTaken():
                self._dumps.handle(message, nursery)

    # -- the mesh ----------------------------------------------------------------------------------------

    async def _apply_deltas(self, inbox: trio.abc.ReceiveChannel[MeshDelta], pods: Pods) -> None:
        async with inbox:
            try:
                while True:
                    # Nothing of a delta, which may be the whole mesh, is kept while the next one is waited
                    # for.
                    self._send(await self._apply(await inbox.receive(), pods))
            except trio.EndOfChannel:
                return

    async def _apply(self, delta: MeshDelta, pods: Pods) -> DeltaApplied:
        """Apply a delta. Returns the answer."""
        application = self.store.begin(delta)
        while not application.step(APPLY_SLICE):
            # Twice, because setting up a connection takes about thirty steps, each of which waits for its
            # turn.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        for warning in application.warnings:
            log.warning(warning)
        self._changed(application, pods)
        rejected = tuple(Rejected(name, reason) for name, reason in application.rejected)
        return DeltaApplied(delta.number, rejected)

    def _changed(self, application: Application, pods: Pods) -> None:
        """Wake tasks that wait for the mesh, close what would be refused now, and request certificates."""
        self._shared.changed.unpark_all()
        for identity in application.wanted:
            self._send(CertificateWanted(identity, warmup=True))
        for removed in application.removed_workloads:
            if removed.forget:
                self._send(CertificateUnneeded(removed.identity))
        if application.delta.kind is ResourceKind.AUTHORIZATION:
            if application.policies_changed:
                pods.policy_changed()
        else:
            gone = {removed.uid for removed in application.removed_workloads}
            changed = application.changed_workloads
            pods.workloads_changed(changed | gone if gone else changed)

    async def _report(self, number: int, pods: Pods) -> None:
        """Collect the counters in slices, so that a scrape of many series does not delay connections."""
        traffic = self._shared.traffic
        traffic.expire(self._config.metrics_series_ttl)
        samples: list[Sample] = []
        for part in traffic.sample_slices():
            samples += part
            await trio.lowlevel.checkpoint()
        samples += pods.drain_samples()
        samples += await pods.stall_samples()
        samples.append(Sample(families.LENT_WINDOW.name, (), self._shared.window_budget.lent))
        if self._own_process:
            samples += process_samples()
        self._send(Report(number, tuple(samples), await pods.connections()))

    async def _answer(self, asked: Asked, pods: Pods) -> None:
        """Send the items of an answer a few at a time, so that a long one does not delay other tasks."""
        encode = msgspec.json.encode
        items: list[bytes] = []
        error = ""
        try:
            here = AnswerContext(self._config, self._shared, pods.all(), self._ages)
            for item in answer(asked, here):
                if item is not None:
                    items.append(encode(item))
                if item is None or len(items) == DUMP_SLICE:
                    self._send(DumpChunk(asked.number, tuple(items), last=False))
                    items = []
                    await trio.lowlevel.checkpoint()
        except Exception as failure:
            # A failing question must not harm traffic.
            log.error("a question could not be answered", topic=asked.topic.value, exc_info=failure)
            error = str(failure) or type(failure).__name__
        self._send(DumpChunk(asked.number, tuple(items), last=True, error=error))
