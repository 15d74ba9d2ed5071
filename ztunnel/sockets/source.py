"""Lets an application see its client's address as the source, although ztunnel connects to it.

The simple way is to bind the socket to the client's address (IP_TRANSPARENT). The problem is the port.
Connection tracking identifies a connection by addresses and ports. A client that also reaches this pod in
plaintext has connections from the same address to the same application, in the same namespace. If both use
one port, the client's packets are taken for ours or ours for the client's, and one of them waits forever. No
choice of the port prevents that, because the client may choose the same one a moment later.

So the socket is bound to an address that nobody else has (``127.64.0.0/10``, ``100::/64``), and connection
tracking translates it to the client's address. The entry for that is added over netlink before the first
packet (`ztunnel.sockets.conntrack`). Packets of client and ztunnel then always differ on the way in. The
kernel refuses an entry whose answers would be ambiguous, and another port is tried. This costs 18 µs for a
connection and 1 µs for a round trip, independent of the number of connections; binding to an address with
many ports in TIME-WAIT takes a third of a millisecond and more (docs/measurements/source-ports.md).

The ports of these addresses lie above the range that Linux gives to a pod's own connections: a port that is
bound, whatever the address, is given to none of them, also for the minute of TIME-WAIT.

The translation works only with the CNI's rules: without a NAT rule in the namespace the kernel translates
nothing. So each pod tries it once with a listener of its own. If it does not work, the simple way is used,
with ports from a range that clients rarely use, and that is logged.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import ClassVar

import trio

from ztunnel.bounds import DEFAULTS, ConnectionBounds
from ztunnel.errors import ZtunnelError, os_error_text
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.sockets.conntrack import Conntrack, ConntrackEndpoint
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.linux import IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT

log = get_logger("socket")

_FIRST_PORT = 1024
_HIDDEN_PORTS = range(61000, 65536)  # above the pod's own, and no application listens there
_PLAIN_PORTS = range(16384, 32768)  # below the range that Linux gives to clients
_TRIES = 64


class SharedPortsError(ZtunnelError):
    """Applications see connections from ports that clients may use too."""

    code: ClassVar[str] = "ZT-NET-015"

    def __str__(self) -> str:
        return f"connections to the application share their ports with its clients' own: {self.args[0]}"


class _UntrackedError(Exception):
    """The translation cannot be used for this connection."""


class ClientSources:
    """Shows clients' addresses to the applications of one pod. ``factory``: makes the pod's sockets.

    `close` it with the pod.
    """

    def __init__(
        self, factory: SocketFactory, random: Random, bounds: ConnectionBounds = DEFAULTS.connection
    ) -> None:
        self._bounds = bounds
        self._factory = factory
        self._random = random
        self._table: Conntrack | None = None
        self._translates: dict[int, bool] = {}
        self._try_again: dict[int, float] = {}
        self._trial = trio.Lock()
        self._closed = False
        self._next_port = random.randrange(bounds.source_ports)
        self._next_hidden = random.randrange(1 << 40)

    def close(self) -> None:
        """Close its sockets. Existing connections are not affected."""
        self._closed = True
        if self._table is not None:
            self._table.close()
            self._table = None

    def ready(self, version: int) -> bool:
        """Whether `prepare` does not wait: it is known whether this IP version can be translated."""
        return version in self._translates and trio.current_time() < self._try_again.get(version, 0)

    async def prepare(self, sock: socket.socket, destination: SocketAddress, client: IPAddress) -> None:
        """Let ``sock`` come from ``client``. It must have its mark and must not be bound yet.

        A failure is only logged; the application then sees this pod's address.
        """
        version = destination.ip.version
        if client.version != version:
            log.warn(
                f"failed to bind local addr: {client} and {destination.ip} are of different address families"
            )
            return
        if not self.ready(version):
            await self._find_out(destination.ip, client, sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
        if self._translates.get(version):
            try:
                self._bind_translated(sock, destination, client)
            except _UntrackedError as reason:
                self._warn(version, str(reason))
            else:
                return
        _bind_plain(sock, client, self._random)

    # -- with translation --------------------------------------------------------------------------------

    def _bind_translated(self, sock: socket.socket, destination: SocketAddress, client: IPAddress) -> None:
        """Bind to an unused address, which the application sees as the client's. Raises _UntrackedError."""
        if self._table is None:
            raise _UntrackedError("the pod is being closed")
        target = ConntrackEndpoint(destination.ip.packed, destination.port)
        try:
            if destination.ip.version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            # The application may want to listen on all addresses at a port that is in use here.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for _ in range(_TRIES):
                hidden = self._hidden(destination.ip.version)
                self._add(hidden, target, client.packed)
                if _bound(sock, hidden):
                    return
        except OSError as error:
            raise _UntrackedError(os_error_text(error)) from error
        raise _UntrackedError("no address is free")

    def _add(self, hidden: ConntrackEndpoint, target: ConntrackEndpoint, client: bytes) -> None:
        """Find a port of the client's address for which the table accepts an entry. Raises OSError."""
        assert self._table is not None
        for _ in range(_TRIES):
            self._next_port = (self._next_port + 1) % self._bounds.source_ports
            shown = ConntrackEndpoint(client, _FIRST_PORT + self._next_port)
            if self._table.add(hidden, target, shown):
                return
            # All ports were used once. The old entry here has ended long ago, or it is skipped.
            if self._table.forget_ended(target, shown) and self._table.add(hidden, target, shown):
                return
        raise OSError(errno.EADDRNOTAVAIL, "no port of the client's address is free")

    def _hidden(self, version: int) -> ConntrackEndpoint:
        """Returns the next address and port to bind to.

        They repeat after nineteen billion connections.
        """
        self._next_hidden += 1
        host, port = divmod(self._next_hidden, len(_HIDDEN_PORTS))
        if version == 4:
            address = (0x7F400000 | host % (1 << 22)).to_bytes(4, "big")
        else:
            address = ((0x0100 << 112) | host % (1 << 64)).to_bytes(16, "big")
        return ConntrackEndpoint(address, _HIDDEN_PORTS[port])

    # -- the trial -----------------------------------------------------------------------------------------

    async def _find_out(self, own: IPAddress, client: IPAddress, mark: int) -> None:
        """Try the translation once, for all who wait."""
        version = own.version
        async with self._trial:
            if self.ready(version):
                return
            problem = "no answer within the machine"
            # It stays within the machine, so only a lost packet makes it wait.
            with trio.move_on_after(self._bounds.source_trial):
                try:
                    problem = await self._tried(own, client, mark)
                except (OSError, _UntrackedError) as error:
                    problem = os_error_text(error) if isinstance(error, OSError) else str(error)
            self._translates[version] = not problem
            # The CNI's rules may have been installed meanwhile.
            again = trio.current_time() + self._bounds.source_retrial
            self._try_again[version] = again if problem else float("inf")
            if problem:
                self._warn(version, problem)

    async def _tried(self, own: IPAddress, client: IPAddress, mark: int) -> str:
        """Connect to a listener of ours.

        Returns what was wrong with the source it saw; empty if it saw the client.
        """
        if self._closed:
            return "the pod is being closed"
        if self._table is None:
            self._table = Conntrack(await self._factory.conntrack(), self._bounds.source_entry)
        family = socket.AF_INET if own.version == 4 else socket.AF_INET6
        with await self._factory.stream(family) as listener, await self._factory.stream(family) as near:
            listener.bind((str(own), 0))
            listener.listen(1)
            port = listener.getsockname()[1]
            if mark:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._bind_translated(near, SocketAddress(own, port), client)
            if near.connect_ex((str(own), port)) not in {0, errno.EINPROGRESS}:
                return "this machine cannot be reached"
            await trio.lowlevel.wait_writable(near)
            await trio.lowlevel.wait_readable(listener)
            far, (seen, *_) = listener.accept()
            far.close()
            return "" if seen == str(client) else "the kernel translates no addresses here"

    def _warn(self, version: int, reason: str) -> None:
        error = SharedPortsError(reason)
        log.warn(str(error), code=error.code, family=f"IPv{version}")


def _bound(sock: socket.socket, endpoint: ConntrackEndpoint) -> bool:
    address = IPv4Address(endpoint.ip) if len(endpoint.ip) == 4 else IPv6Address(endpoint.ip)
    try:
        sock.bind((str(address), endpoint.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _bind_plain(sock: socket.socket, client: IPAddress, random: Random) -> None:
    """Bind to a foreign address. A failure is only logged; the application then sees our address."""
    try:
        if client.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    except OSError as error:
        log.warn(f"failed to set freebind: {os_error_text(error)}")
        return
    try:
        for _ in range(8):
            if _bound(sock, ConntrackEndpoint(client.packed, random.choice(_PLAIN_PORTS))):
                return
        sock.bind((str(client), 0))
    except OSError as error:
        log.warn(f"failed to bind local addr: {os_error_text(error)}")
