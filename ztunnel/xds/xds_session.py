"""One delta xDS conversation with the control plane, as a state machine without I/O.

How it works. The client has one `XdsSession` for the life of the process, and opens one stream after the
other with it. The session holds what must survive a stream: the name and version of every resource of the
mesh, the keys that are waited for, and whether the first sync is complete.

    requests = session.open()                     a stream opens: these bytes go out at once, in order
    reading = session.receive(message)            one message came in
    while not reading.scan(): ...                 read it, a slice at a time; the caller yields in between
    delta = reading.delta()                       what changes; the store applies it
    while not reading.record(rejected): ...       note names and versions, a slice at a time
    outcome = session.complete(reading, rejected) the ACK or NACK to send, and what became true
    session.close()                               the stream has ended

Both subscriptions are requested at once, before anything is received: servers send their response headers
with their first message, so waiting for either would be a deadlock.

The session decides only about names and versions. A rejected update keeps the version of the object in force,
so that after a reconnect the server sends the new one again. A removed name is dropped. The payloads go to
the store unread.

**Reconnect.** The first request of a type contains every known name with its version, so the server sends
only the difference and lists the removed names. But istiod refuses a message over 4 MiB, which is about
45,000 names: the Rust ztunnel then fails at every attempt, forever. So above `ControlBounds.xds_request` the
names are left out, and the response is the whole mesh. Resources with an unchanged version are not applied
again, and known names that are not in the response are removed. This relies on istiod sending all resources
of a type in one response. In on-demand mode names are subscriptions and cannot be left out: they are sent in
several requests.

**On demand.** A key (``network/ip``, ``namespace/hostname`` or a uid) is asked for once, however many callers
wait for it. istiod answers an address with the object's own name and has the address among its aliases, so
aliases count as answers. It does not answer a key that is already subscribed, and it does not report an
object that gets an address later; but it answers every request that changes the subscriptions. So a key that
was asked for before is sent together with ``*``, both subscribed and unsubscribed in the same request: this
changes nothing but is answered. It would be wrong to unsubscribe the key first: istiod answers a request that
only unsubscribes by declaring everything that is subscribed removed.

Sources: Envoy xDS protocol, "Incremental xDS"; istio pilot/pkg/xds/{delta,workload}.go;
docs/protocol/state-and-xds.md#requests-and-answers.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.messages import MeshDelta, Rejected, ResourceKind
from ztunnel.slices import batches
from ztunnel.xds.delta import ResponseScanner, encode_request, encode_version

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"

KINDS = {ADDRESS_TYPE: ResourceKind.ADDRESS, AUTHORIZATION_TYPE: ResourceKind.AUTHORIZATION}
"""The types that we subscribe to, in the order of the requests."""

READ_SLICE = 250
"""How many resources are read without a pause: half a millisecond."""


@dataclass(frozen=True, slots=True)
class XdsOutcome:
    """The result of a response.

    request: the ACK or NACK to send. nack: the text of the NACK, None for an ACK.
    answered: the demanded keys that are answered by now.
    became_ready: true once in the life of a process, when every expected type has been ACKed.
    known_type: false for a type that we never asked for.
    """

    type_url: str
    nonce: str
    request: bytes
    nack: str | None
    answered: frozenset[str]
    became_ready: bool
    known_type: bool


class Reading:
    """One response while it is scanned, applied and completed. `XdsSession.receive` makes it."""

    __slots__ = ("_reconciling", "_recording", "_scanner", "_session")

    def __init__(self, session: XdsSession, message: bytes) -> None:
        self._session = session
        self._scanner = ResponseScanner(message)
        self._reconciling: Iterator[None] | None = None
        self._recording: Iterator[None] | None = None

    @property
    def type_url(self) -> str:
        """The type of the response; complete after `scan`."""
        return self._scanner.type_url

    @property
    def value_bytes(self) -> int:
        """The sum of the sizes of the payloads; complete after `scan`."""
        return self._scanner.value_bytes

    @property
    def envelope(self) -> ResponseScanner:
        """The scanned envelope."""
        return self._scanner

    def scan(self, slice_size: int = READ_SLICE) -> bool:
        """Read the next slice. Returns True when everything is read.

        Raises `MalformedResponseError`; then nothing has changed, and the caller must end the stream.
        """
        scanner = self._scanner
        if self._reconciling is None:
            if not scanner.scan(slice_size):
                return False
            self._reconciling = self._session.reconcile(scanner)
        for _ in self._reconciling:
            return False
        scanner.resources.known = self._session.known(scanner.type_url)
        return True

    def delta(self) -> MeshDelta | None:
        """Returns the delta to apply; None for a type that we never asked for.

        It is the whole response, empty or not, because the store treats it as one change: a service gets all
        its endpoints, an ALLOW comes together with a DENY. The store itself applies it in slices.
        """
        scanner = self._scanner
        kind = KINDS.get(scanner.type_url)
        if kind is None:
            return None
        return MeshDelta(self._session.next_number(), kind, scanner.resources, tuple(scanner.removed))

    def record(self, rejected: Sequence[Rejected] = ()) -> bool:
        """Note the next slice of names and versions, after the response was applied. Returns True when done.

        rejected: the resources that were rejected. `XdsSession.complete` does the rest if this was not called
            to the end.
        """
        if self._recording is None:
            self._recording = self._session.recording(self._scanner, rejected)
        for _ in self._recording:
            return False
        return True


class XdsSession:
    """The state of the conversation over all its streams.

    node: the encoded Node message of the first requests. on_demand: ask for addresses by key.
    numbers: gives each delta its number.
    """

    def __init__(
        self,
        node: bytes,
        *,
        on_demand: bool = False,
        numbers: Iterator[int] | None = None,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        self._node = node
        self._numbers = count(1) if numbers is None else numbers
        self._on_demand = on_demand
        self._versions: dict[str, dict[str, str]] = {type_url: {} for type_url in KINDS}
        self._awaited = {AUTHORIZATION_TYPE} if on_demand else set(KINDS)
        self._is_open = False
        self._resync: set[str] = set()
        self._pending: set[str] = set()
        self._subscribed: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether a response of each expected type was ACKed at least once."""
        return not self._awaited

    @property
    def awaiting(self) -> tuple[str, ...]:
        """The types of which no response was ACKed yet, sorted."""
        return tuple(sorted(self._awaited))

    @property
    def on_demand(self) -> bool:
        """Whether addresses are asked for by key."""
        return self._on_demand

    @property
    def pending(self) -> frozenset[str]:
        """The keys that were asked for and are not answered yet."""
        return frozenset(self._pending)

    def versions(self, type_url: str) -> dict[str, str]:
        """Returns a copy of the known names of a type with their versions, for tests."""
        return dict(self._versions[type_url])

    @property
    def size(self) -> int:
        """How many names are known."""
        return sum(map(len, self._versions.values()))

    def known(self, type_url: str) -> Container[str]:
        """Returns the known names of a type."""
        return self._versions.get(type_url, ())

    def open(self) -> list[bytes]:
        """A stream opens. Returns the first requests, to be sent at once and in this order."""
        self._is_open = True
        self._resync.clear()
        self._subscribed = set(self._pending)
        requests: list[bytes] = []
        for type_url in KINDS:
            if self._on_demand and type_url == ADDRESS_TYPE:
                requests.extend(self._open_on_demand(type_url))
            else:
                requests.append(self._open_wildcard(type_url))
        return requests

    def close(self) -> None:
        """The stream has ended. What is known stays; keys still waited for are in the next `open`."""
        self._is_open = False
        self._resync.clear()
        self._subscribed.clear()

    def next_number(self) -> int:
        """Returns the number of the next delta."""
        return next(self._numbers)

    def receive(self, message: bytes) -> Reading:
        """Start to read a response. Complete it before the next one."""
        return Reading(self, message)

    def reconcile(self, response: ResponseScanner) -> Iterator[None]:
        """If the names were left out of the request: turn the whole mesh into the difference.

        Changes which resources of the response are chosen, and its removals; does nothing to other responses.
        `Reading.scan` calls it and continues it one slice at a time.
        """
        if response.type_url not in self._resync:
            return
        self._resync.discard(response.type_url)
        known = self._versions[response.type_url]
        kept = set(response.removed)
        resources = response.resources
        resources.chosen = chosen = array("I")
        for start in range(0, resources.total, READ_SLICE):
            for number in range(start, min(start + READ_SLICE, resources.total)):
                name, version = resources.name(number), resources.version(number)
                kept.add(name)
                if not version or known.get(name) != version:
                    chosen.append(number)
            yield
        names = iter(known)
        while part := list(islice(names, READ_SLICE)):
            response.removed.extend([name for name in part if name not in kept])
            yield

    def recording(self, response: ResponseScanner, rejected: Sequence[Rejected]) -> Iterator[None]:
        """Note what is known after a response, one slice at a time. `Reading.record` calls it."""
        if response.type_url not in KINDS:
            return
        known = self._versions[response.type_url]
        refused = {bad.name for bad in rejected}
        for part in batches(response.removed, READ_SLICE):
            for name in part:
                known.pop(name, None)
            yield
        resources = response.resources
        for start in range(0, resources.total, READ_SLICE):
            for number in range(start, min(start + READ_SLICE, resources.total)):
                name, version = resources.name(number), resources.version(number)
                # An equal string that is already stored is kept, so that it is not stored twice.
                if known.get(name) != version and name not in refused:
                    known[name] = version
            yield

    def complete(self, reading: Reading, rejected: Sequence[Rejected] = ()) -> XdsOutcome:
        """The whole response was applied or rejected: update the state.

        Returns the answer and what became true.

        rejected: the rejected resources, in order.
        """
        scanner = reading.envelope
        type_url = scanner.type_url
        known_type = type_url in KINDS
        became_ready = False
        answered: frozenset[str] = frozenset()
        nack = "; ".join(f"{bad.name}: {bad.reason}" for bad in rejected) or None
        while not reading.record(rejected):
            pass
        if known_type:
            if type_url == ADDRESS_TYPE and self._pending:
                answered = self._answer(scanner)
            if nack is None and type_url in self._awaited:
                self._awaited.discard(type_url)
                became_ready = not self._awaited
        scanner.release()
        request = encode_request(type_url, nonce=scanner.nonce, error=nack)
        return XdsOutcome(type_url, scanner.nonce, request, nack, answered, became_ready, known_type)

    def demand(self, key: str) -> bytes | None:
        """A caller waits for a key. Returns the request to send now.

        Returns an empty request if the key was already asked for, or if no stream is open (the next one will
        ask). Returns None if too many keys are waited for.
        """
        if key in self._pending:
            return b""
        if len(self._pending) >= self._bounds.demands_waiting:
            return None
        self._pending.add(key)
        if not self._is_open:
            return b""
        if key in self._subscribed or len(self._subscribed) >= self._bounds.demands_remembered:
            return encode_request(ADDRESS_TYPE, subscribe=(key, "*"), unsubscribe=("*",))
        self._subscribed.add(key)
        return encode_request(ADDRESS_TYPE, subscribe=(key,))

    def abandon(self, key: str) -> None:
        """No caller waits for the key any more."""
        self._pending.discard(key)

    def _open_wildcard(self, type_url: str) -> bytes:
        known = self._versions[type_url]
        entries: list[bytes] = []
        size = 0
        # A lower bound of the size, known without encoding tens of thousands of entries in vain.
        if self._exceeds_budget(known):
            self._resync.add(type_url)
            return encode_request(type_url, node=self._node)
        for name, version in known.items():
            entry = encode_version(name, version)
            size += len(entry)
            if size > self._bounds.xds_request:
                self._resync.add(type_url)
                return encode_request(type_url, node=self._node)
            entries.append(entry)
        return encode_request(type_url, node=self._node) + b"".join(entries)

    def _exceeds_budget(self, known: Mapping[str, str]) -> bool:
        left = self._bounds.xds_request
        names, versions = iter(known), iter(known.values())
        while left >= 0:
            part = sum(map(len, islice(names, READ_SLICE))) + sum(map(len, islice(versions, READ_SLICE)))
            if part == 0:
                return False
            left -= part
        return True

    def _open_on_demand(self, type_url: str) -> Iterator[bytes]:
        # Subscribing to "*" and unsubscribing from it is how istiod is told "nothing yet".
        request = encode_request(type_url, node=self._node, subscribe=("*",), unsubscribe=("*",))
        entries: list[bytes] = []
        size = 0
        known = self._versions[type_url]
        waited_for = ((key, "") for key in sorted(self._pending) if key not in known)
        for name, version in (*known.items(), *waited_for):
            entry = encode_version(name, version)
            if size + len(entry) > self._bounds.xds_request and entries:
                yield request + b"".join(entries)
                request = encode_request(type_url)
                entries, size = [], 0
            entries.append(entry)
            size += len(entry)
        yield request + b"".join(entries)

    def _answer(self, response: ResponseScanner) -> frozenset[str]:
        pending = self._pending
        answered = pending.intersection(response.resources.names())
        answered |= pending.intersection(response.aliases)
        answered |= pending.intersection(response.removed)
        pending -= answered
        return frozenset(answered)
