"""Putting one delta into force, in slices.

How it works. The Rust ztunnel takes a lock, applies a whole response, and joins endpoints to their
services at the end, so that the order of resources does not matter. Here nobody waits for a whole response:
`Application.step` applies some resources, connections are served, and the next step goes on. Each resource
comes into force as a whole. The order must still not matter, and a service should not be seen with only some
of its endpoints, so:

- all workloads come first, then the services: a new service finds all its endpoints staged;
- an unhealthy workload that a service refuses is offered to it again when this delta also brings that
  service, which may accept it by then;
- an endpoint that joins a service which this delta removes is staged afterwards, as if it had come later;
- removals come last.

What a delta did is collected for its owner: what changed, what is refused and why, and which certificates
are wanted or not needed any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, KeysView
from typing import NamedTuple

from ztunnel.messages import MeshDelta, Origin, Resource
from ztunnel.model.address import NamespacedHostname
from ztunnel.model.identity import Identity
from ztunnel.state.convert import ServiceParts, authorization
from ztunnel.state.kinds import RejectedError
from ztunnel.state.policies import PolicyIndex
from ztunnel.state.scan import Scanner, WorkloadKeys
from ztunnel.state.services import ServiceIndex
from ztunnel.state.workloads import WorkloadIndex

_SERVICE = (b"\x12", b'{"service"')
"""How an Address that holds a service begins, as every writer writes it, and how one of the file does."""

_ITEM, _POSTPONED = 16, 1
"""What it costs to apply a resource, and to see that it is a service, whose turn comes later."""


class RemovedWorkload(NamedTuple):
    """A workload that is gone, with the identity that it had.

    forget: it was the last of our node with its namespace and service account, so that nobody needs the
    certificate any more.
    """

    uid: str
    identity: Identity
    forget: bool


class Application(ABC):
    """A delta on its way into force. Made by `MeshStore.begin`.

    rejected: complete when `step` has returned True; so are the others.
    warnings: lines for the log about removals of what is not there.
    wanted: the identities of workloads that came for our node and can be reached over HBONE, in order: their
    certificates are worth fetching ahead.
    """

    def __init__(self, delta: MeshDelta) -> None:
        self.delta = delta
        self.done = False
        # Not a set: a dict of texts is none of the garbage collector's business, and this one may be big.
        self._changed_workloads: dict[str, None] = {}
        self.changed_policies: set[str] = set()
        self.removed_workloads: list[RemovedWorkload] = []
        self.wanted: dict[Identity, None] = {}
        self.warnings: list[str] = []
        self._from_file = delta.origin is Origin.LOCAL
        self._refused: dict[int, RejectedError] = {}
        self._work = self._apply_all()

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """Refused resources as (name, reason): those that broke a rule in order, then the undecodable."""
        refused = sorted(self._refused.items(), key=lambda item: (item[1].undecodable, item[0]))
        return [(self.delta.resources[index].name, str(error)) for index, error in refused]

    @property
    def changed_workloads(self) -> KeysView[str]:
        """The uids of workloads that came or changed, and are still there."""
        return self._changed_workloads.keys()

    @property
    def policies_changed(self) -> bool:
        """Whether open connections are to be checked again.

        So for policies that came or went, and for an empty response; not if all that came was refused.
        """
        return bool(self.changed_policies) or not (self.delta.resources or self.delta.removed)

    def step(self, max_items: int = 64) -> bool:
        """Puts up to ``max_items`` more resources or removals into force. Returns True when all are.

        Raises nothing on account of what the delta holds.
        """
        if not self.done:
            budget = max_items * _ITEM
            for cost in self._work:
                budget -= cost
                if budget <= 0:
                    return False
            self.done = True
        return True

    @abstractmethod
    def _apply_all(self) -> Iterator[int]:
        """Applies all resources and removals one by one, and yields what each has cost."""

    def _take(self, index: int, resource: Resource) -> None:
        """Applies one resource, unless it is refused."""
        try:
            self._apply(resource)
        except RejectedError as error:
            self._refused[index] = error

    @abstractmethod
    def _apply(self, resource: Resource) -> None:
        """Puts one resource into force. Raises RejectedError, and then has changed nothing."""


class PolicyApplication(Application):
    """A delta of authorization policies. They are stored under the name of their resource."""

    def __init__(self, delta: MeshDelta, policies: PolicyIndex) -> None:
        super().__init__(delta)
        self._policies = policies

    def _apply_all(self) -> Iterator[int]:
        for index, resource in enumerate(self.delta.resources):
            self._take(index, resource)
            yield _ITEM
        for name in self.delta.removed:
            # The file takes back only what is still its own.
            if (not self._from_file or self._policies.from_file(name)) and self._policies.remove(name):
                self.changed_policies.add(name)
            yield _ITEM

    def _apply(self, resource: Resource) -> None:
        policy = authorization(resource.body, local=self._from_file)
        self._policies.insert(resource.name, policy, from_file=self._from_file)
        self.changed_policies.add(resource.name)


class AddressApplication(Application):
    """A delta of workloads and services."""

    def __init__(self, delta: MeshDelta, workloads: WorkloadIndex, services: ServiceIndex) -> None:
        super().__init__(delta)
        self._workloads = workloads
        self._services = services
        self._scanner = Scanner(workloads.node)
        # By service and workload: endpoints that an unhealthy workload would be, if the service took them.
        self._turned_away: dict[NamespacedHostname, dict[str, bytes]] = {}

    def _apply_all(self) -> Iterator[int]:
        services: list[int] = []
        for index, resource in enumerate(self.delta.resources):
            if resource.body.startswith(_SERVICE):
                services.append(index)
                yield _POSTPONED
            else:
                self._take(index, resource)
                yield _ITEM
        for index in services:
            self._take(index, self.delta.resources[index])
            yield _ITEM
        for name in self.delta.removed:
            self._remove(name)
            yield _ITEM

    def _apply(self, resource: Resource) -> None:
        parts = self._scanner.scan(resource.body, local=self._from_file)
        if isinstance(parts, WorkloadKeys):
            self._insert_workload(resource, parts)
        else:
            self._insert_service(resource.body, parts)

    def _insert_workload(self, resource: Resource, keys: WorkloadKeys) -> None:
        # The name is nearly always the uid, and is kept by others too: one text for both.
        uid = resource.name if resource.name == keys.uid else keys.uid
        previous = self._workloads.insert(uid, keys, resource.body, self._scanner, from_file=self._from_file)
        if previous is not None and previous.services != keys.services:
            stays = {key for key, _ in keys.services}
            for key, _ in previous.services:
                if key not in stays:
                    self._leave(key, uid)
        for key, packed in keys.services:
            self._join(key, uid, packed)
        self._changed_workloads[uid] = None
        if keys.on_node and self._workloads.node is not None and (keys.hbone or keys.native_tunnel):
            workload = self._workloads.get(uid)
            if workload is not None:
                self.wanted[workload.identity] = None

    def _insert_service(self, body: bytes, parts: ServiceParts) -> None:
        key = parts.service.key
        refused = self._services.insert(parts, body, from_file=self._from_file)
        for uid, packed in self._turned_away.pop(key, {}).items():
            self._join(key, uid, packed)
        for uid, packed in refused.items():
            if uid in self._changed_workloads:
                self._turned_away.setdefault(key, {})[uid] = packed

    def _join(self, key: NamespacedHostname, uid: str, packed: bytes) -> None:
        if not self._services.add_endpoint(key, uid, packed):
            self._turned_away.setdefault(key, {})[uid] = packed
        elif self._turned_away:
            self._turned_away.get(key, {}).pop(uid, None)

    def _leave(self, key: NamespacedHostname, uid: str) -> None:
        self._services.remove_endpoint(key, uid)
        self._turned_away.get(key, {}).pop(uid, None)

    def _remove(self, name: str) -> None:
        if name in self._workloads:
            if not self._from_file or self._workloads.from_file(name):
                self._remove_workload(name)
            return
        namespace, slash, hostname = name.partition("/")
        if not slash:
            self.warnings.append(
                "tried to remove service but it did not have the expected namespace/hostname format"
            )
        elif "/" not in hostname:  # else it is the uid of a workload that we do not have
            self._remove_service(NamespacedHostname(namespace, hostname))

    def _remove_workload(self, uid: str) -> None:
        workload = self._workloads.read(uid)
        keys = self._workloads.remove(uid, self._scanner)
        if workload is None or keys is None:
            return
        for key, _ in keys.services:
            self._leave(key, uid)
        account = workload.namespace, workload.service_account
        forget = keys.on_node and not self._workloads.has_account(*account)
        self.removed_workloads.append(RemovedWorkload(uid, workload.identity, forget))
        self._changed_workloads.pop(uid, None)

    def _remove_service(self, key: NamespacedHostname) -> None:
        entry = self._services.entry(key)
        if entry is None:
            self.warnings.append("tried to remove service, but it was not found")
            return
        if self._from_file and not entry.from_file:
            return
        joined = {
            uid: packed
            for uid, packed in entry.endpoints.items()
            if isinstance(packed, bytes) and uid in self._changed_workloads
        }
        joined.update(self._turned_away.pop(key, {}))
        self._services.remove(key)
        for uid, packed in joined.items():
            self._services.stage(key, uid, packed)
