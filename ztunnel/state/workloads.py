"""Workloads as bytes, and the indexes that find them.

One mesh may have 100,000 workloads, so what is kept for each is little: its bytes, its uid, and an entry in
the index of addresses. No object is made for a workload until something asks for it. A uid is one text,
shared by all indexes. The dicts hold texts, numbers and bytes only, which spares them the garbage collector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from operator import attrgetter

from ztunnel.model.address import IPAddress
from ztunnel.model.workload import Protocol, Workload
from ztunnel.state import convert
from ztunnel.state.cache import GenerationCache
from ztunnel.state.convert import WorkloadParts
from ztunnel.state.holders import Holders
from ztunnel.state.scan import Scanner, WorkloadKeys

_DECODED = 8192
"""Workloads to keep decoded: each takes about 1 KB, and a big service is gone through for each connection."""

_SHELVES = 16
_HALF = {4: 16, 6: 64}
_indexed = attrgetter("network", "addresses", "hostname", "account")


class WorkloadIndex:
    """All workloads, by uid, address, hostname, and by the names that the CNI knows."""

    def __init__(self, node: str | None) -> None:
        self.node = node
        # Spread over several dicts, for one of 100,000 takes milliseconds when it grows.
        self._bodies: tuple[dict[str, bytes], ...] = tuple({} for _ in range(_SHELVES))
        self._from_file: set[str] = set()
        self._decoded: GenerationCache[str, Workload] = GenerationCache(_DECODED)
        # Blocks are networks, IP versions and the upper halves of addresses, keys the addresses as numbers.
        self._by_address: Holders[int, str] = Holders(str)
        self._by_hostname: Holders[str, str] = Holders(str)  # blocks are namespaces
        # Blocks are namespaces with service accounts, keys names.
        self._by_account: Holders[str, str] = Holders(str)

    def __len__(self) -> int:
        return sum(map(len, self._bodies))

    def __contains__(self, uid: str) -> bool:
        return uid in self._shelf(uid)

    def _shelf(self, uid: str) -> dict[str, bytes]:
        return self._bodies[hash(uid) % _SHELVES]

    def uids(self) -> list[str]:
        """Returns the uids of all workloads, in no useful order."""
        return list(chain.from_iterable(self._bodies))

    def parts_of_uids(self) -> Iterator[list[str]]:
        """Yields the same in parts: for going through all of them with pauses."""
        yield from map(list, self._bodies)

    def body(self, uid: str) -> bytes | None:
        """Returns the bytes of a workload's Address."""
        return self._shelf(uid).get(uid)

    def from_file(self, uid: str) -> bool:
        """Returns whether the workload came from the local file."""
        return uid in self._from_file

    def get(self, uid: str) -> Workload | None:
        """Returns the workload with this uid."""
        workload = self._decoded.get(uid)
        if workload is None:
            workload = self.read(uid)
            if workload is not None:
                self._decoded.put(uid, workload)
        return workload

    def read(self, uid: str) -> Workload | None:
        """Returns the workload with this uid, without remembering it: for going through all of them."""
        body = self.body(uid)
        if body is None:
            return None
        parts = convert.address(body, local=uid in self._from_file)
        assert isinstance(parts, WorkloadParts)  # else it would not have been stored here
        return parts.workload

    def by_address(self, network: str, ip: IPAddress) -> Workload | None:
        """Returns the best workload at an address: pods before others, then HBONE, then the last inserted."""
        number = int(ip)
        uids = self._by_address.of((network, ip.version, number >> _HALF[ip.version]), number)
        if len(uids) < 2:
            return self.get(uids[0]) if uids else None
        workloads = [workload for workload in map(self.get, reversed(uids)) if workload is not None]
        return max(workloads, key=lambda one: ("//Pod/" in one.uid, one.protocol is Protocol.HBONE))

    def by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """Returns the first inserted workload of a namespace with this hostname."""
        uids = self._by_hostname.of(namespace, hostname)
        return self.get(uids[0]) if uids else None

    def on_node(self, name: str, namespace: str, service_account: str) -> Workload | None:
        """Returns the last inserted workload of our node with these names."""
        uids = self._by_account.of((namespace, service_account), name)
        return self.get(uids[-1]) if uids else None

    def has_account(self, namespace: str, service_account: str) -> bool:
        """Returns whether any workload of our node has this service account."""
        return (namespace, service_account) in self._by_account

    def insert(
        self, uid: str, keys: WorkloadKeys, body: bytes, scanner: Scanner, *, from_file: bool
    ) -> WorkloadKeys | None:
        """Adds a workload, in place of the one with its uid. Returns the keys of that one, if it differed.

        ``uid`` equals that of the keys; it is the text that is kept.
        """
        bodies = self._shelf(uid)
        before = bodies.get(uid)
        previous, stays = None, before is not None
        if before is not None and (before != body or from_file != (uid in self._from_file)):
            previous = self.keys(uid, before, scanner)
            stays = _indexed(previous) == _indexed(keys)
            if not stays:
                self._relink(uid, previous, Holders.discard)
            self._decoded.drop(uid)
        self._relink(uid, keys, Holders.renew if stays else Holders.add)
        bodies[uid] = body
        (self._from_file.add if from_file else self._from_file.discard)(uid)
        return previous

    def remove(self, uid: str, scanner: Scanner) -> WorkloadKeys | None:
        """Removes a workload. Returns its keys, or None if there is none."""
        body = self.body(uid)
        if body is None:
            return None
        keys = self.keys(uid, body, scanner)
        self._relink(uid, keys, Holders.discard)
        self._decoded.drop(uid)
        del self._shelf(uid)[uid]
        self._from_file.discard(uid)
        return keys

    def keys(self, uid: str, body: bytes, scanner: Scanner) -> WorkloadKeys:
        """Returns the keys of a stored workload, anew from its bytes."""
        keys = scanner.scan(body, local=uid in self._from_file)
        assert isinstance(keys, WorkloadKeys)  # else it would not have been stored here
        return keys

    def _relink(self, uid: str, keys: WorkloadKeys, change: Callable[..., None]) -> None:
        """Does ``change``, a method of `Holders`, in all indexes of a workload."""
        for version, number in keys.addresses:
            change(self._by_address, (keys.network, version, number >> _HALF[version]), number, uid)
        if keys.hostname is not None:
            change(self._by_hostname, *keys.hostname, uid)
        if keys.account is not None:
            name, namespace, service_account = keys.account
            change(self._by_account, (namespace, service_account), name, uid)
