"""One pod: its listeners, its connections, its tunnels, and how they end.

The nurseries, from the outside in: tunnels (the pool's; outlives the connections that use them), connections
(accepted sockets), and the scope of the accept loops. A graceful drain cancels only the innermost one and
waits, with a deadline, until the connections have ended by themselves; an immediate stop cancels all.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from ztunnel.config import ProxyMode
from ztunnel.model.address import SocketAddress
from ztunnel.net.accept import accept_forever
from ztunnel.net.addresses import local_address, original_destination
from ztunnel.net.sockets import DestinationOrigin, Listener, SocketOptions, listen
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.errors import DrainedError
from ztunnel.proxy.inbound import InboundProxy
from ztunnel.proxy.outbound import OutboundProxy
from ztunnel.proxy.plaintext import PlaintextProxy
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.socks_task import negotiate

log = get_logger("proxy")
drain_log = get_logger("drain")


class PodProxy:
    """Runs one pod. `run` returns when the pod has ended, by `drain` or `stop`."""

    def __init__(self, context: PodContext) -> None:
        self.context = context
        self.outbound: OutboundProxy | None = None
        self.inbound: InboundProxy | None = None
        self._accepting = trio.CancelScope()
        self._connections: trio.Nursery | None = None
        self._everything = trio.CancelScope()
        self._drained_in_time = True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind everything, say ``started``, and serve until the end.

        Raises BindError before ``started`` when a socket cannot be bound; nothing is left open then.
        """
        with self._everything:
            async with trio.open_nursery() as tunnels:
                self.outbound = OutboundProxy(self.context, tunnels)
                try:
                    await self._serve(task_status)
                finally:
                    self.outbound.pool.close()
                    tunnels.cancel_scope.cancel()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        assert self.outbound is not None
        components: list[tuple[str, Listener, Callable[[socket.socket, SocketAddress], Awaitable[None]]]] = []
        try:
            shared = self.context.shared
            config = shared.config
            hbone = await self._listen(config.inbound_addr, keepalive=False)
            self.inbound = InboundProxy(self.context, transparent=hbone.transparent)
            components.append(("inbound", hbone, self._on_inbound))
            plain = await self._listen(config.inbound_plaintext_addr, keepalive=True)
            self._plaintext = PlaintextProxy(self.context, transparent=plain.transparent)
            components.append(("inbound plaintext", plain, self._on_plaintext))
            out = await self._listen(config.outbound_addr, keepalive=True)
            components.append(("outbound", out, self._on_outbound))
            if config.socks5_addr is not None:
                socks = await self._listen(config.socks5_addr, keepalive=False)
                components.append(("socks5", socks, self._on_socks))
            for component, listener, _ in components:
                log.info(
                    "listener established",
                    address=listener.address,
                    component=component,
                    transparent=listener.transparent,
                )
            task_status.started()
            async with trio.open_nursery() as connections:
                self._connections = connections
                with self._accepting:
                    async with trio.open_nursery() as loops:
                        for component, listener, handler in components:
                            loops.start_soon(
                                self._accept,
                                listener,
                                handler,
                                component,
                                connections,
                                name=f"{component} listener {listener.address}",
                            )
                for component, listener, _ in components:
                    listener.close()
                    name = "inbound passthrough" if component == "inbound plaintext" else component
                    drain_log.info("listener drained", address=listener.address, component=name)
            if connections.cancel_scope.cancelled_caught and self._drained_in_time is False:
                drain_log.warn("drain duration expired with pending connections, forcefully shutting down")
            for component, _, _ in components:
                name = "inbound passthrough" if component == "inbound plaintext" else component
                drain_log.info("shutdown complete", component=name)
        finally:
            for _, listener, _ in components:
                listener.close()

    async def _listen(self, address: SocketAddress, *, keepalive: bool) -> Listener:
        shared = self.context.shared
        config = shared.config
        in_pod = config.proxy_mode is ProxyMode.SHARED
        options = SocketOptions(
            mark=config.packet_mark if in_pod else None, keepalive=shared.keepalive if keepalive else None
        )
        return await listen(
            address,
            factory=self.context.sockets,
            options=options,
            reuse_port=in_pod and config.inpod_port_reuse,
            transparent=config.enable_orig_src,
        )

    async def _accept(
        self,
        listener: Listener,
        handler: Callable[[socket.socket, SocketAddress], Awaitable[None]],
        component: str,
        connections: trio.Nursery,
    ) -> None:
        await accept_forever(
            listener, handler, connections, component=component, budget=self.context.shared.budget
        )

    # -- ending ----------------------------------------------------------------------------------------------

    def drain(self, deadline: float) -> None:
        """Stop accepting, tell HBONE clients to go elsewhere, and cut what is left after ``deadline`` seconds."""
        self._accepting.cancel()
        if self.inbound is not None:
            self.inbound.start_drain()
        connections = self._connections
        if connections is None:
            self._everything.cancel()
            return
        self.context.cut_because = DrainedError()
        self._drained_in_time = False
        connections.cancel_scope.deadline = min(
            connections.cancel_scope.deadline, trio.current_time() + deadline
        )

    def stop(self) -> None:
        """End at once: the pod has gone."""
        self.context.cut_because = DrainedError()
        self._everything.cancel()

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
        """A bug in the task of one connection ends that connection alone."""
        try:
            await serving
        except Exception:
            log.exception("a connection's task failed; the connection is closed")
        finally:
            sock.close()

    def _destination(self, sock: socket.socket, peer: SocketAddress) -> SocketAddress | None:
        """Where a redirected connection wanted to go; None when the socket is already dead, and closed here."""
        try:
            found = original_destination(sock)
            if found.origin is DestinationOrigin.LOCAL_ADDRESS and found.errors is not None:
                first, second = found.errors
                log.debug(
                    f"failed to read SO_ORIGINAL_DST: {first}, {second}", peer=peer, local=local_address(sock)
                )
        except OSError:
            sock.close()
            return None
        return found.address
