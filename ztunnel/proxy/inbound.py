"""Connections that arrive for a pod over HBONE (15008): TLS, HTTP/2, then each CONNECT by itself.

The order of the checks (docs/protocol/data-path.md#connect-order-of-checks): what the request asks for, where
it leads, whether policy allows it. Only then is the application dialled. 200 is sent after the application
accepted the connection, so a client never sees a success that did not happen.
"""

from __future__ import annotations

import socket

import trio

from ztunnel.decide.admit import admit_connect
from ztunnel.decide.headers import ConnectHeaders, print_baggage
from ztunnel.decide.plans import ConnectFacts, InboundPlan, PolicyFacts, Refusal
from ztunnel.errors import os_error_text
from ztunnel.hbone import ConnectReceived, HboneServer
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.observe import families
from ztunnel.observe.access_log import Direction
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.closing import Closing
from ztunnel.proxy.connection_table import ConnectionEntry, InboundEntry
from ztunnel.proxy.handshakes import Handshake
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.policy_check import check_policy
from ztunnel.proxy.relay import relay_stream
from ztunnel.proxy.report import ConnectionReport
from ztunnel.sockets.addresses import local_address
from ztunnel.sockets.dial import connect
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import HandshakeEofError, RevokedCertificateError, TlsError
from ztunnel.tunnel.failures import (
    ApplicationDialError,
    ClientGoneError,
    ConnectionFailure,
    DialError,
    HandshakeRefusedError,
    PolicyRejectedError,
    RelayError,
    RouteRefusedError,
)
from ztunnel.tunnel.rest import give_way
from ztunnel.tunnel.server_tunnel import ServerStream, ServerTunnel

log = get_logger("proxy::inbound")


class InboundProxy:
    """The HBONE server of one pod.

    transparent: whether the application may see the client's address as source (IP_TRANSPARENT).
    """

    def __init__(self, pod: PodContext, *, transparent: bool) -> None:
        self._pod = pod
        self._transparent = transparent
        self.tunnels: set[ServerTunnel] = set()
        self._draining = False

    def start_drain(self) -> None:
        """Send GOAWAY on every tunnel; a tunnel that comes later gets it at once."""
        self._draining = True
        for tunnel in self.tunnels:
            tunnel.start_drain()

    async def serve(self, sock: socket.socket, peer: SocketAddress) -> None:
        """Serve one accepted connection until it ends, and close ``sock``.

        Failures are logged, not raised.
        """
        pod = self._pod
        local = local_address(sock)
        report = ConnectionReport(pod, Direction.INBOUND, peer, local)
        entry = ConnectionEntry(trio.CancelScope(), report=report, sock=sock)
        handshake = pod.shared.handshakes.begin(peer.ip)
        tls = None
        try:
            with pod.connections.awaiting(entry):
                tls = await self._greeted(sock, peer, handshake, report, entry)
        finally:
            if tls is None:
                sock.close()
        if tls is not None:
            await self._serve_tunnel(tls, peer, local, handshake)

    async def _greeted(
        self,
        sock: socket.socket,
        peer: SocketAddress,
        handshake: Handshake,
        report: ConnectionReport,
        entry: ConnectionEntry,
    ) -> SocketTls | None:
        """Do the TLS handshake. Returns the TLS connection; None when it failed, which is logged."""
        pod, shared, certificate = self._pod, self._pod.shared, None
        try:
            # Nobody reads the socket during these waits, so only the watch sees that the client has reset it.
            with entry.scope, shared.hangups.watch(sock, entry.scope.cancel):
                workload = await pod.local_workload()
                report.phase = Phase.CERTIFICATE
                certificate = await shared.certificates.get(workload.identity)
            if certificate is None:
                log.debug("a connection ended before its first byte", peer=peer)
                return None
            tls = SocketTls(shared.certificates.server(certificate), sock)
        except ConnectionFailure as failure:
            report.refused(failure)
            return None
        report.phase = Phase.HANDSHAKE
        began = trio.current_time()
        try:
            limits = shared.bounds.connection
            await tls.handshake(
                limits.handshake_timeout, alert_seconds=limits.alert_timeout, turn=handshake.turn
            )
        except (TlsError, OSError) as error:
            tls.close()
            if isinstance(error, RevokedCertificateError):
                shared.traffic.crl_rejected("destination")
            if isinstance(error, HandshakeEofError) and error.silent:
                handshake.paid()
                log.debug("a connection ended before its first byte", peer=peer)
            else:
                report.refused(HandshakeRefusedError(error))
            return None
        except BaseException:
            tls.close()
            raise
        shared.traffic.duration(families.TLS_HANDSHAKE, trio.current_time() - began, "destination")
        return tls

    async def _serve_tunnel(
        self, tls: SocketTls, peer: SocketAddress, local: SocketAddress, handshake: Handshake
    ) -> None:
        shared = self._pod.shared
        async with trio.open_nursery() as streams:

            def on_connect(stream: ServerStream, request: ConnectReceived) -> None:
                handshake.paid()
                name = f"inbound {peer} → {request.authority}"
                streams.start_soon(self._serve_stream, stream, request, peer, local, name=name)

            tunnel = ServerTunnel(
                tls,
                HboneServer(shared.hbone_settings, shared.window_budget),
                on_connect,
                shared.bounds.tunnel,
            )
            self.tunnels.add(tunnel)
            try:
                if self._draining:
                    tunnel.start_drain()
                await tunnel.run()
            finally:
                self.tunnels.discard(tunnel)
        if tunnel.abused:
            handshake.abused()
        if tunnel.failure is not None:
            log.debug("tunnel ended", peer=peer, error=tunnel.failure)

    async def _serve_stream(
        self, stream: ServerStream, request: ConnectReceived, peer: SocketAddress, local: SocketAddress
    ) -> None:
        """Serve one CONNECT. A bug in doing so ends this connection and not its tunnel."""
        try:
            if stream.tunnel.many:
                await give_way()
            await _Connect(self._pod, stream, request, peer, local, transparent=self._transparent).serve()
        except Exception as error:
            log.error("a connection's task failed; the connection is closed", peer=peer, exc_info=error)
        finally:
            stream.close()


class _Connect:
    """One CONNECT, from its request to the end of its connection.

    peer, local: the addresses of the tunnel's two ends. transparent: as for `InboundProxy`.
    """

    def __init__(
        self,
        pod: PodContext,
        stream: ServerStream,
        request: ConnectReceived,
        peer: SocketAddress,
        local: SocketAddress,
        *,
        transparent: bool,
    ) -> None:
        self._pod = pod
        self._stream = stream
        self._request = request
        self._peer = peer
        self._local = local
        self._transparent = transparent
        identities = stream.tunnel.tls.peer_identities
        self._identity = identities[0] if identities else None
        headers = ConnectHeaders.read(request.headers)
        self._report = ConnectionReport(
            pod, Direction.INBOUND, peer, local, authority=request.authority, headers=headers
        )
        self._entry = InboundEntry(
            trio.CancelScope(),
            opened=self._report.began,
            report=self._report,
            tunnels=(stream.tunnel,),
            forwarded_host=headers.forwarded_host,
        )

    async def serve(self) -> None:
        """Serve the connection until it ends. Every failure is answered and logged here, and not raised."""
        try:
            with self._entry.scope, Closing(self._report, self._entry):
                try:
                    await self._admit_and_carry()
                except ConnectionFailure as failure:
                    self._refuse(failure)
                    raise
        finally:
            self._stream.on_death = None
            self._pod.connections.inbound.discard(self._entry)

    async def _admit_and_carry(self) -> None:
        pod, stream, report = self._pod, self._stream, self._report
        if stream.dead:
            raise ClientGoneError
        # Until the relay reads the stream, only this callback ends the task when the client resets it.
        stream.on_death = lambda: self._entry.close(ClientGoneError())
        shared = pod.shared
        with pod.connections.awaiting(self._entry):
            workload = await self._destined()
        plan = self._admit(workload)
        facts = PolicyFacts(self._peer, plan.destination, self._identity)
        self._entry.facts = facts
        # Added before policy is checked: a change of policy from now on checks this connection again.
        pod.connections.inbound.add(self._entry)
        report.admitted(plan, self._identity)
        check_policy(pod, workload, facts, report, stream.tunnel.tls.peer_identities)
        application = await self._dial(plan)
        stream.on_death = None
        with application, shared.hangups.watch(application) as hangup:
            self._entry.sock, self._entry.stream = application, stream
            report.phase = Phase.RELAY
            fields = []
            if shared.config.enable_response_baggage:
                fields.append(("baggage", print_baggage(workload)))
            stream.accept(fields)
            if plan.proxy_header is not None:
                await _write(application, plan.proxy_header)
            end = await relay_stream(
                application,
                stream,
                sent_to_stream=report.sent,
                received_from_stream=report.received,
                outbound=False,
                hangup=hangup,
            )
        if end.error is not None:
            raise RelayError(end.error)

    async def _destined(self) -> Workload:
        """Returns the pod's own workload, when what is needed to decide is there."""
        pod, shared = self._pod, self._pod.shared
        workload = await pod.local_workload()
        if shared.demands is not None:
            self._report.phase = Phase.DESTINATION
            await shared.demands.authority(
                self._request.authority, self._local, workload, shared.config.network
            )
            # Policies may have been attached to it meanwhile, and the table knows nothing of us yet.
            workload = await pod.local_workload()
        return workload

    def _admit(self, workload: Workload) -> InboundPlan:
        config = self._pod.shared.config
        facts = ConnectFacts(
            method=self._request.method,
            authority=self._request.authority,
            local=self._local,
            peer=self._peer,
            workload=workload,
            identity=self._identity,
            forwarded_host=self._entry.forwarded_host,
            network=config.network,
        )
        plan = admit_connect(
            self._pod.shared.store,
            facts,
            illegal_ports=config.illegal_ports,
            localhost_app_tunnel=config.localhost_app_tunnel,
            spoof=self._transparent,
        )
        if isinstance(plan, Refusal):
            raise RouteRefusedError(plan)
        return plan

    async def _dial(self, plan: InboundPlan) -> socket.socket:
        return await dial_application(self._pod, plan.dial, plan.spoof)

    def _refuse(self, failure: ConnectionFailure) -> None:
        """Answer the CONNECT with an error status. Does nothing if it was answered before."""
        status = 503
        if isinstance(failure, RouteRefusedError):
            status = failure.refusal.status
        elif isinstance(failure, PolicyRejectedError):
            status = 401
        self._stream.refuse(status)


async def dial_application(
    pod: PodContext, destination: SocketAddress, source: SocketAddress | None
) -> socket.socket:
    """Connect to an application of the pod. Returns the socket, which the caller closes.

    source: the client's address, which the application sees; None if it sees ours. Raises
    ApplicationDialError.
    """
    try:
        return await connect(
            destination,
            factory=pod.sockets,
            client=source.ip if source is not None else None,
            sources=pod.sources,
            mark=pod.mark,
            keepalive=pod.shared.keepalive,
            reset_on_close=True,
            timeout=pod.shared.bounds.connection.dial_timeout,
        )
    except OSError as error:
        raise ApplicationDialError(os_error_text(error)) from error


async def _write(sock: socket.socket, data: bytes) -> None:
    """Write a PROXY protocol header, which comes before the first byte. Raises DialError."""
    view = memoryview(data)
    try:
        while view:
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
    except OSError as error:
        raise DialError(os_error_text(error)) from error
