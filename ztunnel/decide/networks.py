"""Whether an address is in one of many networks, in time that does not grow with their number.

Policies list hundreds of address ranges, and each connection asks for them. A list is turned once into sets
of network numbers, one for each prefix length that occurs, so an answer takes as many look-ups as there are
different lengths: 33 at most for IPv4. What was made of a list is remembered by the identity of its tuple,
which is kept with it, so that no other tuple can have the same identity meanwhile.
"""

from __future__ import annotations

from typing import TypeAlias

from ztunnel.model.address import IPAddress, IPNetwork

_Lengths: TypeAlias = tuple[tuple[int, frozenset[int]], ...]

_MOST = 4096
"""Lists to remember. When there are more, all are forgotten: those in use soon come back."""

_remembered: dict[int, tuple[tuple[IPNetwork, ...], dict[int, _Lengths]]] = {}


def contains(networks: tuple[IPNetwork, ...], ip: IPAddress) -> bool:
    """Whether one of ``networks`` contains ``ip``; those of the other IP version never do.

    Host bits that a network was written with do not count.
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
    """Pairs of the bits to shift out and the numbers that are left of the networks with so many host bits."""
    by_shift: dict[int, set[int]] = {}
    for network in networks:
        if network.version == version:
            shift = network.max_prefixlen - network.prefixlen
            by_shift.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return tuple((shift, frozenset(numbers)) for shift, numbers in by_shift.items())
