"""What the control side and the data plane say to each other: plain values, nothing shared.

In one process they go through memory channels; to a worker process they go over a socketpair, encoded as
MessagePack by msgspec (descriptors beside them as SCM_RIGHTS). A data plane that has been given these
messages needs nothing else of the control side.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias

import msgspec

from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages: a value, tagged with its name on the wire."""


class ResourceKind(Enum):
    """The two xDS types that make up the mesh."""

    ADDRESS = "address"
    AUTHORIZATION = "authorization"


class Origin(Enum):
    """Where a resource came from: defaults for empty fields apply to xDS only."""

    XDS = "xds"
    LOCAL = "local"


class Resource(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One resource as it came: its name, and its bytes (istio.workload.Address, or a policy)."""

    name: str
    body: bytes


class MeshDelta(Message, frozen=True):
    """A change of the mesh, to be applied in order: resources first, then removals by name.

    ``number`` comes back in `DeltaApplied`. ``resources`` may be made only as they are taken; who applies
    them takes them one by one, and lets go of the delta afterwards.
    """

    number: int
    kind: ResourceKind
    resources: Sequence[Resource] = ()
    removed: tuple[str, ...] = ()
    origin: Origin = Origin.XDS


class CertificateIssued(Message, frozen=True):
    """The certificate to use from now on for an identity."""

    certificate: Certificate


class CertificateFailed(Message, frozen=True):
    """There is no usable certificate for an identity; whoever waits for it is told why."""

    identity: Identity
    error: str


class CertificateForgotten(Message, frozen=True):
    """No workload of this node has the identity any more; what is kept of it is dropped."""

    identity: Identity


class RevocationsChanged(Message, frozen=True):
    """The revocation lists in force (PEM), empty for none."""

    crls: tuple[bytes, ...]


class PodInfo(msgspec.Struct, frozen=True):
    """The names of a pod as the CNI knows them."""

    name: str
    namespace: str
    service_account: str


class SharedSocket(msgspec.Struct, frozen=True, array_like=True):
    """A listening socket of a pod that the control side has opened and keeps; several processes accept.

    role: which of the pod's. address: ``ip:port``. descriptor: travels beside, and is the receiver's.
    transparent: IP_TRANSPARENT is set on it.
    """

    role: str
    address: str
    descriptor: int
    transparent: bool


class PodAdded(Message, frozen=True):
    """Open a pod's listeners. The descriptor of its network namespace travels beside; None means our own.

    listeners: already open; None has them opened by who gets this.
    inbound_only: just the HBONE port with ordinary sockets, for ztunnel's own pod in shared mode.
    attempt: comes back in `PodStarted`, `PodFailed` and `PodStopped`, since a uid may be started anew while
        what was started before is still ending.
    """

    uid: str
    info: PodInfo
    netns: int | None = None
    inbound_only: bool = False
    attempt: int = 0
    listeners: tuple[SharedSocket, ...] | None = None

    def descriptors(self) -> list[int]:
        """Returns all that travel beside it, in the order in which they travel."""
        first = [] if self.netns is None else [self.netns]
        return first + [one.descriptor for one in self.listeners or ()]


class PodRemoved(Message, frozen=True):
    """Close a pod's listeners and connections at once."""

    uid: str


class Drain(Message, frozen=True):
    """Stop accepting, let connections end by themselves for ``deadline`` seconds, then cut them."""

    deadline: float


class DemandAnswered(Message, frozen=True):
    """The control plane has answered a `ResourceDemanded`, or nobody waits for it to any longer."""

    key: str


class LogLevels(Message, frozen=True):
    """The log filter in force, and which access log lines are written (`ztunnel.observe.sampling`)."""

    filter: str
    sampling: str = ""


class DumpSection(Enum):
    """The parts of the admin dump that only a data plane knows."""

    WORKLOADS = "workloads"
    SERVICES = "services"
    POLICIES = "policies"
    STAGED_SERVICES = "stagedServices"


class DumpWanted(Message, frozen=True):
    """Ask for a part of the dump, in `DumpChunk` messages with the same number.

    The first few come at once, each further one for a `DumpTaken`.
    """

    number: int
    section: DumpSection


class DumpTaken(Message, frozen=True):
    """A piece of a dump was taken, so that another may come; without ``more``, no other is wanted."""

    number: int
    more: bool = True


class Topic(Enum):
    """What a person may ask of a data plane; see `ztunnel.dataplane.answers` for parameters and items."""

    EXPLAIN = "explain"
    CONNECTIONS = "connections"
    TASKS = "tasks"
    SOCKETS = "sockets"
    POOL = "pool"


class Asked(Message, frozen=True):
    """A question of a person, answered in `DumpChunk` messages with the same number.

    Where there are several data planes each is asked, and the items are put together.
    """

    number: int
    topic: Topic
    parameters: dict[str, str] = {}


class ReportWanted(Message, frozen=True):
    """Ask for a `Report` with the same number."""

    number: int


class Rejected(msgspec.Struct, frozen=True, array_like=True):
    """A resource that was not taken, and why."""

    name: str
    reason: str


class AtWork(Message, frozen=True):
    """The first word of a data plane in a process of its own: which process that is."""

    pid: int


class DeltaApplied(Message, frozen=True):
    """All of a `MeshDelta` is in force, but for what was rejected."""

    number: int
    rejected: tuple[Rejected, ...] = ()


class CertificateWanted(Message, frozen=True):
    """The certificate of an identity is needed: by a connection that waits, or soon (``warmup``)."""

    identity: Identity
    warmup: bool = False


class CertificateUnneeded(Message, frozen=True):
    """The last workload of this node with an identity has gone from the mesh."""

    identity: Identity


class DumpChunk(Message, frozen=True):
    """A part of the answer to `DumpWanted` or `Asked`, in JSON: items, or ``[key, value]`` of an object.

    error: why a question could not be answered, in the last part.
    """

    number: int
    items: tuple[bytes, ...]
    last: bool
    error: str = ""


class ResourceDemanded(Message, frozen=True):
    """A lookup found nothing and on-demand xDS is on."""

    key: str


class PodStarted(Message, frozen=True):
    """All of a pod's sockets are bound."""

    uid: str
    attempt: int = 0


class PodFailed(Message, frozen=True):
    """A pod's sockets could not be bound; nothing of it is left."""

    uid: str
    error: str
    attempt: int = 0


class PodStopped(Message, frozen=True):
    """A pod's listeners and connections are closed."""

    uid: str
    attempt: int = 0


class InboundConnection(msgspec.Struct, frozen=True):
    """A tracked incoming connection, as the admin dump shows it."""

    src: str
    original_dst: str | None
    actual_dst: str
    protocol: str


class OutboundConnection(msgspec.Struct, frozen=True):
    """A tracked outgoing connection, as the admin dump shows it."""

    src: str
    original_dst: str
    actual_dst: str
    protocol: str


class PodConnections(msgspec.Struct, frozen=True):
    """The tracked connections of one pod."""

    uid: str
    inbound: tuple[InboundConnection, ...]
    outbound: tuple[OutboundConnection, ...]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The value of one series: family name, label values in the family's order, value since the start."""

    family: str
    labels: tuple[str, ...]
    value: float


class Report(Message, frozen=True):
    """What a data plane has counted and holds open."""

    number: int
    samples: tuple[Sample, ...]
    pods: tuple[PodConnections, ...]


class Drained(Message, frozen=True):
    """The drain is over; nothing is open any more."""


ToDataPlane: TypeAlias = (
    MeshDelta
    | CertificateIssued
    | CertificateFailed
    | CertificateForgotten
    | RevocationsChanged
    | PodAdded
    | PodRemoved
    | Drain
    | DemandAnswered
    | LogLevels
    | ReportWanted
    | DumpWanted
    | DumpTaken
    | Asked
)
FromDataPlane: TypeAlias = (
    AtWork
    | DeltaApplied
    | CertificateWanted
    | CertificateUnneeded
    | ResourceDemanded
    | PodStarted
    | PodFailed
    | PodStopped
    | Report
    | DumpChunk
    | Drained
)
