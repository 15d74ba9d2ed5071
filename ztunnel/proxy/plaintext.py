"""Plaintext connections that arrive for a pod (15006): from outside the mesh, redirected by the CNI."""

from __future__ import annotations

import socket

import trio

from ztunnel.decide.admit import admit_plaintext
from ztunnel.decide.plans import PolicyFacts, Refusal
from ztunnel.model.address import SocketAddress
from ztunnel.observe.access_log import Direction
from ztunnel.proxy.closing import Closing
from ztunnel.proxy.connection_table import InboundEntry
from ztunnel.proxy.inbound import dial_application
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.policy_check import check_policy
from ztunnel.proxy.relay import relay_plain
from ztunnel.proxy.report import ConnectionReport
from ztunnel.sockets.hangup import Hangup
from ztunnel.tunnel.failures import ClientGoneError, RelayError, RouteRefusedError


class PlaintextProxy:
    """The plaintext listener of one pod. ``transparent``: as for `ztunnel.proxy.inbound.InboundProxy`."""

    def __init__(self, pod: PodContext, *, transparent: bool) -> None:
        self._pod = pod
        self._transparent = transparent

    async def serve(self, sock: socket.socket, peer: SocketAddress, destination: SocketAddress) -> None:
        """Carry one connection to its application until it ends. The caller closes ``sock``.

        Failures are logged, not raised.
        """
        pod = self._pod
        report = ConnectionReport(pod, Direction.INBOUND, peer, destination)
        entry = InboundEntry(trio.CancelScope(), opened=report.began, report=report)

        def gone() -> None:
            entry.close(ClientGoneError())

        try:
            with entry.scope, pod.shared.hangups.watch(sock, gone) as hangup, Closing(report, entry):
                await self._carry(sock, peer, destination, report, entry, hangup)
        finally:
            pod.connections.inbound.discard(entry)

    async def _carry(
        self,
        sock: socket.socket,
        peer: SocketAddress,
        destination: SocketAddress,
        report: ConnectionReport,
        entry: InboundEntry,
        hangup: Hangup,
    ) -> None:
        pod = self._pod
        shared = pod.shared
        with pod.connections.awaiting(entry):
            workload = await pod.local_workload()
        plan = admit_plaintext(
            shared.store,
            workload,
            peer,
            destination,
            illegal_ports=shared.config.illegal_ports,
            spoof=self._transparent,
        )
        if isinstance(plan, Refusal):
            raise RouteRefusedError(plan)
        entry.facts = PolicyFacts(peer, plan.destination)
        pod.connections.inbound.add(entry)
        report.admitted(plan, None)
        check_policy(pod, workload, entry.facts, report)
        application = await dial_application(pod, plan.dial, plan.spoof)
        with application, shared.hangups.watch(application) as application_hangup:
            entry.sock = application
            report.phase = Phase.RELAY
            end = await relay_plain(
                sock,
                application,
                pipes=shared.pipes,
                received=report.received,
                sent=report.sent,
                hangups=(hangup, application_hangup),
                hangup_grace=shared.bounds.tunnel.hangup_grace,
            )
        if end.error is not None:
            raise RelayError(end.error)
