"""What the tasks of one pod share with each other, and what all pods of a data plane share."""

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
from ztunnel.observe import families
from ztunnel.observe.access_log import AccessLog
from ztunnel.observe.logging import get_logger
from ztunnel.observe.traffic import Histogram, TrafficMetrics
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.connection_table import ConnectionTable
from ztunnel.proxy.demands import Demands
from ztunnel.proxy.handshakes import Handshakes
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
        """Returns all addresses, in no order. Raises NameResolutionError when the lookup fails."""
        ...


class Names(Protocol):
    """The pod's DNS, asked in-process (SOCKS5 with a hostname)."""

    async def first_address(self, name: str, version: int) -> IPAddress | None:
        """Returns the first address of IP version 4 or 6 that the name has, None when it has none."""
        ...


@dataclass(slots=True, eq=False)
class Shared:
    """What all pods of a data plane share.

    demands: on-demand xDS, None when it is off.
    history: the last connections that have ended.
    handshakes: those of clients at 15008.
    bounds: timeouts and limits.
    changed: its waiting tasks are woken whenever a change of the mesh was applied.
    wall_clock: returns seconds since the epoch.
    keepalive: of dialled sockets, and of those accepted on 15001 and 15006; None if it is off.
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
    keepalive: Keepalive | None = field(init=False)
    window_budget: WindowBudget = field(init=False)
    handshakes: Handshakes = field(init=False)
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def __post_init__(self) -> None:
        self.window_budget = WindowBudget(self.bounds.tunnel.lent_bytes)
        self.keepalive = configured_keepalive(self.config)
        self.handshakes = Handshakes(self.bounds.connection, self.traffic.handshake_delayed)

    @property
    def hbone_settings(self) -> HboneSettings:
        """The HTTP/2 settings of our end of every tunnel."""
        config = self.config
        return HboneSettings(
            stream_window=config.window_size,
            connection_window=config.connection_window_size,
            frame_size=config.frame_size,
        )


@dataclass(slots=True, eq=False)
class PodContext:
    """One pod: its names, the factory of its sockets, and its open connections.

    sockets: makes the sockets that dial, in the pod's namespace.
    listening: makes the sockets that listen; None uses ``sockets``. These may use the reserve of descriptors,
        because traffic of other pods must not prevent a pod from starting.
    sources: lets the pod's applications see clients' addresses. `PodProxy.run` closes it.
    cut_because: why all connections of the pod are cancelled; set before that, for their log lines.
    inbound_only: this is ztunnel's own pod in shared mode. It has only the HBONE port, with ordinary sockets.
        The client's address is never shown to the application, because the application is ztunnel itself.
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
    first_byte_in: Histogram = field(init=False)
    first_byte_out: Histogram = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"{self.info.namespace}/{self.info.name}"
        self.access_log = AccessLog(self.name)
        self.first_byte_in = self.shared.traffic.histogram(families.FIRST_BYTE, "destination")
        self.first_byte_out = self.shared.traffic.histogram(families.FIRST_BYTE, "source")
        self.sources = ClientSources(self.sockets, self.shared.random, self.shared.bounds.connection)

    @property
    def mark(self) -> int | None:
        """The SO_MARK of the pod's sockets that dial; None for no mark."""
        return None if self.inbound_only else self.shared.config.packet_mark

    def known_workload(self) -> Workload | None:
        """Returns the pod's own workload, None if the control plane has not sent it yet."""
        info = self.info
        return self.shared.store.local_workload(info.name, info.namespace, info.service_account)

    async def local_workload(self) -> Workload:
        """Returns the pod's own workload as the store has it now. Waits for it if it has not come yet.

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
