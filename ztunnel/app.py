"""Starts, supervises, drains and stops a ztunnel: the outermost nursery.

The order of the start is in docs/protocol/operations.md#start-order: readiness first, so that anybody who
waits can see why; then the local file, whose errors are fatal; admin; the proxies; metrics. A signal, or a
POST to /quitquitquit, starts the only graceful shutdown: the servers and all listeners close at once,
connections continue until the deadline, and the process ends with status 0. An error that reaches this module
ends it with status 1.
"""

from __future__ import annotations

import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import SystemRandom
from typing import Any

import trio

from ztunnel.admin.config_dump import AdminProviders
from ztunnel.admin.control_sockets import control_ports
from ztunnel.admin.inspection import Inspection
from ztunnel.admin.levels import LogLevelControl
from ztunnel.admin.metrics_page import MetricsPage
from ztunnel.admin.pages import Admin
from ztunnel.admin.readiness import Readiness
from ztunnel.admin.servers import listener, serve
from ztunnel.bounds import DEFAULTS, Bounds, ControlBounds
from ztunnel.certs.authority import CertificateAuthority
from ztunnel.certs.ca_client import CaClient
from ztunnel.certs.fake_ca import FakeCa
from ztunnel.certs.shared_root import load_root
from ztunnel.config.config_view import config_view, config_yaml
from ztunnel.config.model import Config, ProxyMode
from ztunnel.control.control import DNS_PROXY, PROXY, STATE_MANAGER, Control, MakePlanes
from ztunnel.control.link import DataPlaneLink
from ztunnel.control.worker_handle import Forks
from ztunnel.control.workers import Workers
from ztunnel.dataplane.data_plane import DataPlane
from ztunnel.errors import ZtunnelError
from ztunnel.loop.watchdog import Watchdog
from ztunnel.messages import DumpSection, FromDataPlane, ToDataPlane
from ztunnel.netns.privileges import verify_privileges
from ztunnel.observe.labels import unknown_labels
from ztunnel.observe.logging import (
    get_logger,
    run_log_writer,
    startup_filter,
    unknown_scopes,
    warn_regardless,
)
from ztunnel.observe.task_tree import TaskAges
from ztunnel.proxy.waits import WORDS
from ztunnel.sockets.descriptor_limit import raise_descriptor_limit
from ztunnel.system.memory import spare_collector, use_one_arena
from ztunnel.version import build_info

log = get_logger("app")
signal_log = get_logger("signal::imp")
ca_log = get_logger("identity::caclient")

FAKE_CA_WARNING = (
    "FAKE_CA=true: certificates come from a CA inside this process that gives anybody any identity. "
    "NOTHING IS SECURE. This is for demonstrations and tests only."
)


def run(config: Config, probed: Sequence[socket.socket], forks: Forks | None = None) -> int:
    """Run a ztunnel until it is told to stop. Returns the exit status.

    probed: the readiness server's sockets, which are listening already; they are closed at the end.
    forks: starts the worker processes; None runs everything in this process.

    Raises ZtunnelError when it cannot start; its text is to be printed.
    """
    use_one_arena()
    spare_collector()
    try:
        with Watchdog(DEFAULTS.control.loop_hung) as watchdog:
            trio.run(_main, config, probed, forks, watchdog)
    except BaseExceptionGroup as group:
        raise _first_cause(group) from group
    return 0


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the error to show to a person: one of our own if there is one, else the first."""
    ours = group.subgroup(ZtunnelError)
    cause: BaseException = group if ours is None else ours
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


async def _main(
    config: Config, probed: Sequence[socket.socket], forks: Forks | None, watchdog: Watchdog
) -> None:
    ages = TaskAges()
    trio.lowlevel.add_instrument(ages)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run, name="watchdog")
        await nursery.start(run_log_writer, name="log writer")
        await _run(config, probed, forks, ages)
        nursery.cancel_scope.cancel()


async def _run(config: Config, probed: Sequence[socket.socket], forks: Forks | None, ages: TaskAges) -> None:
    log.info(f"version: {build_info(config.istio_version)}")
    _raise_limits()
    for warning in (*config.warnings, *unknown_labels(config.metrics_drop_labels)):
        log.warning(warning)
    for warning in unknown_scopes(startup_filter()):
        warn_regardless(warning)
    log.info(f"running with config: {config_yaml(config)}")

    if config.proxy_mode is ProxyMode.SHARED:
        await verify_privileges(config.packet_mark)
    stop = trio.Event()
    bounds = Bounds()
    readiness = Readiness(hold=bounds.admin.probe_hold, start=bounds.admin.probe_start)
    readiness.register(STATE_MANAGER)
    if config.proxy:
        readiness.register(PROXY)
    if config.dns_proxy:
        readiness.register(DNS_PROXY)
    random = SystemRandom()
    plane: DataPlane | None = None
    to_plane, plane_inbox = trio.open_memory_channel[ToDataPlane](64)
    if forks is None:
        from_plane, control_inbox = trio.open_memory_channel[FromDataPlane](math.inf)
        plane = DataPlane(config, from_plane.send_nowait, random=random, wall_clock=time.time, bounds=bounds)

        def link(
            on_message: Callable[[FromDataPlane], None], _on_ended: Callable[[int], None]
        ) -> DataPlaneLink:
            return DataPlaneLink(to_plane, control_inbox, on_message, bounds.control)

        planes: MakePlanes = link
    else:
        planes = partial(Workers, config, forks, bounds=bounds.control)

    async with _authority(config, bounds.control) as authority, trio.open_nursery() as nursery:
        control = Control(
            config, authority, readiness, planes, random=random, wall_clock=time.time, bounds=bounds
        )
        inspection = Inspection(
            control.ask,
            control.certificate_states,
            ages,
            WORDS,
            control.overview,
            control_ports(config),
        )
        nursery.start_soon(partial(_watch_signals, stop, inspection.log_tasks), name="signals")
        server = partial(nursery.start, partial(serve, bounds=bounds.admin))
        listeners = [listener(sock) for sock in probed]
        await server("readiness", listeners, control.ready, stop, name="readiness server")
        if plane is not None:
            nursery.start_soon(plane.run, plane_inbox, name="data plane")
        levels = LogLevelControl(control.levels_changed, bounds.admin)
        nursery.start_soon(levels.run, name="log levels")
        admin = Admin(
            _providers(config, control),
            levels=levels,
            shutdown=stop.set,
            ages=ages,
            pages=inspection.pages(),
        )
        await server("admin", config.admin_addr, admin.handle, stop, name="admin server")
        page = MetricsPage(control.metrics)
        drained = trio.Event()
        # In shared mode a successor has a namespace of its own, so the metrics server can stay open to the
        # end of the drain.
        until = drained if config.proxy_mode is ProxyMode.SHARED else stop
        await server("stats", config.stats_addr, page.handle, until, name="metrics server")
        async with trio.open_nursery() as controlling:
            controlling.start_soon(control.run, name="control")
            await stop.wait()
            await control.drain()
            drained.set()
            controlling.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _authority(config: Config, bounds: ControlBounds) -> AsyncIterator[CertificateAuthority]:
    if config.fake_ca:
        ca_log.warn(FAKE_CA_WARNING)
        root = load_root(config.fake_ca_root) if config.fake_ca_root is not None else None
        yield FakeCa(time.time, lifetime=config.secret_ttl, root=root)
    else:
        async with CaClient(config, bounds=bounds) as client:
            yield client


def _raise_limits() -> None:
    try:
        log.info(str(raise_descriptor_limit()))
    except (OSError, ValueError) as error:
        log.warning(f"failed to set file descriptor limits: {error}")


async def _watch_signals(stop: trio.Event, log_tasks: Callable[[], Awaitable[None]]) -> None:
    """The first SIGTERM or SIGINT starts the drain; SIGUSR1 logs the tree of tasks.

    A second SIGINT ends the process at once.
    """
    interrupted = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGUSR1:
                await log_tasks()
            elif not stop.is_set():
                signal_log.info(f"received signal {name}, starting shutdown")
                interrupted = number == signal.SIGINT
                stop.set()
            elif interrupted and number == signal.SIGINT:
                signal_log.warn("received a second SIGINT, stopping at once")
                raise SystemExit(0)
            else:
                signal_log.info(f"received signal {name}, a shutdown is under way")


def _providers(config: Config, control: Control) -> AdminProviders:
    def section(which: DumpSection) -> Callable[[], AsyncIterator[Any]]:
        return partial(control.dump, which)

    return AdminProviders(
        config_view=config_view(config),
        version=build_info(config.istio_version).view(),
        certificates=control.dump_certificates,
        policies=section(DumpSection.POLICIES),
        services=section(DumpSection.SERVICES),
        staged=section(DumpSection.STAGED_SERVICES),
        workloads=section(DumpSection.WORKLOADS),
        workload_state=control.workload_state,
        static_config=control.static_config,
    )
