"""What the tasks of one pod share: with all pods of the process, and among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import trio

from ztunnel.bounds import DEFAULTS, Bounds
from ztunnel.config.model import Config
from ztunnel.hbone import HboneSettings, WindowBudget
from ztunnel.messages import PodInfo
from ztunnel.model.address import IPAddress
from ztunnel.model.workload import Workload
from ztunnel.observe.access_log import AccessLog
from ztunnel.observe.logging import get_logger
from ztunnel.observe.traffic import TrafficMetrics
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.connection_table import ConnectionTable
from ztunnel.proxy.demands import Demands
from ztunnel.proxy.history import History
from ztunnel.proxy.pod_listeners import configured_keepalive
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.hangup import Hangups
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.source import ClientSources
from ztunnel.sockets.splice import PipePool
from ztunnel.state.store import MeshStore
from ztunnel.tunnel.failures import ConnectionFailure, UnknownWorkloadError

log = get_logger("state")


class HostnameResolver(Protocol):
    """Resolves the hostnames of workloads that have no address (on-demand DNS)."""

    async def resolve(self, hostname: str) -> Sequence[IPAddress]:
        """All addresses, in no order. Raises NameResolutionError when no answer could be had."""
        ...


class Names(Protocol):
    """The pod's DNS, asked in-process (SOCKS5 with a hostname)."""

    async def first_address(self, name: str, version: int) -> IPAddress | None:
        """The first address of IP version 4 or 6 that the name has, None when it has none."""
        ...


@dataclass(slots=True, eq=False)
class Shared:
    """What all pods of a data plane share.

    demands: on-demand xDS, None when it is off.
    history: the connections that were.
    bounds: timeouts and limits.
    changed: woken whenever something of the mesh was applied.
    wall_clock: seconds since the epoch.
    """

    config: Config
    store: MeshStore
    certificates: CertificateStore
    traffic: TrafficMetrics
    resolver: HostnameResolver
    random: Random
    wall_clock: Callable[[], float]
    budget: DescriptorBudget
    hangups: Hangups
    pipes: PipePool
    history: History
    demands: Demands | None = None
    bounds: Bounds = DEFAULTS
    window_budget: WindowBudget = field(init=False)
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def __post_init__(self) -> None:
        self.window_budget = WindowBudget(self.bounds.tunnel.lent_bytes)

    @property
    def keepalive(self) -> Keepalive | None:
        """Keepalive of dialled sockets, and of those accepted on 15001 and 15006."""
        return configured_keepalive(self.config)

    @property
    def hbone_settings(self) -> HboneSettings:
        """What our ends of tunnels announce."""
        config = self.config
        return HboneSettings(
            stream_window=config.window_size,
            connection_window=config.connection_window_size,
            frame_size=config.frame_size,
        )


@dataclass(slots=True, eq=False)
class PodContext:
    """One pod: its names, where its sockets are made, and what it has open.

    listening: makes the sockets that listen, which may use the reserve of descriptors: other pods' traffic
        must not keep a pod from starting. None is the same as ``sockets``.
    sources: shows clients' addresses to the pod's applications; closed by who runs the pod.
    cut_because: set before its connections are cancelled, so that each can say why it ended.
    inbound_only: ztunnel's own pod in shared mode: only the HBONE port, with ordinary sockets, and the source
        of a connection is never shown to the application, which is ourselves.
    """

    shared: Shared
    uid: str
    info: PodInfo
    sockets: SocketFactory
    inbound_only: bool = False
    connections: ConnectionTable = field(default_factory=ConnectionTable)
    cut_because: ConnectionFailure | None = None
    listening: SocketFactory | None = None
    names: Names | None = None
    name: str = field(init=False)
    sources: ClientSources = field(init=False)
    access_log: AccessLog = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"{self.info.namespace}/{self.info.name}"
        self.access_log = AccessLog(self.name)
        self.sources = ClientSources(self.sockets, self.shared.random, self.shared.bounds.connection)

    @property
    def mark(self) -> int | None:
        """SO_MARK of the pod's sockets that dial."""
        return None if self.inbound_only else self.shared.config.packet_mark

    def known_workload(self) -> Workload | None:
        """The pod's own workload, if the control plane has told of it by now."""
        info = self.info
        return self.shared.store.local_workload(info.name, info.namespace, info.service_account)

    async def local_workload(self) -> Workload:
        """The pod's own workload, as the control plane describes it now; waits a little for it to come.

        Raises UnknownWorkloadError when it has not come within ``workload_wait`` seconds.
        """
        found = self.known_workload()
        if found is not None:
            return found
        info, shared = self.info, self.shared
        with trio.move_on_after(shared.config.workload_wait):
            while True:
                await shared.changed.park()
                found = self.known_workload()
                if found is not None:
                    return found
        log.warning(
            f"timed out waiting for workload '{info.service_account}.{info.namespace} ({info.name})' from xds"
        )
        raise UnknownWorkloadError(info.name, info.namespace, info.service_account)
