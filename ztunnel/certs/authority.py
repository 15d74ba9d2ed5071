"""The interface of a certificate authority, as the secret manager uses it."""

from __future__ import annotations

from typing import Protocol

from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity


class CertificateAuthority(Protocol):
    """Issues certificates: the mesh's CA behind a `CaClient`, or a `FakeCa`."""

    async def issue(self, identity: Identity) -> Certificate:
        """Returns a new certificate with a new key for ``identity``.

        Bounded in time. Raises CaError; may be cancelled.
        """
