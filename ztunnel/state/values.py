"""The kinds of single values: addresses, networks, gateways, ports, text matches.

What is refused, and with which text, is part of the protocol: the control plane sees it in a NACK. A value of
a policy that cannot be read is `UNREADABLE` instead (`ztunnel.state.convert` says why).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ztunnel.model.address import (
    GatewayAddress,
    IPAddress,
    IPNetwork,
    NamespacedHostname,
    NetworkAddress,
    written_network,
)
from ztunnel.model.policy import StringMatch, StringMatchKind
from ztunnel.model.service import CidrVip
from ztunnel.state import local_reader as file
from ztunnel.state.kinds import TEXT, Kind, Record, RejectedError, many, needed

_PORT = 0xFFFF

TRUTH = Kind(file.truth, default=False)
NUMBER = Kind(file.number, default=0)
PORT = Kind(file.port, read=lambda number: number & _PORT, default=0)
WRAPPED_NUMBER = Kind(file.number, read=lambda message: message.value, message=True)


# -- addresses ---------------------------------------------------------------------------------------------


def ip_from_bytes(octets: bytes) -> IPAddress:
    """Returns an address from its 4 or 16 bytes. Raises RejectedError."""
    if len(octets) == 4:
        return IPv4Address(octets)
    if len(octets) == 16:
        return IPv6Address(octets)
    raise RejectedError(f"failed to parse address, had {len(octets)} bytes")


def _display_ip(octets: bytes) -> str:
    return "{}.{}.{}.{}".format(*octets) if len(octets) == 4 else str(IPv6Address(octets))


IP = Kind(file.address, ip_from_bytes, str, _display_ip)


def _parse_network(value: Any, place: str) -> IPNetwork:
    """Returns a network with its prefix length; host bits are kept."""
    start, slash, length = file.text(value, place).partition("/")
    if not (slash and length.isascii() and length.isdigit() and len(length) <= 3):
        raise file.problem(place, "invalid IP address syntax")
    try:
        return written_network(file.address(start, place), int(length))
    except ValueError as error:
        raise file.problem(place, str(error)) from None


# -- references --------------------------------------------------------------------------------------------


def namespaced_hostname(key: str) -> NamespacedHostname:
    """Returns the key of a service from ``namespace/hostname``. Raises RejectedError."""
    try:
        return NamespacedHostname.parse(key)
    except ValueError as error:
        raise RejectedError(str(error)) from None


def _parse_hostname(value: str, place: str) -> NamespacedHostname:
    try:
        return NamespacedHostname.parse(value)
    except ValueError as error:
        raise file.problem(place, str(error)) from None


def _parse_destination(value: Any, place: str) -> NetworkAddress | NamespacedHostname:
    """Returns an address if what follows the first slash is one, else the name of a service."""
    first, _, rest = file.text(value, place).partition("/")
    try:
        return NetworkAddress(first, file.address(rest, place))
    except file.LocalConfigError:
        return _parse_hostname(value, place)


_GATEWAY_OF_FILE = Record(
    GatewayAddress,
    needed("destination", Kind(_parse_destination, show=str)),
    needed("hbone_mtls_port", PORT),
)


def _read_gateway(message: Any) -> GatewayAddress:
    """Returns a waypoint or network gateway. Raises RejectedError when it refers to nothing."""
    port = message.hbone_mtls_port & _PORT
    kind = message.WhichOneof("destination")
    if kind == "hostname":
        hostname = message.hostname
        return GatewayAddress(NamespacedHostname(hostname.namespace, hostname.hostname), port)
    if kind is None:
        raise RejectedError("nonempty gateway address is missing address")
    address = message.address
    return GatewayAddress(NetworkAddress(address.network, ip_from_bytes(address.address)), port)


GATEWAY = Kind(_GATEWAY_OF_FILE.parse, _read_gateway, _GATEWAY_OF_FILE.show, message=True)


# -- ports and services ------------------------------------------------------------------------------------


def read_ports(ports: Iterable[Any]) -> dict[int, int]:
    """Returns target ports by service port. Numbers are cut to 16 bits; the last of equal ones wins."""
    return {port.service_port & _PORT: port.target_port & _PORT for port in ports}


def show_ports(ports: Mapping[int, int]) -> dict[str, int]:
    """Returns a port map as JSON has it, where names are texts."""
    return {str(port): target for port, target in ports.items()}


PORTS = Kind(file.ports, read_ports, show_ports, default={})


def _parse_services(value: Any, place: str) -> tuple[tuple[NamespacedHostname, dict[int, int]], ...]:
    services = file.mapped(file.ports, file.text)(value, place)
    return tuple([(_parse_hostname(key, place), ports) for key, ports in services.items()])


def _read_services(entries: Iterable[Any]) -> tuple[tuple[NamespacedHostname, dict[int, int]], ...]:
    # The last of equal keys wins, as in any map of protobuf.
    services = {
        entry.key: (namespaced_hostname(entry.key), read_ports(entry.value.ports)) for entry in entries
    }
    return tuple(services.values())


SERVICES = Kind(
    _parse_services,
    _read_services,
    show=lambda keys: [str(key) for key in keys],
    display=lambda entries: list({entry.key: None for entry in entries}),
    default=(),
)
"""The services of a workload: keys in the model; from the wire and the file their port maps come along."""


# -- virtual addresses: one list on the wire, addresses and ranges apart elsewhere ---------------------------


def _parse_vip(value: Any, place: str) -> NetworkAddress:
    name, slash, ip = file.text(value, place).partition("/")
    if not slash:
        raise file.problem(place, f"`{value}` is not network/ip; the network may be empty: `/{value}`")
    return NetworkAddress(name, file.address(ip, place))


def _addresses(messages: Iterable[Any]) -> Iterable[tuple[str, IPAddress, int | None]]:
    """Yields network, address and length, None for a length that is the whole address."""
    for message in messages:
        ip = ip_from_bytes(message.address)
        length = message.length if message.HasField("length") else ip.max_prefixlen
        yield message.network, ip, None if length == ip.max_prefixlen else length


def _read_vips(messages: Iterable[Any]) -> tuple[NetworkAddress, ...]:
    return tuple(
        NetworkAddress(network, ip) for network, ip, length in _addresses(messages) if length is None
    )


def _read_ranges(messages: Iterable[Any]) -> tuple[CidrVip, ...]:
    ranges = [(name, ip, length) for name, ip, length in _addresses(messages) if length is not None]
    try:
        return tuple(CidrVip(name, written_network(ip, length)) for name, ip, length in ranges)
    except ValueError as error:
        raise RejectedError(f"invalid cidr: {error}") from None


_RANGE_OF_FILE = Record(
    CidrVip,
    needed("network", TEXT),
    needed("cidr", Kind(_parse_network, show=str)),
    closed=False,
)

VIPS = many(Kind(_parse_vip, show=str))._replace(read=_read_vips)
CIDR_VIPS = many(Kind(_RANGE_OF_FILE.parse, show=_RANGE_OF_FILE.show))._replace(read=_read_ranges)


# -- matches of policies -------------------------------------------------------------------------------------

UNREADABLE = None
"""What a value of a policy is that cannot be read."""


def _read_string(message: Any) -> StringMatch | None:
    wire = message.WhichOneof("match_type")
    if wire is None:
        return UNREADABLE
    kind = StringMatchKind[wire.upper()]
    return StringMatch(kind, "" if kind is StringMatchKind.PRESENCE else getattr(message, wire))


def _show_string(match: StringMatch) -> dict[str, Any]:
    return {match.kind.value: [] if match.kind is StringMatchKind.PRESENCE else match.value}


def _parse_string(value: Any, place: str) -> StringMatch:
    """Returns a tagged text, or the form of the dump: a mapping of one member."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((tag, given),) = value.items()
    elif isinstance(value, file.Tagged):
        tag, given = value
    else:
        raise file.wrong_type(value, "a string match: !Exact, !Prefix, !Suffix or !Presence", place)
    kind = file.variant(StringMatchKind)(tag, place)
    if kind is not StringMatchKind.PRESENCE:
        return StringMatch(kind, file.text(given, place))
    if given not in (None, "", [], {}):
        raise file.wrong_type(given, "an empty sequence", place)
    return StringMatch(kind)


STRING_MATCH = Kind(_parse_string, _read_string, _show_string)


def _read_network(message: Any) -> IPNetwork | None:
    try:
        return written_network(ip_from_bytes(message.address), message.length)
    except ValueError:
        return UNREADABLE


NETWORK_MATCH = Kind(_parse_network, _read_network, str)
