"""Addresses: of sockets, of networks, and references to gateways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network


def canonical(ip: IPAddress) -> IPAddress:
    """Unmap an IPv4 address that a dual-stack socket shows as ``::ffff:a.b.c.d``."""
    if isinstance(ip, IPv6Address):
        mapped = ip.ipv4_mapped
        if mapped is not None:
            return mapped
    return ip


def parse_ip(text: str) -> IPAddress:
    """Read an address and unmap it. A scope id (``%eth0``) is dropped. Raises ValueError."""
    return canonical(ip_address(text.partition("%")[0]))


class _Written:
    """A network that keeps the host bits it was written with: ``11.0.0.1/8``. It compares without them."""

    def __init__(self, ip: IPAddress, length: int) -> None:
        super().__init__((ip, length), strict=False)  # type: ignore[call-arg]  # of the network it is mixed into
        self.written = f"{ip}/{length}"

    def __str__(self) -> str:
        return self.written


class _WrittenIPv4Network(_Written, IPv4Network):
    pass


class _WrittenIPv6Network(_Written, IPv6Network):
    pass


def written_network(ip: IPAddress, length: int) -> IPNetwork:
    """Returns the network of a prefix length, whose ``str()`` has the host bits. Raises ValueError."""
    if not 0 <= length <= ip.max_prefixlen:
        raise ValueError("invalid IP prefix length")
    # The stock class is smaller, and pickles and compares as such; most networks have no host bits.
    if isinstance(ip, IPv4Address):
        network = IPv4Network((ip, length), strict=False)
        return network if network.network_address == ip else _WrittenIPv4Network(ip, length)
    network6 = IPv6Network((ip, length), strict=False)
    return network6 if network6.network_address == ip else _WrittenIPv6Network(ip, length)


@lru_cache(maxsize=8192)
def _before_port(ip: IPAddress) -> str:
    # A connection's addresses are written a dozen times, and most are those of the connection before.
    return f"{ip}:" if ip.version == 4 else f"[{ip}]:"


class SocketAddress(NamedTuple):
    """An address and a port, 0 to 65535. ``str()`` gives ``1.2.3.4:80`` or ``[::1]:80``."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return f"{_before_port(self.ip)}{self.port}"

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Read ``1.2.3.4:80`` or ``[::1]:80``. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if (
            not colon
            or not (port.isascii() and port.isdigit())
            or int(port) > 0xFFFF
            or (":" in host) != bracketed
        ):
            raise ValueError(f"{text!r} is not ip:port")
        return cls(parse_ip(host), int(port))


class NetworkAddress(NamedTuple):
    """An address within a named network. ``str()`` gives ``network/ip``; the empty network is ordinary."""

    network: str
    ip: IPAddress

    def __str__(self) -> str:
        return f"{self.network}/{self.ip}"


class NamespacedHostname(NamedTuple):
    """The key of a service. ``str()`` gives ``namespace/hostname``."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"

    @classmethod
    def parse(cls, text: str) -> NamespacedHostname:
        """Split at the first slash. Raises ValueError when there is none."""
        namespace, slash, hostname = text.partition("/")
        if not slash:
            raise ValueError(f"failed to parse namespaced hostname: {text}")
        return cls(namespace, hostname)


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """A reference to a waypoint or a network gateway, by address or by service hostname."""

    destination: NetworkAddress | NamespacedHostname
    hbone_mtls_port: int
