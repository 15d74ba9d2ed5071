"""The names of all objects in a mesh; a `MeshView` only finds the object of a known name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from ztunnel.decide.mesh_view import MeshView
from ztunnel.model.address import NamespacedHostname
from ztunnel.model.workload import Workload
from ztunnel.slices import batches
from ztunnel.state.store import MeshStore

NAME_PART = 1000
"""Names in one part. Checking each of them takes a fraction of a millisecond."""


class Catalogue(Protocol):
    """The names of all workloads and services, and their mesh.

    Names come in parts. The mesh may change between two parts, so a name may no longer exist when it comes.
    """

    @property
    def view(self) -> MeshView:
        """The mesh."""
        ...

    def uids(self) -> Iterator[Sequence[str]]:
        """Returns the uids of all workloads, in no order, at most `NAME_PART` at a time."""
        ...

    def services(self) -> Iterator[Sequence[NamespacedHostname]]:
        """Returns the keys of all services, in no order, at most `NAME_PART` at a time."""
        ...

    def read(self, uid: str) -> Workload | None:
        """Returns a workload without changing any cache that connections use."""
        ...

    def mentions(self, uid: str, text: str) -> bool:
        """Returns whether a text occurs in the stored data of a workload. Much cheaper than reading it."""
        ...


class StoreCatalogue:
    """The catalogue of a store."""

    def __init__(self, store: MeshStore) -> None:
        self._store = store

    @property
    def view(self) -> MeshView:
        """The store itself."""
        return self._store

    def uids(self) -> Iterator[Sequence[str]]:
        """Returns the uids of all workloads."""
        for part in self._store.workloads.parts_of_uids():
            yield from batches(part, NAME_PART)

    def services(self) -> Iterator[Sequence[NamespacedHostname]]:
        """Returns the keys of all services."""
        services = self._store.services
        for hostnames in batches(services.hostnames(), NAME_PART):
            yield [entry.key for hostname in hostnames for entry in services.by_hostname(hostname)]

    def read(self, uid: str) -> Workload | None:
        """Returns a workload, decoded for this call only."""
        return self._store.workloads.read(uid)

    def mentions(self, uid: str, text: str) -> bool:
        """Returns whether the bytes of a workload hold a text."""
        body = self._store.workloads.body(uid)
        return body is not None and text.encode() in body
