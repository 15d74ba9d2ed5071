"""Opens a stream to the control plane: each time a new connection, with roots and token read again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import Config
from ztunnel.config.parse_values import authority
from ztunnel.grpc.bridge import GrpcChannel, GrpcStream
from ztunnel.grpc.credentials import TokenError, authorization, read_roots
from ztunnel.grpc.status import GrpcStatusError
from ztunnel.xds.xds_client import Connect, StatusError, XdsStream

DELTA_STREAM = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def connector(config: Config, bounds: ControlBounds = DEFAULTS.control) -> Connect:
    """Returns a function that opens a stream to ``config.xds_address``, which must be set.

    The stream's context manager owns its connection and closes it. Entering it raises `ZtunnelError` when the
    roots cannot be read or the metadata cannot be sent, and `StatusError` when the token cannot be read.
    """
    if config.xds_address is None:
        raise ValueError("there is no address to connect to")
    address = authority(config.xds_address)

    @asynccontextmanager
    async def connect() -> AsyncIterator[XdsStream]:
        roots = read_roots(config.xds_root_cert)
        try:
            metadata = [*authorization(config.auth, config.cluster_id), *config.xds_headers]
        except TokenError as error:
            raise StatusError("Unknown", str(error)) from None
        channel = GrpcChannel(
            address,
            roots=roots,
            alternative_hostname=config.alt_xds_hostname,
            tls12=config.tls12_enabled,
            bounds=bounds,
        )
        async with channel, channel.open_stream(DELTA_STREAM, metadata) as stream:
            yield _BridgedStream(stream)

    return connect


class _BridgedStream:
    """Adapts a stream of the gRPC bridge to `XdsStream`."""

    def __init__(self, stream: GrpcStream) -> None:
        self._stream = stream

    @property
    def established(self) -> bool:
        return self._stream.headers_received.is_set()

    async def wait_established(self) -> None:
        await self._stream.headers_received.wait()

    async def send(self, message: bytes) -> None:
        try:
            await self._stream.send(message)
        except GrpcStatusError as error:
            raise _status_error(error) from None

    async def receive(self) -> bytes:
        try:
            return await self._stream.receive()
        except GrpcStatusError as error:
            if error.status == "OK":
                raise trio.EndOfChannel from None
            raise _status_error(error) from None


def _status_error(error: GrpcStatusError) -> StatusError:
    name = "".join(word.capitalize() for word in error.status.split("_"))
    return StatusError(name, error.details)
