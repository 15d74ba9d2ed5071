"""The control side of one ztunnel: it provides the data plane with everything and answers for it.

What comes from outside (the local file, the CA; the control plane and the CNI agent in their modes) is sent
to the data plane as messages. Certificates that the data plane requests are fetched. What the data plane
knows (connections, the mesh) is asked of it when somebody looks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import msgspec
import trio

from ztunnel.admin.http import Request, Response
from ztunnel.admin.readiness import Readiness
from ztunnel.bounds import DEFAULTS, Bounds
from ztunnel.certs.authority import CertificateAuthority
from ztunnel.certs.certificate_dump import certificate_states, dump_certificates
from ztunnel.certs.crl import watch_crl
from ztunnel.certs.manager import Change, SecretManager
from ztunnel.certs.rotation import Priority
from ztunnel.config.model import Config, ProxyMode
from ztunnel.config.spelling import nearest
from ztunnel.control.link import DataPlanes
from ztunnel.control.merge import merged_connections
from ztunnel.control.mesh_source import MeshSource
from ztunnel.control.overview import count_into, overview
from ztunnel.control.pod_starter import PodStarter
from ztunnel.errors import ZtunnelError
from ztunnel.inpod.zds_client import ZdsClient
from ztunnel.inpod.zds_session import PodCounts
from ztunnel.messages import (
    CertificateUnneeded,
    CertificateWanted,
    DemandAnswered,
    DumpSection,
    FromDataPlane,
    InboundConnection,
    LogLevels,
    OutboundConnection,
    PodInfo,
    ResourceDemanded,
    RevocationsChanged,
    Sample,
    ToDataPlane,
    Topic,
)
from ztunnel.observe import families
from ztunnel.observe.access_log import current_sampling
from ztunnel.observe.filter import Filter
from ztunnel.observe.logging import get_logger
from ztunnel.observe.metrics import ControlMetrics, ReportedMetrics, by_family
from ztunnel.observe.process import process_samples
from ztunnel.slices import batches
from ztunnel.xds.local_file import static_config
from ztunnel.xds.xds_client import XdsClient

_COUNTED = 5000
"""Samples that are added between two checkpoints."""

_DECODED = 50
"""Items of an answer that are decoded between two checkpoints."""

log = get_logger("app")

STATE_MANAGER = "state manager"
PROXY = "proxy"
DNS_PROXY = "dns proxy"
WORKLOAD_MANAGER = "workload proxy manager"

MakePlanes: TypeAlias = Callable[[Callable[[FromDataPlane], None], Callable[[int], None]], DataPlanes]


class ProxyEndedError(ZtunnelError):
    """The only proxy of a dedicated ztunnel has ended by itself: a bug, whose traceback is in the log."""

    code = "ZT-INT-005"

    def __init__(self) -> None:
        super().__init__("The proxy has ended by itself; the log says why.")


class Control:
    """Owns the control side's tasks. `run` is its life; the other methods are for the servers.

    authority: issues certificates.
    planes: makes the `DataPlanes`. Its arguments: a function for their messages, and one for the number of a
        data plane that has ended.
    bounds: timeouts and limits.
    """

    def __init__(
        self,
        config: Config,
        authority: CertificateAuthority,
        readiness: Readiness,
        planes: MakePlanes,
        *,
        random: Random,
        wall_clock: Callable[[], float],
        bounds: Bounds = DEFAULTS,
    ) -> None:
        self._config = config
        self._bounds = bounds
        self._readiness = readiness
        self._wall_clock = wall_clock
        self._demanded, self._demands = trio.open_memory_channel[str](float("inf"))
        self._outgoing, self._to_send = trio.open_memory_channel[ToDataPlane](float("inf"))
        self._reported = ReportedMetrics()
        self.link = planes(self._on_message, self._reported.restarted)
        self.pods = PodStarter(self.link, self._pod_ended, bounds.control)
        self.certificates = SecretManager(
            authority, clock=wall_clock, random=random.random, publish=self._publish, bounds=bounds.control
        )
        self.zds: ZdsClient | None = None
        self._enrolling = trio.CancelScope()
        if config.proxy_mode is ProxyMode.SHARED:
            self.zds = ZdsClient(
                config.inpod_uds,
                self.pods,
                on_ready=self._zds_ready,
                randomness=random,
                bounds=bounds.control,
            )
            readiness.register(WORKLOAD_MANAGER)
        self._metrics = ControlMetrics(config.istio_version, shared=config.proxy_mode is ProxyMode.SHARED)
        self.mesh = MeshSource(config, self.link.apply, self._metrics, bounds.control)
        self._counted = PodCounts(active=0, pending=0, started=0, stopped=0)
        self._draining = False
        self._proxy_ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Calls ``started`` when the local file is applied.

        Raises what prevents a start: a broken local file, or a port of a dedicated proxy that is in use.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.link.run, name="from data plane")
            nursery.start_soon(self._pass_on, name="to data plane")
            await nursery.start(self.certificates.run, name="certificates")
            if self._config.crl_path is not None:
                path = Path(self._config.crl_path)
                await nursery.start(
                    watch_crl, path, self._publish, self._bounds.control, name="revocation lists"
                )
            mesh = self.mesh
            if mesh.local is not None:
                await mesh.local.load()
                self._warn_of_missing_workload()
                nursery.start_soon(mesh.local.watch, name="local xds file")
            task_status.started()
            if mesh.xds is not None:
                nursery.start_soon(mesh.xds.run, name="xds stream")
                nursery.start_soon(self._answer_demands, mesh.xds, name="on-demand xds")
                await mesh.xds.ready.wait()
            self._readiness.complete(STATE_MANAGER)
            if self.zds is None:
                await self._start_dedicated()
            else:
                await self._start_own_pod()
                nursery.start_soon(self._enrol, self.zds, name="cni agent")
            self._readiness.complete(PROXY)
            self._readiness.complete(DNS_PROXY)
            await self._proxy_ended.wait()
            raise ProxyEndedError

    async def ready(self, request: Request) -> Response:
        """Returns the readiness page: what the first sync waits for, and what is wrong later."""
        if self.mesh.waiting_for is not None:
            self._readiness.failed(STATE_MANAGER, self.mesh.waiting_for)
        self._readiness.remark("control plane", self.mesh.trouble)
        failing = [one for one in self.certificates.expiries() if one.renewal_failing is not None]
        trouble = f"{len(failing)} cannot be renewed, {failing[0].renewal_failing}" if failing else None
        self._readiness.remark("certificates", trouble)
        return await self._readiness.handle(request)

    async def drain(self) -> None:
        """Drain the data plane. Returns when nothing is open any more.

        No new pod is served: the agent will give it to our successor. The mesh, certificates and the servers'
        questions continue, because connections do.
        """
        self._draining = True
        self._enrolling.cancel()
        await self.link.drain(self._config.self_termination_deadline)

    async def _enrol(self, zds: ZdsClient) -> None:
        with self._enrolling:
            await zds.run()

    async def _start_dedicated(self) -> None:
        info = self._config.proxy_workload_info
        assert info is not None
        await self.pods.start("dedicated", PodInfo(*info), None)

    def _warn_of_missing_workload(self) -> None:
        """Warn if the local file is our only source and does not have the workload that we serve."""
        info, local = self._config.proxy_workload_info, self.mesh.local
        if info is None or local is None or local.config is None or self.mesh.xds is not None:
            return
        known = {
            f"{one.namespace}/{one.name}/{one.service_account}": one
            for one in (entry.workload for entry in local.config.workloads)
        }
        wanted = f"{info.namespace}/{info.name}/{info.service_account}"
        found = known.get(wanted)
        node = self._config.local_node
        if found is None:
            meant = nearest(wanted, known, 0.6)
            hint = f"did you mean {meant}?" if meant else "it has none that is like it."
            log.warning(f"PROXY_WORKLOAD_INFO={wanted}: the local file has no such workload; {hint}")
        elif node is not None and found.node != node:
            log.warning(
                f"PROXY_WORKLOAD_INFO={wanted}: the local file has it on node {found.node!r}, "
                f"and NODE_NAME is {node!r}, so it is not ours"
            )

    async def _start_own_pod(self) -> None:
        """In shared mode: open the HBONE port for our own pod, so that captured clients reach its metrics."""
        info = self._config.ztunnel_workload
        if info is not None:
            await self.pods.start("ztunnel", PodInfo(*info), None, inbound_only=True)

    def _pod_ended(self, uid: str) -> None:
        if self.zds is not None:
            self.zds.pod_ended(uid)
        elif not self._draining:
            self._proxy_ended.set()

    def _zds_ready(self, ready: bool) -> None:  # noqa: FBT001  # the callback's one value
        if ready:
            self._readiness.complete(WORKLOAD_MANAGER)
        else:
            self._readiness.uncomplete(WORKLOAD_MANAGER)

    # -- messages ----------------------------------------------------------------------------------------

    def _on_message(self, message: FromDataPlane) -> None:
        match message:
            case CertificateWanted():
                priority = Priority.WARMUP if message.warmup else Priority.REAL_TIME
                answer = self.certificates.want(message.identity, priority)
                if answer is not None:
                    self._publish(answer)
            case ResourceDemanded():
                self._demanded.send_nowait(message.key)
            case CertificateUnneeded():
                self.certificates.forget(message.identity)
            case _:
                self.pods.on_message(message)

    def _publish(self, change: Change | RevocationsChanged) -> None:
        self._outgoing.send_nowait(change)

    async def _answer_demands(self, xds: XdsClient) -> None:
        """Ask the control plane for the keys that connections wait for, many at a time."""

        async def ask(key: str) -> None:
            await xds.demand(key)
            self._outgoing.send_nowait(DemandAnswered(key))

        async with self._demands, trio.open_nursery() as nursery:
            async for key in self._demands:
                nursery.start_soon(ask, key, name=f"demand {key}")

    async def _pass_on(self) -> None:
        """Send changes of certificates. They come where nothing may wait, so they are queued here."""
        async with self._to_send:
            async for message in self._to_send:
                await self.link.send(message)

    # -- for the servers ---------------------------------------------------------------------------------

    async def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Returns all present values by sample name and labels."""
        reports = await self.link.reports()
        for number, report in reports.items():
            self._reported.merge(number, report.samples)
        if self.zds is not None:
            self._count_pods(self.zds.counts())
        totals = self._reported.totals()
        workers = Sample(families.NUM_WORKERS.name, (), len(reports))
        own = by_family(self._metrics.samples(), process_samples(), [workers], self._certificate_samples())
        if families.MAX_FDS.name in totals:  # a limit must not be summed
            del own[families.MAX_FDS.name]
        for family, values in own.items():
            series = totals.setdefault(family, {})
            for labels, value in values.items():
                series[labels] = series.get(labels, 0) + value
        return totals

    def _certificate_samples(self) -> list[Sample]:
        """Returns when each certificate expires, and how often its renewal has failed.

        Limited in number, like traffic metrics.
        """
        samples = []
        for rotation in self.certificates.rotations()[: self._config.metrics_max_series]:
            labels = (str(rotation.identity),)
            if rotation.certificate is not None:
                end = rotation.certificate.not_after
                samples.append(Sample(families.CERTIFICATE_EXPIRY.name, labels, end))
            samples.append(Sample(families.CERTIFICATE_FAILURES.name, labels, rotation.failures))
        return samples

    def _count_pods(self, now: PodCounts) -> None:
        before, self._counted = self._counted, now
        metrics = self._metrics
        metrics.active_proxies.set(now.active)
        metrics.pending_proxies.set(now.pending)
        metrics.proxies_started.inc(now.started - before.started)
        metrics.proxies_stopped.inc(now.stopped - before.stopped)

    def dump(self, section: DumpSection) -> AsyncGenerator[tuple[msgspec.Raw, ...], None]:
        """Returns a section of the config dump from the data plane."""
        return self.link.dump(section)

    async def dump_certificates(self) -> AsyncIterator[list[Any]]:
        """Returns the certificates of the config dump."""
        yield list(dump_certificates(self.certificates.rotations(), self._wall_clock()))

    async def overview(self) -> dict[str, Any]:
        """Returns the overview of the node, for the front page."""
        reports = list((await self.link.reports()).values())
        pods = () if self.zds is None else self.zds.pods()
        expiries = self.certificates.expiries()
        counts: dict[str, float] = {}
        for report in reports:
            for samples in batches(report.samples, _COUNTED):
                count_into(counts, samples)
                await trio.lowlevel.checkpoint()
        return overview(self._config, self.mesh, expiries, pods, reports, counts, process_samples())

    def certificate_states(self) -> list[dict[str, Any]]:
        """Returns the state of each identity's certificate: expiry, issuer, and renewal."""
        return certificate_states(self.certificates.rotations(), self._wall_clock())

    async def workload_state(self) -> dict[str, Any] | None:
        """Returns ``workloadState`` of the config dump; it exists only in shared mode."""
        if self.zds is None:
            return None
        connections = merged_connections((await self.link.reports()).values())
        state: dict[str, Any] = {}
        for pod in self.zds.pods():
            info = pod.info
            shown: dict[str, Any] = {
                "info": {
                    "name": info.name,
                    "namespace": info.namespace,
                    "serviceAccount": info.service_account,
                },
                "state": pod.state.value,
            }
            held = connections.get(pod.uid)
            if held is not None:
                shown["connections"] = {
                    "inbound": [_camel(one) for one in held.inbound],
                    "outbound": [_camel(one) for one in held.outbound],
                }
            state[pod.uid] = shown
        return state

    async def static_config(self) -> dict[str, Any]:
        """Returns ``staticConfig`` of the config dump: the applied content of the local file."""
        return static_config(self.mesh.local.config if self.mesh.local is not None else None)

    async def ask(self, topic: Topic, parameters: Mapping[str, str]) -> list[Any]:
        """Returns the items of all data planes' answers to a person's question, as JSON values."""
        decoded = []
        for number, item in enumerate(await self.link.ask(topic, parameters), 1):
            decoded.append(msgspec.json.decode(item))
            if number % _DECODED == 0:
                await trio.lowlevel.checkpoint()
        return decoded

    def levels_changed(self, wanted: Filter) -> None:
        """The log filter has changed: tell the data planes."""
        self._outgoing.send_nowait(LogLevels(str(wanted), str(current_sampling())))


def _camel(connection: InboundConnection | OutboundConnection) -> dict[str, str | None]:
    return {
        "actualDst": connection.actual_dst,
        "originalDst": connection.original_dst,
        "protocol": connection.protocol,
        "src": connection.src,
    }
