"""Virtual addresses of services: exact ones and ranges.

An exact address holds at most one service a namespace. Two services of one namespace with the same address
overwrite each other, and when either is removed the namespace has none there (as in the existing
implementation). Nearly all addresses have one service only, which is stored as such.

Ranges are looked up by prefix length: one dict lookup for each length that is in use in a network, however
many ranges there are.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from ztunnel.model.address import IPAddress, NamespacedHostname
from ztunnel.model.service import CidrVip, Service


class _Keyed(Protocol):
    @property
    def key(self) -> NamespacedHostname: ...


_E = TypeVar("_E", bound=_Keyed)


class VipIndex(Generic[_E]):
    """Finds the entries of services by network and address. An entry is whatever the owner stores."""

    def __init__(self) -> None:
        # By network and IP version, then by number: one entry, or entries by namespace.
        self._exact: dict[tuple[str, int], dict[int, _E | dict[str, _E]]] = {}
        # By network and IP version, then by prefix length, then by the prefix as a number.
        self._ranges: dict[tuple[str, int], dict[int, dict[int, list[tuple[int, CidrVip, _E]]]]] = {}
        self._ranges_inserted = 0

    def exact(self, network: str, ip: IPAddress) -> list[_E]:
        """The entries of services with exactly this address, in store order."""
        numbers = self._exact.get((network, ip.version))
        holder = None if numbers is None else numbers.get(int(ip))
        if holder is None:
            return []
        return list(holder.values()) if isinstance(holder, dict) else [holder]

    def containing(self, network: str, ip: IPAddress) -> list[tuple[CidrVip, _E]]:
        """The ranges that contain an address, with the entries of their services, in store order."""
        lengths = self._ranges.get((network, ip.version))
        if lengths is None:
            return []
        number, bits = int(ip), ip.max_prefixlen
        found: list[tuple[int, CidrVip, _E]] = []
        for length, ranges in lengths.items():
            found.extend(ranges.get(number >> (bits - length), ()))
        found.sort(key=_order)
        return [(cidr, entry) for _, cidr, entry in found]

    def insert(self, service: Service, entry: _E) -> None:
        """Make a service findable by its addresses."""
        namespace = entry.key.namespace
        for network, ip in service.vips:
            numbers = self._exact.setdefault((network, ip.version), {})
            number = int(ip)
            holder = numbers.get(number)
            if isinstance(holder, dict):
                holder[namespace] = entry
            elif holder is None or holder.key.namespace == namespace:
                numbers[number] = entry
            else:
                numbers[number] = {holder.key.namespace: holder, namespace: entry}
        for vip in service.cidr_vips:
            lengths = self._ranges.setdefault((vip.network, vip.cidr.version), {})
            ranges = lengths.setdefault(vip.cidr.prefixlen, {})
            self._ranges_inserted += 1
            ranges.setdefault(_prefix(vip), []).append((self._ranges_inserted, vip, entry))

    def remove(self, service: Service, entry: _E) -> None:
        """Undo `insert`."""
        for network, ip in service.vips:
            self._remove_exact((network, ip.version), int(ip), entry.key.namespace)
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

    def _remove_exact(self, network_and_version: tuple[str, int], number: int, namespace: str) -> None:
        numbers = self._exact.get(network_and_version, {})
        holder = numbers.get(number)
        if isinstance(holder, dict):
            holder.pop(namespace, None)
            if len(holder) == 1:
                numbers[number] = next(iter(holder.values()))
        elif holder is not None and holder.key.namespace == namespace:
            del numbers[number]
            if not numbers:
                del self._exact[network_and_version]


def _order(item: tuple[int, CidrVip, object]) -> int:
    return item[0]


def _prefix(vip: CidrVip) -> int:
    return int(vip.cidr.network_address) >> (vip.cidr.max_prefixlen - vip.cidr.prefixlen)
