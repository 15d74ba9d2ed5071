"""Stored services, and their virtual addresses: exact ones and ranges.

An exact address holds at most one service a namespace. Two services of one namespace with the same address
overwrite each other, and when either is removed the namespace has none there (as in the Rust
ztunnel).

Ranges are looked up by prefix length: one dict lookup for each length that is in use in a network, however
many ranges there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter, itemgetter

from ztunnel.model.address import IPAddress, NamespacedHostname
from ztunnel.model.service import CidrVip, Endpoint, Service
from ztunnel.state.holders import Holders


@dataclass(slots=True, eq=False)
class Entry:
    """One stored service.

    endpoints: by workload uid, packed, or as the local file wrote them.
    """

    key: NamespacedHostname
    body: bytes
    endpoints: dict[str, bytes | Endpoint]
    accepts_all: bool
    from_file: bool


namespace_of = attrgetter("key.namespace")


class VipIndex:
    """Finds entries by network and address."""

    def __init__(self) -> None:
        # Blocks are networks and IP versions, keys the numbers of addresses.
        self._exact: Holders[int, Entry] = Holders(namespace_of)
        # By network and IP version, then by prefix length, then by the prefix as a number.
        self._ranges: dict[tuple[str, int], dict[int, dict[int, list[tuple[int, CidrVip, Entry]]]]] = {}
        self._ranges_inserted = 0

    def exact(self, network: str, ip: IPAddress) -> tuple[Entry, ...]:
        """Returns the entries of services with exactly this address, in store order."""
        return self._exact.of((network, ip.version), int(ip))

    def containing(self, network: str, ip: IPAddress) -> list[tuple[CidrVip, Entry]]:
        """Returns the ranges that contain an address, with the entries of their services, in store order."""
        number, bits = int(ip), ip.max_prefixlen
        found: list[tuple[int, CidrVip, Entry]] = []
        for length, ranges in self._ranges.get((network, ip.version), {}).items():
            found.extend(ranges.get(number >> (bits - length), ()))
        found.sort(key=itemgetter(0))
        return [(cidr, entry) for _, cidr, entry in found]

    def insert(self, service: Service, entry: Entry) -> None:
        """Makes a service findable by its addresses."""
        for network, ip in service.vips:
            self._exact.add((network, ip.version), int(ip), entry)
        for vip in service.cidr_vips:
            lengths = self._ranges.setdefault((vip.network, vip.cidr.version), {})
            ranges = lengths.setdefault(vip.cidr.prefixlen, {})
            self._ranges_inserted += 1
            ranges.setdefault(_prefix(vip), []).append((self._ranges_inserted, vip, entry))

    def remove(self, service: Service, entry: Entry) -> None:
        """Undoes `insert`."""
        for network, ip in service.vips:
            self._exact.discard((network, ip.version), int(ip), entry)
        for vip in service.cidr_vips:
            network_and_version = vip.network, vip.cidr.version
            lengths = self._ranges.get(network_and_version, {})
            ranges = lengths.get(vip.cidr.prefixlen, {})
            kept = [item for item in ranges.pop(_prefix(vip), ()) if item[2] is not entry]
            if kept:
                ranges[_prefix(vip)] = kept
            elif not ranges:
                lengths.pop(vip.cidr.prefixlen, None)
                if not lengths:
                    self._ranges.pop(network_and_version, None)


def _prefix(vip: CidrVip) -> int:
    return int(vip.cidr.network_address) >> (vip.cidr.max_prefixlen - vip.cidr.prefixlen)
