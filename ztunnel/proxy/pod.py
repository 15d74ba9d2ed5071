"""One pod: its listeners, its connections, its tunnels, and how they end.

There are three scopes. The outer one is the nursery of the pool's tunnels, which must outlive the connections
that use them. In it is the nursery of the connections (accepted sockets), and in that the scope of the accept
loops. A drain cancels only the accept loops and then waits, with a deadline, until the connections have ended
by themselves. An immediate stop cancels everything.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

import trio

from ztunnel.dns.dns_proxy import DnsProxy
from ztunnel.model.address import SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.inbound import InboundProxy
from ztunnel.proxy.outbound import OutboundProxy
from ztunnel.proxy.plaintext import PlaintextProxy
from ztunnel.proxy.pod_dns import make_dns_proxy, make_resolver
from ztunnel.proxy.pod_listeners import (
    INBOUND,
    OUTBOUND,
    PLAINTEXT,
    SOCKS5,
    PodListeners,
    drain_name,
    open_listeners,
    say_established,
)
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.socks_task import negotiate
from ztunnel.sockets.accept import accept_forever, accept_waiting
from ztunnel.sockets.addresses import DestinationOrigin, local_address, original_destination
from ztunnel.sockets.listen import Listener, is_transparent
from ztunnel.tunnel.failures import DrainedError

log = get_logger("proxy")
drain_log = get_logger("drain")


_Handler: TypeAlias = Callable[[socket.socket, SocketAddress], Awaitable[None]]


class _Component(NamedTuple):
    """A listener, and the handler of the sockets that it accepts. ``name``: its name in logs."""

    name: str
    listener: Listener
    handler: _Handler


class PodProxy:
    """Runs one pod. `run` returns when the pod has ended, by `drain` or `stop`.

    opened: the listeners, if another process has opened them; None if `run` opens them. They are closed here.
    listeners: the sockets for what comes in, with the names of their components, for reading only.
    """

    def __init__(self, context: PodContext, opened: PodListeners | None = None) -> None:
        self.context = context
        self._opened = opened
        # If workers share the listeners, the process that opened them logs about them.
        self._say = drain_log.info if opened is None else drain_log.debug
        self.outbound: OutboundProxy | None = None
        self.inbound: InboundProxy | None = None
        self.listeners: list[tuple[str, socket.socket]] = []
        self._dns: DnsProxy | None = None
        self._accepting = trio.CancelScope()
        self._connections: trio.Nursery | None = None
        self._everything = trio.CancelScope()
        info = context.info
        self._log = log.bind_span("proxy", wl=f"{info.namespace}/{info.name}")

    async def run(self, started: Callable[[], None]) -> None:
        """Bind all sockets, call ``started``, and serve until the end.

        Raises BindError when a socket cannot be bound; then all sockets are closed.
        """
        with self._everything:
            listeners = self._opened or await self._open()
            self.listeners = [(name, one.sock) for name, one in listeners.components.items()]
            if listeners.dns is not None:
                self.listeners += [("dns", sock) for sock in listeners.dns.sockets()]
            try:
                components = self._components(listeners)
                started()
                async with trio.open_nursery() as tunnels:
                    self.outbound = OutboundProxy(self.context, tunnels)
                    try:
                        await self._serve(components)
                    finally:
                        self.outbound.pool.close()
                        tunnels.cancel_scope.cancel()
            finally:
                listeners.close()
                self.context.sources.close()

    async def _open(self) -> PodListeners:
        context = self.context
        opened = await open_listeners(
            context.shared.config,
            context.listening or context.sockets,
            inbound_only=context.inbound_only,
        )
        say_established(self._log, opened)
        return opened

    def _components(self, listeners: PodListeners) -> list[_Component]:
        """Returns the listeners with their handlers. Makes the DNS proxy first, because SOCKS5 uses it."""
        if listeners.dns is not None:
            resolver = make_resolver(self.context)
            self._dns = make_dns_proxy(self.context, resolver, listeners.dns)
            self.context.names = resolver
        handlers: dict[str, _Handler] = {
            INBOUND: self._on_inbound,
            PLAINTEXT: self._on_plaintext,
            OUTBOUND: self._on_outbound,
            SOCKS5: self._on_socks,
        }
        components = []
        for name, listener in listeners.components.items():
            if name == INBOUND:
                self.inbound = InboundProxy(self.context, transparent=listener.transparent)
            elif name == PLAINTEXT:
                self._plaintext = PlaintextProxy(self.context, transparent=listener.transparent)
            components.append(_Component(name, listener, handlers[name]))
        return components

    async def _serve(self, components: list[_Component]) -> None:
        try:
            async with trio.open_nursery() as connections:
                self._connections = connections
                with self._accepting:
                    async with trio.open_nursery() as loops:
                        if self._dns is not None:
                            loops.start_soon(self._dns.serve, connections, name="dns server")
                        for component in components:
                            name = f"{component.name} listener {component.listener.address}"
                            loops.start_soon(self._accept, component, connections, name=name)
                for component in components:
                    self._close_listener(component, connections)
                if self._dns is not None:
                    self._dns.shut()
            if connections.cancel_scope.cancelled_caught:
                drain_log.warn("drain duration expired with pending connections, forcefully shutting down")
        finally:
            for component in components:
                self._say("shutdown complete", component=drain_name(component.name))
            if self._dns is not None:
                self._dns.drained()

    def _close_listener(self, component: _Component, connections: trio.Nursery) -> None:
        """Accept what waits in the listener's queue, then close it. No await may come in between.

        To a client a connection in the queue is established; closing the listener would reset it.
        """
        accept_waiting(
            component.listener,
            component.handler,
            connections,
            component=component.name,
            budget=self.context.shared.budget,
        )
        component.listener.close()
        self._say(
            "listener drained", address=component.listener.address, component=drain_name(component.name)
        )

    async def _accept(self, component: _Component, connections: trio.Nursery) -> None:
        await accept_forever(
            component.listener,
            component.handler,
            connections,
            component=component.name,
            budget=self.context.shared.budget,
            bounds=self.context.shared.bounds.connection,
        )

    # -- ending ----------------------------------------------------------------------------------------------

    def drain(self, deadline: float) -> None:
        """Start a drain: stop accepting, send GOAWAY, and close what is left after ``deadline`` seconds."""
        self._accepting.cancel()
        if self.inbound is not None:
            self.inbound.start_drain()
        connections = self._connections
        if connections is None:
            self._everything.cancel()
            return
        self.context.cut_because = DrainedError()
        connections.cancel_scope.deadline = min(
            connections.cancel_scope.deadline, trio.current_time() + deadline
        )

    def stop(self) -> None:
        """End the pod and its connections at once, because it was removed."""
        drain_log.debug("terminating", wl=self.context.name)
        self.context.cut_because = DrainedError()
        self._everything.cancel()

    @property
    def open_sockets(self) -> int:
        """How many accepted sockets are still served: connections of applications, and tunnels of peers."""
        return 0 if self._connections is None else len(self._connections.child_tasks)

    # -- accepted sockets ------------------------------------------------------------------------------------

    async def _on_inbound(self, sock: socket.socket, peer: SocketAddress) -> None:
        assert self.inbound is not None
        with self.context.shared.traffic.socket_open("destination"):
            await self._guard(sock, self.inbound.serve(sock, peer))

    async def _on_plaintext(self, sock: socket.socket, peer: SocketAddress) -> None:
        with self.context.shared.traffic.socket_open("destination"):
            destination = self._destination(sock, peer)
            if destination is not None:
                await self._guard(sock, self._plaintext.serve(sock, peer, destination))

    async def _on_outbound(self, sock: socket.socket, client: SocketAddress) -> None:
        assert self.outbound is not None
        with self.context.shared.traffic.socket_open("source"):
            destination = self._destination(sock, client)
            if destination is not None:
                await self._guard(sock, self.outbound.serve(sock, client, destination))

    async def _on_socks(self, sock: socket.socket, client: SocketAddress) -> None:
        assert self.outbound is not None
        with self.context.shared.traffic.socket_open("source"):
            await self._guard(sock, self._serve_socks(sock, client))

    async def _serve_socks(self, sock: socket.socket, client: SocketAddress) -> None:
        assert self.outbound is not None
        destination = await negotiate(sock, client, self.context)
        if destination is not None:
            await self.outbound.serve(sock, client, destination)

    async def _guard(self, sock: socket.socket, serving: Awaitable[None]) -> None:
        """Run one connection's task and close its socket. A bug in it ends this connection only."""
        try:
            await serving
        except Exception as error:  # noqa: BLE001  # the boundary of one connection's task
            self._log.error("a connection's task failed; the connection is closed", exc_info=error)
        finally:
            sock.close()

    def _destination(self, sock: socket.socket, peer: SocketAddress) -> SocketAddress | None:
        """Returns the original destination of a redirected connection.

        Returns None when the socket is dead; then it is closed here.
        """
        try:
            found = original_destination(sock)
            if found.origin is DestinationOrigin.LOCAL_ADDRESS and found.errors is not None:
                first, second = found.errors
                # With TPROXY this is normal: the local address is the original destination.
                say = log.debug if is_transparent(sock) else log.warning
                say(
                    f"failed to read SO_ORIGINAL_DST: {first}, {second}", peer=peer, local=local_address(sock)
                )
        except OSError:
            sock.close()
            return None
        return found.address
