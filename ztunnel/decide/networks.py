"""Checks whether an address is in one of many networks, in a time that does not depend on their number.

Policies list hundreds of address ranges, and each connection is checked against them. A list is converted
once into sets of network numbers, one set for each prefix length. So a check takes as many look-ups as there
are different lengths: at most 33 for IPv4. The result is cached by the identity (``id``) of the list's tuple.
The cache holds the tuple too, so no other tuple can get the same identity meanwhile.
"""

from __future__ import annotations

from typing import TypeAlias

from ztunnel.model.address import IPAddress, IPNetwork

_Lengths: TypeAlias = tuple[tuple[int, frozenset[int]], ...]

_MOST = 4096
"""The most lists in the cache. When there are more, it is emptied: lists in use soon come back."""

_remembered: dict[int, tuple[tuple[IPNetwork, ...], dict[int, _Lengths]]] = {}


def contains(networks: tuple[IPNetwork, ...], ip: IPAddress) -> bool:
    """Returns whether one of ``networks`` contains ``ip``; those of the other IP version never do.

    Host bits in a network's address are ignored.
    """
    entry = _remembered.get(id(networks))
    if entry is None:
        if len(_remembered) >= _MOST:
            _remembered.clear()
        entry = (networks, {version: _by_length(networks, version) for version in (4, 6)})
        _remembered[id(networks)] = entry
    number = int(ip)
    for shift, numbers in entry[1][ip.version]:  # noqa: SIM110 - any() would cost twice as much
        if number >> shift in numbers:
            return True
    return False


def _by_length(networks: tuple[IPNetwork, ...], version: int) -> _Lengths:
    """Returns pairs: a number of host bits, and the networks with so many, shifted right by that number."""
    by_shift: dict[int, set[int]] = {}
    for network in networks:
        if network.version == version:
            shift = network.max_prefixlen - network.prefixlen
            by_shift.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return tuple((shift, frozenset(numbers)) for shift, numbers in by_shift.items())
