"""The listening sockets of a pod. Either all of them are opened or none.

The process that serves the pod opens them. With several workers, the control process opens and keeps them,
and gives each worker descriptors of the same sockets. So each port has one accept queue: a free worker
accepts from it, and it stays when a worker ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ztunnel.config.model import Config, ProxyMode
from ztunnel.dns.listeners import DnsSockets, open_dns_sockets
from ztunnel.messages import SharedSocket
from ztunnel.model.address import SocketAddress
from ztunnel.observe.logging import Logger
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.listen import Listener, SocketOptions, listen

INBOUND = "inbound"
PLAINTEXT = "inbound plaintext"
OUTBOUND = "outbound"
SOCKS5 = "socks5"
_DNS_UDP = "dns udp"
_DNS_TCP = "dns tcp"


@dataclass
class PodListeners:
    """The listeners by component, in their order, and the sockets of the DNS proxy (None without one)."""

    components: dict[str, Listener] = field(default_factory=dict)
    dns: DnsSockets | None = None

    def close(self) -> None:
        """Close all sockets."""
        for listener in self.components.values():
            listener.close()
        if self.dns is not None:
            self.dns.close()

    def shared(self) -> tuple[SharedSocket, ...]:
        """Returns duplicates of the descriptors for another process. The caller closes them.

        Raises OSError when a descriptor cannot be duplicated; then none is left open.
        """
        made: list[SharedSocket] = []
        try:
            for role, listener in self._all():
                made.append(  # one by one, so that a failure can close those before it
                    SharedSocket(
                        role, str(listener.address), os.dup(listener.sock.fileno()), listener.transparent
                    )
                )
        except OSError:
            for one in made:
                os.close(one.descriptor)
            raise
        return tuple(made)

    def _all(self) -> Iterator[tuple[str, Listener]]:
        if self.dns is not None:
            for sock, listener in zip(self.dns.datagrams, self.dns.listeners, strict=True):
                yield _DNS_UDP, Listener(sock, listener.address, transparent=False)
                yield _DNS_TCP, listener
        yield from self.components.items()


def adopt(sockets: Sequence[SharedSocket]) -> PodListeners:
    """Returns the listeners that another process has opened. It owns their descriptors from now on."""
    made = PodListeners()
    for one in sockets:
        sock = socket.socket(fileno=one.descriptor)
        listener = Listener(sock, SocketAddress.parse(one.address), one.transparent)
        if one.role in {_DNS_UDP, _DNS_TCP}:
            made.dns = made.dns or DnsSockets()
            if one.role == _DNS_UDP:
                made.dns.datagrams.append(sock)
            else:
                made.dns.listeners.append(listener)
        else:
            made.components[one.role] = listener
    return made


def configured_keepalive(config: Config) -> Keepalive | None:
    """Returns the keepalive of dialled sockets and of those accepted on 15001, 15006; None if it is off."""
    options = config.socket_config
    if not options.keepalive_enabled:
        return None
    return Keepalive(
        options.keepalive_time,
        options.keepalive_interval,
        options.keepalive_retries,
        options.user_timeout if options.user_timeout_enabled else None,
    )


async def open_listeners(config: Config, sockets: SocketFactory, *, inbound_only: bool) -> PodListeners:
    """Bind all sockets on which a pod listens. Raises BindError; then none is left open.

    sockets: makes sockets in the pod's namespace. inbound_only: as in `ztunnel.messages.PodAdded`.
    """
    keepalive = configured_keepalive(config)
    in_pod = config.proxy_mode is ProxyMode.SHARED and not inbound_only
    mark = config.packet_mark if in_pod else None

    async def open_one(
        address: SocketAddress, kept_alive: Keepalive | None, *, tunnels: bool = False
    ) -> Listener:
        # A tunnel ends by itself in an order that lets its peer tell a whole stream from a lost one.
        return await listen(
            address,
            factory=sockets,
            options=SocketOptions(mark, kept_alive, reset_on_close=not tunnels),
            reuse_port=in_pod and config.inpod_port_reuse,
            transparent=False if inbound_only else config.enable_orig_src,
        )

    made = PodListeners()
    try:
        # DNS comes first, so that names can be resolved before the first connection is accepted.
        if config.dns_proxy and not inbound_only:
            shared_mode = config.proxy_mode is ProxyMode.SHARED
            made.dns = await open_dns_sockets(
                config.dns_proxy_addr,
                sockets,
                mark=config.packet_mark if shared_mode else None,
                reuse_port=shared_mode and config.inpod_port_reuse,
            )
        if config.proxy or inbound_only:
            made.components[INBOUND] = await open_one(config.inbound_addr, None, tunnels=True)
            if not inbound_only:
                made.components[PLAINTEXT] = await open_one(config.inbound_plaintext_addr, keepalive)
                made.components[OUTBOUND] = await open_one(config.outbound_addr, keepalive)
                if config.socks5_addr is not None:
                    made.components[SOCKS5] = await open_one(config.socks5_addr, None)
    except BaseException:
        made.close()
        raise
    return made


def say_established(log: Logger, listeners: PodListeners) -> None:
    """Log that the listeners are established."""
    for name, listener in listeners.components.items():
        log.info(
            "listener established",
            address=listener.address,
            component=name,
            transparent=listener.transparent,
        )


def drain_name(component: str) -> str:
    """Returns the name of a component in the log lines of a drain."""
    return "inbound passthrough" if component == PLAINTEXT else component


def say_drained(log: Logger, listeners: PodListeners) -> None:
    """Log the end of a drain."""
    for name in listeners.components:
        log.info("shutdown complete", component=drain_name(name))
