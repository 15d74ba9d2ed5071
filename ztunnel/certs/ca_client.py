"""The client of the mesh's CA: one CreateCertificate call for each certificate.

docs/protocol/operations.md#ca-client describes the call.

Roots and token rotate while the process runs, so both are read for each call. The channel stays open between
calls. When the bytes of the roots have changed, a new channel is made; if that fails, for instance because
the file is just being written, the old one stays in use.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.certs.certificate_errors import (
    CaChainError,
    CaError,
    CaRootsError,
    CaTokenError,
    CaUnreachableError,
)
from ztunnel.certs.chain import read_chain
from ztunnel.certs.istio_ca import decode_response, encode_request
from ztunnel.certs.request import make_signing_request
from ztunnel.config.model import Config, ProxyMode
from ztunnel.config.parse_values import authority
from ztunnel.grpc.bridge import GrpcChannel
from ztunnel.grpc.credentials import RootsError, TokenError, authorization, read_roots
from ztunnel.grpc.status import GrpcChannelError, GrpcStatusError, Metadata
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.observe.logging import get_logger

CREATE_CERTIFICATE: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

log = get_logger("identity::caclient")


class Channel(Protocol):
    """The part of a gRPC channel that the client uses."""

    async def unary(
        self, method: str, request: bytes, *, metadata: Metadata = (), deadline_seconds: float
    ) -> bytes:
        """Make one call and return its answer. Raises GrpcStatusError or GrpcChannelError."""

    async def aclose(self) -> None:
        """Close the channel."""


class CaClient:
    """A `CertificateAuthority` behind ``config.ca_address``.

    `aclose`, or leaving ``async with``, ends its connection.

    make_channel: makes a channel from the roots' PEM; a parameter for tests.
    """

    def __init__(
        self,
        config: Config,
        make_channel: Callable[[bytes], Channel] | None = None,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        if config.ca_address is None:
            raise ValueError("there is no CA address")
        target = authority(config.ca_address)
        self._config = config
        self._impersonate = config.proxy_mode is ProxyMode.SHARED
        self._make_channel = make_channel or (
            lambda roots: GrpcChannel(
                target,
                roots=roots,
                alternative_hostname=config.alt_ca_hostname,
                tls12=config.tls12_enabled,
                bounds=bounds,
            )
        )
        self._connection: _Connection | None = None

    async def issue(self, identity: Identity) -> Certificate:
        """Returns a new key, and a certificate for it. Takes at most `ControlBounds.ca_call`.

        Raises CaError.
        """
        try:
            request = make_signing_request(identity)
        except ValueError as error:
            raise CaError(f"no certificate can be asked for {identity}: {error}") from error
        metadata = self._metadata()
        connection, before = self._connected()
        body = encode_request(
            request.csr, int(self._config.secret_ttl), identity if self._impersonate else None
        )
        try:
            async with connection as channel:
                if before is not None:
                    await before.retire()
                answer = await channel.unary(
                    CREATE_CERTIFICATE, body, metadata=metadata, deadline_seconds=self._bounds.ca_call
                )
        except GrpcStatusError as error:
            raise CaUnreachableError(error.status, error.meaning, error.details) from error
        except GrpcChannelError as error:
            raise CaTokenError(str(error)) from error
        try:
            chain = decode_response(answer)
        except ValueError as error:
            raise CaChainError(f"the CA's answer for {identity} cannot be read: {error}") from error
        if len(chain) == 1:
            log.warn(f"no chain certs for: {identity}")
        return read_chain(identity, request.private_key, chain, check_identity=self._impersonate)

    def _metadata(self) -> list[tuple[str, str]]:
        config = self._config
        try:
            return [*authorization(config.auth, config.cluster_id), *config.ca_headers]
        except TokenError as error:
            raise CaTokenError(str(error)) from error

    def _connected(self) -> tuple[_Connection, _Connection | None]:
        """Returns the connection, made anew if the roots have changed, and the one to retire then.

        Raises CaRootsError.
        """
        connection = self._connection
        try:
            roots = read_roots(self._config.ca_root_cert)
            if connection is None or roots != connection.roots:
                self._connection = _Connection(self._make_channel(roots), roots)
                return self._connection, connection
        except (RootsError, GrpcChannelError) as error:
            if connection is None:
                raise CaRootsError(str(error)) from error
            log.warn(
                "the CA's root certificates cannot be read again; those read before stay in use", error=error
            )
        return connection, None

    async def aclose(self) -> None:
        """End the connection and the calls on it. The next call makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.channel.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Connection:
    """A channel, and the roots with which it was made.

    Once retired, it is closed when its last call has ended.
    """

    def __init__(self, channel: Channel, roots: bytes) -> None:
        self.channel = channel
        self.roots = roots
        self._calls = 0
        self._retired = False

    async def retire(self) -> None:
        self._retired = True
        if self._calls == 0:
            await self.channel.aclose()

    async def __aenter__(self) -> Channel:
        self._calls += 1
        return self.channel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls -= 1
        if self._retired and self._calls == 0:
            await self.channel.aclose()
