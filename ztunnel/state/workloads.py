"""Workloads as bytes, and the indexes that find them.

One mesh may have 100,000 workloads, so what is kept for each is little: its bytes, its uid, and an entry in
the index of addresses. No object is made for a workload until something asks for it. A uid is one text,
shared by all indexes. The dicts hold texts, numbers and bytes only, which spares them the garbage collector.
"""

from __future__ import annotations

from itertools import chain

from ztunnel.model.address import IPAddress
from ztunnel.model.workload import Protocol, Workload
from ztunnel.state import convert
from ztunnel.state.cache import GenerationCache
from ztunnel.state.convert import WorkloadParts
from ztunnel.state.scan import Scanner, WorkloadKeys

_DECODED = 8192
"""Workloads to keep decoded: each takes about 1 KB, and a big service is gone through for each connection."""

_SHELVES = 16
_HALF = {4: 16, 6: 64}


class WorkloadIndex:
    """All workloads, by uid, address, hostname, and by the names that the CNI knows."""

    def __init__(self, node: str | None) -> None:
        self.node = node
        # Spread over several dicts, for one of 100,000 takes milliseconds when it grows.
        self._bodies: tuple[dict[str, bytes], ...] = tuple({} for _ in range(_SHELVES))
        self._from_file: set[str] = set()
        self._decoded: GenerationCache[str, Workload] = GenerationCache(_DECODED)
        # By network, IP version and the upper half of the number, so that no dict is of all; then by number:
        # the uid, or where several share an address, their ranks by uid in the order of insertion.
        self._by_address: dict[tuple[str, int, int], dict[int, str | dict[str, int]]] = {}
        self._by_hostname: dict[tuple[str, str], dict[str, None]] = {}
        # By namespace and service account, then by name: the uid, or where several share them, all uids.
        self._by_account: dict[tuple[str, str], dict[str, str | dict[str, None]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._bodies))

    def __contains__(self, uid: str) -> bool:
        return uid in self._shelf(uid)

    def _shelf(self, uid: str) -> dict[str, bytes]:
        return self._bodies[hash(uid) % _SHELVES]

    def uids(self) -> list[str]:
        """The uids of all workloads, in no useful order."""
        return list(chain.from_iterable(self._bodies))

    @property
    def shelves(self) -> int:
        """How many parts the workloads are kept in."""
        return len(self._bodies)

    def uids_on(self, shelf: int) -> list[str]:
        """The uids of one part: for going through all of them with pauses."""
        return list(self._bodies[shelf])

    def body(self, uid: str) -> bytes | None:
        """The bytes of a workload's Address."""
        return self._shelf(uid).get(uid)

    def from_file(self, uid: str) -> bool:
        """Whether the workload came from the local file."""
        return uid in self._from_file

    def get(self, uid: str) -> Workload | None:
        """The workload with this uid."""
        workload = self._decoded.get(uid)
        if workload is None:
            workload = self.read(uid)
            if workload is not None:
                self._decoded.put(uid, workload)
        return workload

    def read(self, uid: str) -> Workload | None:
        """The workload with this uid, without remembering it: for going through all of them."""
        body = self._shelf(uid).get(uid)
        if body is None:
            return None
        return self.stored(uid, body).workload

    def stored(self, uid: str, body: bytes) -> WorkloadParts:
        """What the stored bytes of a workload hold."""
        parts = convert.address(body, local=uid in self._from_file)
        if not isinstance(parts, WorkloadParts):
            raise TypeError(f"what is stored as workload {uid} is a service")
        return parts

    def by_address(self, network: str, ip: IPAddress) -> Workload | None:
        """The best workload at an address: the highest rank, the last inserted among equals."""
        number = int(ip)
        slots = self._by_address.get((network, ip.version, number >> _HALF[ip.version]))
        holder = slots.get(number) if slots is not None else None
        if holder is None:
            return None
        if isinstance(holder, str):
            return self.get(holder)
        best, best_rank = "", -1
        for uid, rank in holder.items():
            if rank >= best_rank:
                best, best_rank = uid, rank
        return self.get(best)

    def by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """The first inserted workload of a namespace with this hostname."""
        for uid in self._by_hostname.get((namespace, hostname), ()):
            return self.get(uid)
        return None

    def on_node(self, name: str, namespace: str, service_account: str) -> Workload | None:
        """The last inserted workload of our node with these names."""
        holder = self._by_account.get((namespace, service_account), {}).get(name)
        if holder is None:
            return None
        return self.get(holder if isinstance(holder, str) else next(reversed(holder)))

    def has_account(self, namespace: str, service_account: str) -> bool:
        """Whether any workload of our node has this service account."""
        return (namespace, service_account) in self._by_account

    def insert(
        self, uid: str, keys: WorkloadKeys, body: bytes, scanner: Scanner, *, from_file: bool
    ) -> WorkloadKeys | None:
        """Add a workload, in place of the one with its uid. Returns the keys of that one, if it differed.

        ``uid`` equals that of the keys; it is the text that is kept.
        """
        previous: WorkloadKeys | None = None
        bodies = self._bodies[hash(uid) % _SHELVES]
        before = bodies.get(uid)
        if before is not None:
            self._decoded.drop(uid)
            if before != body or from_file != (uid in self._from_file):
                previous = self.keys(uid, before, scanner)
                self._unlink(previous, keys.addresses if previous.network == keys.network else ())
        bodies[uid] = body
        if from_file:
            self._from_file.add(uid)
        elif self._from_file:
            self._from_file.discard(uid)
        self._link(uid, keys)
        return previous

    def remove(self, uid: str, scanner: Scanner) -> WorkloadKeys | None:
        """Remove a workload. Returns its keys, or None if there is none."""
        body = self._shelf(uid).get(uid)
        if body is None:
            return None
        keys = self.keys(uid, body, scanner)
        self._unlink(keys)
        self._decoded.drop(uid)
        del self._shelf(uid)[uid]
        self._from_file.discard(uid)
        return keys

    def keys(self, uid: str, body: bytes, scanner: Scanner) -> WorkloadKeys:
        """The keys of a stored workload, anew from its bytes."""
        keys = scanner.scan(body, local=uid in self._from_file)
        if not isinstance(keys, WorkloadKeys):
            raise TypeError(f"what is stored as workload {uid} is a service")
        return keys

    def _link(self, uid: str, keys: WorkloadKeys) -> None:
        for version, number in keys.addresses:
            block = keys.network, version, number >> _HALF[version]
            slots = self._by_address.get(block)
            if slots is None:
                slots = self._by_address[block] = {}
            holder = slots.setdefault(number, uid)
            if isinstance(holder, dict):
                holder.pop(uid, None)
                holder[uid] = _rank(uid, hbone=keys.hbone)
            elif holder != uid:
                slots[number] = {holder: self._rank_of(holder), uid: _rank(uid, hbone=keys.hbone)}
        if keys.hostname is not None:
            self._by_hostname.setdefault(keys.hostname, {})[uid] = None
        if keys.account is not None:
            name, namespace, service_account = keys.account
            names = self._by_account.setdefault((namespace, service_account), {})
            holder_of_name = names.setdefault(name, uid)
            if isinstance(holder_of_name, dict):
                holder_of_name[uid] = None
            elif holder_of_name != uid:
                names[name] = {holder_of_name: None, uid: None}

    def _unlink(self, keys: WorkloadKeys, kept: tuple[tuple[int, int], ...] = ()) -> None:
        """Take a workload out of the indexes, but for addresses that it is about to be linked to again."""
        uid = keys.uid
        for address in keys.addresses:
            if address in kept:
                continue
            version, number = address
            block = keys.network, version, number >> _HALF[version]
            slots = self._by_address.get(block, {})
            holder = slots.get(number)
            if isinstance(holder, dict):
                holder.pop(uid, None)
                if len(holder) == 1:
                    slots[number] = next(iter(holder))
            elif holder == uid:
                del slots[number]
                if not slots:
                    del self._by_address[block]
        if keys.hostname is not None:
            uids = self._by_hostname[keys.hostname]
            del uids[uid]
            if not uids:
                del self._by_hostname[keys.hostname]
        if keys.account is not None:
            name, namespace, service_account = keys.account
            names = self._by_account[namespace, service_account]
            holder_of_name = names[name]
            if isinstance(holder_of_name, dict):
                del holder_of_name[uid]
                if len(holder_of_name) == 1:
                    names[name] = next(iter(holder_of_name))
            else:
                del names[name]
                if not names:
                    del self._by_account[namespace, service_account]

    def _rank_of(self, uid: str) -> int:
        workload = self.get(uid)
        return _rank(uid, hbone=workload is not None and workload.protocol is Protocol.HBONE)


def _rank(uid: str, *, hbone: bool) -> int:
    """Pods come before all others, and HBONE before plain TCP."""
    return (2 if "//Pod/" in uid else 0) + hbone
