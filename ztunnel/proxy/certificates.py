"""The certificates of the data plane, and how a connection waits for one.

The control side fetches and renews certificates; this store holds what it sent, by identity. When an identity
has no valid certificate, its connections wait, and one request goes to the control side for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ztunnel.messages import CertificateWanted
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.tls.context import TlsContext, TlsOptions, client_context, server_context
from ztunnel.tls.revocation import Revocations
from ztunnel.tunnel.failures import IdentityUnavailableError


@dataclass(slots=True)
class _Held:
    """One identity: its certificate, the TLS contexts made from it, and the request for it.

    asked: a request is under way. answered: set when it was answered. error: why there is no certificate.
    """

    certificate: Certificate | None = None
    client: TlsContext | None = None
    server: TlsContext | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    error: str | None = None
    asked: bool = False


class CertificateStore:
    """Connections call `get`, `client` and `server`; the control side's messages call the other methods.

    want: sends a `CertificateWanted` to the control side.
    wall_clock: returns seconds since the epoch, to see whether a certificate has expired.
    """

    def __init__(
        self, want: Callable[[CertificateWanted], None], options: TlsOptions, wall_clock: Callable[[], float]
    ) -> None:
        self._want = want
        self._options = options
        self._wall_clock = wall_clock
        self._held: dict[Identity, _Held] = {}
        self._revocations: Revocations | None = None

    async def get(self, identity: Identity) -> Certificate:
        """Returns the certificate in force. Waits for it if there is none; the control side limits that wait.

        Raises IdentityUnavailableError with the control side's reason.
        """
        while True:
            held = self._held.get(identity)
            if held is None:
                held = self._held[identity] = _Held()
            certificate = held.certificate
            if certificate is not None and self._wall_clock() < certificate.not_after:
                return certificate
            if not held.asked:
                held.asked = True
                held.error = None
                held.answered = trio.Event()
                self._want(CertificateWanted(identity))
            await held.answered.wait()
            if held.error is not None:
                raise IdentityUnavailableError(held.error)

    def state(self, identity: Identity) -> float | str | None:
        """Returns when an identity's certificate expires (seconds since the epoch), or why there is none.

        Returns None when no connection has asked for it yet.
        """
        held = self._held.get(identity)
        if held is None:
            return None
        if held.certificate is not None:
            return held.certificate.not_after
        return held.error or "it is being fetched"

    def client(self, certificate: Certificate) -> TlsContext:
        """Returns the TLS context for dialling with this certificate.

        It is made once for each certificate.
        """
        held = self._held.get(certificate.identity)
        if held is None or held.certificate is not certificate:
            return client_context(certificate, self._options, self._revocations)
        if held.client is None:
            held.client = client_context(certificate, self._options, self._revocations)
        return held.client

    def server(self, certificate: Certificate) -> TlsContext:
        """Returns the TLS context for serving with this certificate. It is made once for each certificate."""
        held = self._held.get(certificate.identity)
        if held is None or held.certificate is not certificate:
            return server_context(certificate, self._options, self._revocations)
        if held.server is None:
            held.server = server_context(certificate, self._options, self._revocations)
        return held.server

    def issued(self, certificate: Certificate) -> None:
        """Put a new certificate in force, for new handshakes. Open tunnels keep theirs."""
        held = self._held.setdefault(certificate.identity, _Held())
        held.certificate = certificate
        held.client = held.server = None
        self._answer(held, None)

    def failed(self, identity: Identity, error: str) -> None:
        """The control side could not get a certificate. A certificate that has not expired stays in use."""
        held = self._held.get(identity)
        if held is not None:
            self._answer(held, error)

    def forgotten(self, identity: Identity) -> None:
        """Drop an identity with its key, because no workload of the node has it any more."""
        held = self._held.pop(identity, None)
        if held is not None:
            self._answer(held, "the identity is no longer needed")

    def revocations(self, revocations: Revocations | None) -> None:
        """Use new revocation lists for all new handshakes."""
        self._revocations = revocations
        for held in self._held.values():
            held.client = held.server = None

    def _answer(self, held: _Held, error: str | None) -> None:
        held.error = error
        held.asked = False
        held.answered.set()
