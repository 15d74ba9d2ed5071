"""The certificates that the data plane holds, and how a connection waits for one.

The control side fetches and renews; here is only what it sent, per identity. A connection whose identity has
no valid certificate asks for it once (however many connections wait) and is told the outcome.
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
    """One identity: its certificate with the TLS contexts made of it, and who waits for it."""

    certificate: Certificate | None = None
    client: TlsContext | None = None
    server: TlsContext | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    error: str | None = None
    asked: bool = False


class CertificateStore:
    """What `get`, `client` and `server` need is pushed by `issued`, `failed` and `forgotten`.

    want: sends a `CertificateWanted` to the control side.
    wall_clock: seconds since the epoch, to see that a certificate has expired.
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
        """The certificate in force. Waits while the first fetch is under way; the control side bounds that.

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
        """When an identity's certificate ends (seconds since the epoch), or why there is none.

        None when nobody has asked for it yet.
        """
        held = self._held.get(identity)
        if held is None:
            return None
        if held.certificate is not None:
            return held.certificate.not_after
        return held.error or "it is being fetched"

    def client(self, certificate: Certificate) -> TlsContext:
        """The TLS context with which this identity dials; made once for a certificate."""
        held = self._held.get(certificate.identity)
        if held is None or held.certificate is not certificate:
            return client_context(certificate, self._options, self._revocations)
        if held.client is None:
            held.client = client_context(certificate, self._options, self._revocations)
        return held.client

    def server(self, certificate: Certificate) -> TlsContext:
        """The TLS context with which this identity is served; made once for a certificate."""
        held = self._held.get(certificate.identity)
        if held is None or held.certificate is not certificate:
            return server_context(certificate, self._options, self._revocations)
        if held.server is None:
            held.server = server_context(certificate, self._options, self._revocations)
        return held.server

    def issued(self, certificate: Certificate) -> None:
        """A new certificate is in force; only new handshakes see it."""
        held = self._held.setdefault(certificate.identity, _Held())
        held.certificate = certificate
        held.client = held.server = None
        self._answer(held, None)

    def failed(self, identity: Identity, error: str) -> None:
        """There is no usable certificate. One that is held and has not expired stays in use."""
        held = self._held.get(identity)
        if held is not None:
            self._answer(held, error)

    def forgotten(self, identity: Identity) -> None:
        """The identity has no workload here any more; its key goes."""
        held = self._held.pop(identity, None)
        if held is not None:
            self._answer(held, "the identity is no longer needed")

    def revocations(self, revocations: Revocations | None) -> None:
        """New revocation lists: every new handshake checks against them."""
        self._revocations = revocations
        for held in self._held.values():
            held.client = held.server = None

    def _answer(self, held: _Held, error: str | None) -> None:
        held.error = error
        held.asked = False
        held.answered.set()
