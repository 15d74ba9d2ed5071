"""Decides what the agent's requests mean: a state machine without I/O, clock or descriptors.

The driver (`ztunnel.inpod.zds_client`) reports one event at a time and executes the commands that it gets
back, in order, before it reports the next event:

* `connected` and `disconnected`, once for each connection;
* `receive` for a request, with the network namespace that came with an add;
* `unreadable` for a packet that is not a valid request;
* `retry` when `retry_at` has come;
* `started` or `failed` as the answer to each `StartPod`, and nothing else in between.

A pod is in at most one of two tables: ``running`` has the pods that were started, ``pending`` those that
could not be. Each connection begins with a snapshot. The pods that the agent adds or keeps before it says
that the snapshot is complete are noted; then every running pod that was not noted is stopped. So pods
continue while the agent is away, and are stopped when it comes back without them.

A namespace is an opaque handle. The session owns the handle of an add and gives it back exactly once, by
`Release`; in between a `StartPod` may use it. A `Release` comes before all commands that can be interrupted,
so none is lost. The sockets of a running pod keep its namespace alive, so the session only remembers its
identity.

Readiness is updated as in the Rust ztunnel: after each request that succeeds. A failed add alone does not
change it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias

from ztunnel.bounds import DEFAULTS
from ztunnel.inpod.codec import AddPod, DeletePod, KeepPod, Request, SnapshotSent
from ztunnel.inpod.zds_errors import PodStartError, ZdsProtocolError, ZdsReadError
from ztunnel.messages import PodInfo


class NamespaceHandle(Protocol):
    """An open network namespace. The session asks only for its identity."""

    @property
    def identity(self) -> Hashable:
        """Equal for two handles of one namespace."""
        ...

    @property
    def descriptor(self) -> int:
        """The open descriptor, for starting the pod."""
        ...

    def close(self) -> None:
        """Close it; called for `Release`."""
        ...


@dataclass(frozen=True, slots=True)
class SendHello:
    """Send the hello, the first packet of a connection."""


@dataclass(frozen=True, slots=True)
class SendAck:
    """Answer the request; ``error`` is None for success."""

    error: str | None = None


@dataclass(frozen=True, slots=True)
class StartPod:
    """Open a pod's sockets, then call `ZdsSession.started` or `failed`. Always the last command."""

    uid: str
    info: PodInfo
    netns: NamespaceHandle


@dataclass(frozen=True, slots=True)
class StopPod:
    """Close a pod's listeners and connections at once."""

    uid: str


@dataclass(frozen=True, slots=True)
class Release:
    """Close a namespace handle."""

    netns: NamespaceHandle


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Close the connection and open another."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End the process with this error."""

    error: ZdsProtocolError


Command: TypeAlias = SendHello | SendAck | StartPod | StopPod | Release | Reconnect | Fail
Commands: TypeAlias = list[Command]


class SessionPhase(Enum):
    """The phase of a connection."""

    DISCONNECTED = "disconnected"
    SNAPSHOT = "snapshot"
    UPDATES = "updates"


class PodState(Enum):
    """The state of a pod in the admin dump."""

    PENDING = "Pending"
    UP = "Up"


class PodView(NamedTuple):
    """One pod in the admin dump."""

    uid: str
    info: PodInfo
    state: PodState


class PodCounts(NamedTuple):
    """The values of the ``workload_manager_*`` metrics: two gauges, and two counts since the start."""

    active: int
    pending: int
    started: int
    stopped: int


class _Running(NamedTuple):
    info: PodInfo
    identity: Hashable


class _Pending(NamedTuple):
    info: PodInfo
    netns: NamespaceHandle


class _Start(NamedTuple):
    uid: str
    info: PodInfo
    netns: NamespaceHandle
    requested: bool  # a request waits for its ack; otherwise it is a retry


class ZdsSession:
    """The state of the node's pods and of the protocol. Not for concurrent use."""

    def __init__(self, retry_seconds: float = DEFAULTS.control.cni_retry) -> None:
        self._retry_seconds = retry_seconds
        self._phase = SessionPhase.DISCONNECTED
        self._running: dict[str, _Running] = {}
        self._pending: dict[str, _Pending] = {}
        self._snapshot: set[str] = set()
        self._start: _Start | None = None
        self._round: deque[str] = deque()
        self._retry_at: float | None = None
        self._ready = False
        self._started = 0
        self._stopped = 0

    @property
    def phase(self) -> SessionPhase:
        """The phase of the connection."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether the snapshot was complete and no pod waited for a retry, at the last update."""
        return self._ready

    @property
    def retry_at(self) -> float | None:
        """When `retry` has to be called, on the clock of the ``now`` arguments. None: not at all, so far."""
        return self._retry_at

    def counts(self) -> PodCounts:
        """Returns the values of the metrics."""
        retrying = self._start is not None and not self._start.requested
        return PodCounts(len(self._running), len(self._pending) + retrying, self._started, self._stopped)

    def pods(self) -> Iterator[PodView]:
        """Returns the pods of the admin dump: those that run, wait for a retry, or are being started."""
        for uid, running in self._running.items():
            yield PodView(uid, running.info, PodState.UP)
        for uid, pending in self._pending.items():
            yield PodView(uid, pending.info, PodState.PENDING)
        if self._start is not None:
            yield PodView(self._start.uid, self._start.info, PodState.PENDING)

    def connected(self) -> Commands:
        """A connection is established. Returns the commands."""
        _require(self._phase is SessionPhase.DISCONNECTED, "one connection at a time")
        self._phase = SessionPhase.SNAPSHOT
        return [SendHello()]

    def disconnected(self) -> Commands:
        """The connection has ended, or the process ends. Pending pods are forgotten; running pods continue.

        May be called while a `StartPod` is unanswered; the pod then counts as not started.
        """
        self._phase = SessionPhase.DISCONNECTED
        self._ready = False
        self._snapshot.clear()
        self._round.clear()
        self._retry_at = None
        commands: Commands = [Release(pending.netns) for pending in self._pending.values()]
        self._pending.clear()
        if self._start is not None:
            # The namespace of a retry was no longer in the table of pending pods.
            commands.append(Release(self._start.netns))
            self._start = None
        return commands

    def receive(self, request: Request, netns: NamespaceHandle | None) -> Commands:
        """Process a request. ``netns`` comes with `AddPod` only; the session owns it from now on."""
        _require(self._start is None, "a start is still unanswered")
        _require(self._phase is not SessionPhase.DISCONNECTED, "a request needs a connection")
        if isinstance(request, AddPod):
            if netns is None:
                raise RuntimeError("an add comes with a namespace")
            return self._add(request, netns)
        return _HANDLERS[self._phase, type(request)](self, request)

    def unreadable(self, error: ZdsReadError) -> Commands:
        """Process a packet that is not a valid request: refuse it and reconnect."""
        _require(self._start is None, "a start is still unanswered")
        return [SendAck(str(error)), Reconnect()]

    def started(self) -> Commands:
        """The pod of the last `StartPod` is running."""
        start = self._take_start()
        self._running[start.uid] = _Running(start.info, start.netns.identity)
        self._started += 1
        commands: Commands = [Release(start.netns)]
        if start.requested:
            commands.append(SendAck())
        self._look_at_readiness()
        return commands

    def failed(self, error: PodStartError, now: float) -> Commands:
        """The pod of the last `StartPod` could not be started, and nothing of it is left."""
        start = self._take_start()
        self._pending[start.uid] = _Pending(start.info, start.netns)
        if self._retry_at is None:
            self._retry_at = now + self._retry_seconds
        return [SendAck(str(error))] if start.requested else []

    def retry(self, now: float) -> Commands:
        """Try the next of the pending pods. Call it again until `retry_at` is in the future.

        It tries one pod at a time, so that a request does not have to wait for all of them.
        """
        _require(self._start is None, "a start is still unanswered")
        if not self._round:
            self._round.extend(self._pending)
        commands: Commands = []
        while self._round and not commands:
            uid = self._round.popleft()
            pending = self._pending.pop(uid, None)
            if pending is not None:  # otherwise it was deleted or added again since the round began
                self._start = _Start(uid, pending.info, pending.netns, requested=False)
                commands.append(StartPod(uid, pending.info, pending.netns))
        if self._round:
            self._retry_at = now
        elif self._pending:
            self._retry_at = now + self._retry_seconds
        else:
            self._retry_at = None
        return commands

    def ended(self, uid: str) -> None:
        """A running pod has ended by itself. When the agent adds it again, it is started again.

        Do not call it for a pod that a `StopPod` stopped: its uid may belong to another pod by now.
        """
        if self._running.pop(uid, None) is not None:
            self._stopped += 1

    def _take_start(self) -> _Start:
        start = self._start
        if start is None:
            raise RuntimeError("no start is unanswered")
        self._start = None
        return start

    def _look_at_readiness(self) -> None:
        self._ready = self._phase is SessionPhase.UPDATES and not self._pending

    def _acknowledged(self, *commands: Command) -> Commands:
        self._look_at_readiness()
        return [*commands, SendAck()]

    def _add(self, request: AddPod, netns: NamespaceHandle) -> Commands:
        if request.info is None:
            return [Release(netns), *self._broken("an added workload has no workload info")]
        if self._phase is SessionPhase.SNAPSHOT:
            self._snapshot.add(request.uid)
        commands: Commands = []
        running = self._running.get(request.uid)
        if running is not None:
            if running.identity == netns.identity:
                return self._acknowledged(Release(netns))
            commands.append(self._stop(request.uid))
        self._forget_pending(request.uid, commands)
        self._start = _Start(request.uid, request.info, netns, requested=True)
        commands.append(StartPod(request.uid, request.info, netns))
        return commands

    def _keep(self, request: KeepPod) -> Commands:
        self._snapshot.add(request.uid)
        return self._acknowledged()

    def _delete_from_snapshot(self, request: DeletePod) -> Commands:
        self._snapshot.discard(request.uid)
        commands: Commands = []
        self._forget_pending(request.uid, commands)
        return self._acknowledged(*commands)

    def _delete(self, request: DeletePod) -> Commands:
        commands: Commands = []
        self._forget_pending(request.uid, commands)
        if request.uid in self._running:
            commands.append(self._stop(request.uid))
        return self._acknowledged(*commands)

    def _reconcile(self, _request: SnapshotSent) -> Commands:
        commands: Commands = [self._stop(uid) for uid in list(self._running) if uid not in self._snapshot]
        self._snapshot.clear()
        self._phase = SessionPhase.UPDATES
        return self._acknowledged(*commands)

    def _keep_too_late(self, request: KeepPod) -> Commands:
        return self._broken(f"workload {request.uid} is to be kept, after the snapshot was complete")

    def _second_snapshot(self, _request: SnapshotSent) -> Commands:
        return self._broken("the snapshot was complete already")

    def _broken(self, text: str) -> Commands:
        error = ZdsProtocolError(f"protocol error: {text}")
        return [SendAck(str(error)), Fail(error)]

    def _stop(self, uid: str) -> StopPod:
        del self._running[uid]
        self._stopped += 1
        return StopPod(uid)

    def _forget_pending(self, uid: str, commands: Commands) -> None:
        pending = self._pending.pop(uid, None)
        if pending is not None:
            commands.append(Release(pending.netns))


# The two phases differ in these three requests. An add means the same in both, except for the note in the
# snapshot.
_HANDLERS: dict[tuple[SessionPhase, type[Request]], Callable[..., Commands]] = {
    (SessionPhase.SNAPSHOT, KeepPod): ZdsSession._keep,  # noqa: SLF001 # the table belongs to the class
    (SessionPhase.SNAPSHOT, DeletePod): ZdsSession._delete_from_snapshot,  # noqa: SLF001
    (SessionPhase.SNAPSHOT, SnapshotSent): ZdsSession._reconcile,  # noqa: SLF001
    (SessionPhase.UPDATES, KeepPod): ZdsSession._keep_too_late,  # noqa: SLF001
    (SessionPhase.UPDATES, DeletePod): ZdsSession._delete,  # noqa: SLF001
    (SessionPhase.UPDATES, SnapshotSent): ZdsSession._second_snapshot,  # noqa: SLF001
}


def _require(condition: bool, text: str) -> None:  # noqa: FBT001 # reads like an assertion, which it is
    """Raise RuntimeError when the driver calls out of order: acks or descriptors would be lost."""
    if not condition:
        raise RuntimeError(text)
