"""The messages between the control side and the data plane: plain values, nothing shared.

In one process they go through memory channels. To a worker process they go over a socketpair, encoded as
MessagePack by msgspec, with descriptors as SCM_RIGHTS. A data plane needs nothing else from the control side.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias

import msgspec

from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base class of all messages, tagged with the class name on the wire."""


class ResourceKind(Enum):
    """The two xDS types that make up the mesh."""

    ADDRESS = "address"
    AUTHORIZATION = "authorization"


class Origin(Enum):
    """The source of a resource. Defaults for empty fields apply to xDS only."""

    XDS = "xds"
    LOCAL = "local"


class Resource(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One resource as received: its name and its bytes (istio.workload.Address, or a policy)."""

    name: str
    body: bytes


class MeshDelta(Message, frozen=True):
    """A change of the mesh. It is applied in order: resources first, then removals by name.

    number: returned in `DeltaApplied`. resources: may be a lazy sequence; the receiver takes them one by one
        and releases the delta afterwards.
    """

    number: int
    kind: ResourceKind
    resources: Sequence[Resource] = ()
    removed: tuple[str, ...] = ()
    origin: Origin = Origin.XDS


class CertificateIssued(Message, frozen=True):
    """The certificate of an identity to use from now on."""

    certificate: Certificate


class CertificateFailed(Message, frozen=True):
    """There is no usable certificate for an identity; connections that wait for it get the reason."""

    identity: Identity
    error: str


class CertificateForgotten(Message, frozen=True):
    """No workload of this node has the identity any more; drop its certificate."""

    identity: Identity


class RevocationsChanged(Message, frozen=True):
    """The revocation lists in force (PEM), empty for none."""

    crls: tuple[bytes, ...]


class PodInfo(msgspec.Struct, frozen=True):
    """The names of a pod in the CNI."""

    name: str
    namespace: str
    service_account: str


class SharedSocket(msgspec.Struct, frozen=True, array_like=True):
    """A listening socket of a pod that the control side has opened and keeps.

    Several processes accept from it.

    role: its component. address: ``ip:port``. descriptor: sent beside the message; the receiver owns it.
        transparent: IP_TRANSPARENT is set on it.
    """

    role: str
    address: str
    descriptor: int
    transparent: bool


class PodAdded(Message, frozen=True):
    """Open a pod's listeners. The descriptor of its network namespace is sent beside it; None means our own.

    listeners: already open sockets; None if the receiver has to open them.
    inbound_only: only the HBONE port with ordinary sockets, for ztunnel's own pod in shared mode.
    attempt: returned in `PodStarted`, `PodFailed` and `PodStopped`, because a uid may be started again while
        its earlier start is still ending.
    """

    uid: str
    info: PodInfo
    netns: int | None = None
    inbound_only: bool = False
    attempt: int = 0
    listeners: tuple[SharedSocket, ...] | None = None

    def descriptors(self) -> list[int]:
        """Returns all descriptors that are sent beside it, in order."""
        first = [] if self.netns is None else [self.netns]
        return first + [one.descriptor for one in self.listeners or ()]


class PodRemoved(Message, frozen=True):
    """Close a pod's listeners and connections at once."""

    uid: str


class Drain(Message, frozen=True):
    """Stop accepting, let connections continue for ``deadline`` seconds, then close them."""

    deadline: float


class DemandAnswered(Message, frozen=True):
    """The control plane has answered a `ResourceDemanded`, or the control side has given up."""

    key: str


class LogLevels(Message, frozen=True):
    """The log filter in force, and which access log lines are written (`ztunnel.observe.sampling`)."""

    filter: str
    sampling: str = ""


class DumpSection(Enum):
    """The sections of the admin dump that only a data plane has."""

    WORKLOADS = "workloads"
    SERVICES = "services"
    POLICIES = "policies"
    STAGED_SERVICES = "stagedServices"


class DumpWanted(Message, frozen=True):
    """Request a section of the dump, in `DumpChunk` messages with the same number.

    The first few come at once, each further one after a `DumpTaken`.
    """

    number: int
    section: DumpSection


class DumpTaken(Message, frozen=True):
    """A piece of a dump was processed, so another may come. If ``more`` is false, no other is wanted."""

    number: int
    more: bool = True


class Topic(Enum):
    """The topics of questions; `ztunnel.dataplane.answers` has their parameters and items."""

    EXPLAIN = "explain"
    CONNECTIONS = "connections"
    TASKS = "tasks"
    SOCKETS = "sockets"
    POOL = "pool"


class Asked(Message, frozen=True):
    """A person's question, answered in `DumpChunk` messages with the same number.

    All data planes are asked, and their items are merged.
    """

    number: int
    topic: Topic
    parameters: dict[str, str] = {}


class ReportWanted(Message, frozen=True):
    """Request a `Report` with the same number."""

    number: int


class Rejected(msgspec.Struct, frozen=True, array_like=True):
    """A resource that was not accepted, and why."""

    name: str
    reason: str


class AtWork(Message, frozen=True):
    """The first message of a data plane in a process of its own: its process id."""

    pid: int


class DeltaApplied(Message, frozen=True):
    """All of a `MeshDelta` is applied, except what was rejected."""

    number: int
    rejected: tuple[Rejected, ...] = ()


class CertificateWanted(Message, frozen=True):
    """The certificate of an identity is needed: by a waiting connection, or soon (``warmup``)."""

    identity: Identity
    warmup: bool = False


class CertificateUnneeded(Message, frozen=True):
    """The last workload of this node with an identity was removed from the mesh."""

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
    """A lookup found nothing, and on-demand xDS is on."""

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
    """What a data plane has counted, and what it has open."""

    number: int
    samples: tuple[Sample, ...]
    pods: tuple[PodConnections, ...]


class Drained(Message, frozen=True):
    """The drain is complete: nothing is open any more."""


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
