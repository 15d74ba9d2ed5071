"""What names there are in a mesh: beside `MeshView`, which finds what a name means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ztunnel.decide.view import MeshView
from ztunnel.model.address import NamespacedHostname
from ztunnel.state.store import MeshStore


class Catalogue(Protocol):
    """The names of all workloads and services, and the mesh that they are of."""

    @property
    def view(self) -> MeshView:
        """The mesh."""
        ...

    def uids(self) -> Iterable[str]:
        """The uids of all workloads, in no order."""
        ...

    def services(self) -> Iterable[NamespacedHostname]:
        """The keys of all services, in no order."""
        ...


class StoreCatalogue:
    """The catalogue of a store."""

    def __init__(self, store: MeshStore) -> None:
        self._store = store

    @property
    def view(self) -> MeshView:
        """The store itself."""
        return self._store

    def uids(self) -> Iterable[str]:
        """The uids of all workloads."""
        return self._store.workloads.uids()

    def services(self) -> Iterable[NamespacedHostname]:
        """The keys of all services."""
        for hostname in self._store.services.hostnames():
            for entry in self._store.services.by_hostname(hostname):
                yield entry.key
