"""One attempt of an outgoing connection: carry out one plan over TCP, a tunnel, or a tunnel in a tunnel."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ztunnel.decide.headers import print_baggage, print_forwarded
from ztunnel.decide.plans import OutboundPlan, OutboundProtocol
from ztunnel.model.address import SocketAddress
from ztunnel.proxy.attempts import Attempts, Progress
from ztunnel.proxy.connection_table import OutboundEntry
from ztunnel.proxy.inner import relay_inside
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.relay import RelayEnd, relay_plain, relay_stream
from ztunnel.proxy.report import ConnectionReport
from ztunnel.sockets.hangup import Hangup

if TYPE_CHECKING:
    from ztunnel.proxy.outbound import OutboundProxy


class OutboundAttempt:
    """One attempt: carries out one plan for one connection."""

    def __init__(
        self,
        proxy: OutboundProxy,
        sock: socket.socket,
        client: SocketAddress,
        plan: OutboundPlan,
        report: ConnectionReport,
        entry: OutboundEntry,
        hangup: Hangup,
    ) -> None:
        self._proxy = proxy
        self._sock = sock
        self._client = client
        self._plan = plan
        self._report = report
        self._entry = entry
        self._hangup = hangup
        self.progress = Progress.DIALLING

    async def run(self, attempts: Attempts) -> RelayEnd:
        """Establish the connection and relay it until it ends.

        Raises ConnectionFailure if it cannot be made.
        """
        plan, report, sock = self._plan, self._report, self._sock
        shared = self._proxy.shared

        def established() -> None:
            self.progress = Progress.ESTABLISHED
            report.phase = Phase.RELAY
            attempts.succeeded(plan)

        try_timeout = attempts.try_timeout(plan)
        if plan.protocol is OutboundProtocol.TCP:
            report.phase = Phase.DIAL
            with (
                await self._proxy.connect(
                    plan.next_hop, try_timeout, attempts.waited, reset_on_close=True
                ) as upstream,
                shared.hangups.watch(upstream) as upstream_hangup,
            ):
                established()
                return await relay_plain(
                    sock,
                    upstream,
                    pipes=shared.pipes,
                    received=report.received,
                    sent=report.sent,
                    hangups=(self._hangup, upstream_hangup),
                    hangup_grace=shared.bounds.tunnel.hangup_grace,
                )
        fields = self._fields()
        # No endpoint is to be blamed for the time until we have a certificate ourselves.
        report.phase = Phase.CERTIFICATE
        await shared.certificates.get(plan.source.identity)
        report.phase = Phase.ENDPOINT
        stream = await self._proxy.open(plan, self._client, fields, try_timeout)
        self._entry.tunnels = (stream.tunnel,)
        self._entry.stream = stream
        if plan.protocol is OutboundProtocol.HBONE:
            established()
            return await relay_stream(
                sock,
                stream,
                sent_to_stream=report.received,
                received_from_stream=report.sent,
                outbound=True,
                hangup=self._hangup,
            )
        self.progress = Progress.OUTER
        try:
            return await relay_inside(
                sock, stream, plan, fields, shared, report, self._entry, established, self._hangup
            )
        finally:
            stream.close()

    def _fields(self) -> list[tuple[str, str]]:
        """Returns the header fields of the CONNECT, in the order of the Rust ztunnel."""
        service = self._plan.destination_service
        return [
            ("baggage", print_baggage(self._plan.source)),
            ("forwarded", print_forwarded(self._client, service.hostname if service else None)),
            ("traceparent", str(self._report.trace)),
        ]
