"""The server's side for tests of a session: betterproto2 builds responses and reads requests."""

from collections.abc import Callable, Iterable

from ztunnel.messages import MeshDelta, Rejected
from ztunnel.pb.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from ztunnel.pb.google.protobuf import Any
from ztunnel.xds.xds_session import ADDRESS_TYPE, XdsOutcome, XdsSession


def resource(
    name: str, version: str = "1", body: bytes | None = None, aliases: Iterable[str] = ()
) -> Resource:
    value = name.encode() if body is None else body
    return Resource(
        name=name, version=version, aliases=list(aliases), resource=Any(type_url="not looked at", value=value)
    )


def response(
    *resources: Resource, type_url: str = ADDRESS_TYPE, nonce: str = "n", removed: Iterable[str] = ()
) -> bytes:
    return bytes(
        DeltaDiscoveryResponse(
            type_url=type_url, nonce=nonce, resources=list(resources), removed_resources=list(removed)
        )
    )


def requests(messages: Iterable[bytes]) -> list[DeltaDiscoveryRequest]:
    return [DeltaDiscoveryRequest.parse(message) for message in messages]


def hear(
    session: XdsSession,
    message: bytes,
    refuse: Callable[[MeshDelta], list[Rejected]] = lambda _: [],
    slice_size: int = 1000,
) -> tuple[XdsOutcome, MeshDelta | None]:
    """Process one response, with a store that refuses what ``refuse`` says."""
    reading = session.receive(message)
    while not reading.scan(slice_size):
        pass
    delta = reading.delta()
    return session.complete(reading, refuse(delta) if delta else []), delta


def changed(session: XdsSession, message: bytes, slice_size: int = 1000) -> MeshDelta:
    """Returns the delta of a response of a known type."""
    _, delta = hear(session, message, slice_size=slice_size)
    assert delta is not None
    return delta
