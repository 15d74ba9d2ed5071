"""From the bytes of one workload, service or policy to its model value, as `ztunnel.state.description` says.

What the control plane sends are protobuf messages. What the local file says is kept as JSON, in the form
of the dump.

Single values inside a policy that cannot be read (an address of three bytes, a text match without a type)
are dropped, as the Rust ztunnel does: the policy stays, without them. In a DENY policy that can
only deny more, or what is left. In an ALLOW policy it could let in whom nobody meant: a match whose only
readable field is a namespace would allow the whole namespace, whatever addresses were asked for. Here such a
match of an ALLOW policy never holds. That is the one place where this differs from the Rust
ztunnel, and it never widens access.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from ztunnel.model.address import NamespacedHostname
from ztunnel.model.policy import Action, Authorization, Match
from ztunnel.model.service import Endpoint, Service
from ztunnel.model.workload import HealthStatus, Workload
from ztunnel.protobuf import WireError
from ztunnel.state import wire
from ztunnel.state.description import AUTHORIZATION, ENDPOINT, MATCHES, SERVICE, WORKLOAD
from ztunnel.state.kinds import Field, Kind, Record, RejectedError
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.state.values import UNREADABLE, show_ports

HEALTHY, UNHEALTHY = b"\0", b"\1"
_PORT_PAIR = struct.Struct("<HH")
_NEVER = Match()


class WorkloadParts(NamedTuple):
    """A workload, and the services it belongs to, each with what it is there (`pack_endpoint`)."""

    workload: Workload
    services: tuple[tuple[NamespacedHostname, bytes], ...]


class ServiceParts(NamedTuple):
    """A service, and the endpoints that the local file gives it itself (never set by xDS)."""

    service: Service
    endpoints: Mapping[str, Endpoint]


def _decoded(kind: Any, body: bytes) -> Any:
    """Reads a protobuf message. Raises RejectedError, with the text that goes into a NACK."""
    try:
        return wire.parse(kind, body)
    except WireError as error:
        raise RejectedError(f"decode: {error}", undecodable=True) from None


def _from_file(body: bytes, parse: Callable[[Any, str], Any]) -> Any:
    """Returns what ``parse`` makes of the JSON of an object of the local file. Raises RejectedError."""
    try:
        return parse(msgspec.json.decode(body), "")
    except (msgspec.DecodeError, UnicodeDecodeError, LocalConfigError) as error:
        raise RejectedError(f"decode: {error}", undecodable=True) from None


def address(body: bytes, *, local: bool) -> WorkloadParts | ServiceParts:
    """Returns what an ``istio.workload.Address`` holds, or an object of the file. Raises RejectedError."""
    if local:
        parts: WorkloadParts | ServiceParts = _from_file(body, _FILE_OBJECT.parse)
        return parts
    message = _decoded(wire.ADDRESS, body)
    match message.WhichOneof("type"):
        case "workload":
            return _workload_parts(WORKLOAD.read_fields(message.workload))
        case "service":
            return ServiceParts(SERVICE.read(message.service), {})
    raise RejectedError("unknown address type")


def authorization(body: bytes, *, local: bool = False) -> Authorization:
    """Returns the policy that an ``istio.security.Authorization`` holds, or one of the local file.

    Raises RejectedError for bytes that are no such message and for an unknown scope or action.
    """
    if local:
        policy: Authorization = _from_file(body, AUTHORIZATION.parse)
        return policy
    fields = AUTHORIZATION.read_fields(_decoded(wire.AUTHORIZATION, body))
    allows = fields["action"] is Action.ALLOW
    fields["rules"] = tuple(
        tuple(tuple(_match(match, allows=allows) for match in clause) for clause in rule)
        for rule in fields["rules"]
    )
    return Authorization(**fields)


def _match(message: Any, *, allows: bool) -> Match:
    values, widened = {}, False
    for kind_name, kind in MATCHES:
        for name in (kind_name, f"not_{kind_name}"):
            given = getattr(message, name)
            kept = tuple(value for value in map(kind.read, given) if value is not UNREADABLE)
            values[name] = kept
            # Of those under not_ none may hold: each one less lets more through. Of the others one must hold:
            # with none left over, the field would no longer constrain.
            widened |= len(kept) < len(given) and (name is not kind_name or not kept)
    return _NEVER if widened and allows else Match(**values)


def file_workload(value: Any, place: str = "") -> WorkloadParts:
    """Returns a workload from what the local file says. Raises LocalConfigError."""
    return _workload_parts(WORKLOAD.parse_fields(value, place))


def file_service(value: Any, place: str = "") -> ServiceParts:
    """Returns a service from what the local file says. Raises LocalConfigError."""
    fields = SERVICE.parse_fields(value, place)
    endpoints = fields.pop("endpoints")
    return ServiceParts(SERVICE.model(**fields), endpoints)


_FILE_OBJECT = Record(
    lambda workload, service: service or workload or file_workload(None),
    Field("workload", Kind(file_workload)),
    Field("service", Kind(file_service)),
)


def shown(parts: WorkloadParts | ServiceParts | Authorization) -> dict[str, Any]:
    """Returns an object as the local file has it: a dump of it that can be read again."""
    match parts:
        case WorkloadParts(workload, services):
            ports = {str(key): show_ports(unpack_endpoint("", packed).ports) for key, packed in services}
            return WORKLOAD.show(workload) | {"services": ports}
        case ServiceParts(service, endpoints):
            own = {uid: ENDPOINT.show(endpoint) for uid, endpoint in sorted(endpoints.items())}
            return SERVICE.show(service) | {"endpoints": own}
    return AUTHORIZATION.show(parts)


def body_of(parts: WorkloadParts | ServiceParts | Authorization) -> bytes:
    """Returns an object as a resource of a delta whose origin is the local file."""
    value = shown(parts)
    match parts:
        case WorkloadParts():
            value = {"workload": value}
        case ServiceParts():
            value = {"service": value}
    return msgspec.json.encode(value)


def _workload_parts(fields: dict[str, Any]) -> WorkloadParts:
    services, status = fields["services"], fields["status"]
    fields["services"] = tuple([key for key, _ in services])
    packed = tuple([(key, pack_endpoint(ports, status)) for key, ports in services])
    return WorkloadParts(WORKLOAD.model(**fields), packed)


def pack_endpoint(ports: Mapping[int, int], status: HealthStatus) -> bytes:
    """Returns what a workload is as an endpoint, as few bytes. Many endpoints are the same and share them."""
    pairs = [_PORT_PAIR.pack(service_port, target) for service_port, target in ports.items()]
    return (HEALTHY if status is HealthStatus.HEALTHY else UNHEALTHY) + b"".join(pairs)


def unpack_endpoint(uid: str, packed: bytes) -> Endpoint:
    """Returns the endpoint that a workload is, from what `pack_endpoint` made."""
    return Endpoint(uid, *_unpack(packed))


@lru_cache(1024)
def _unpack(packed: bytes) -> tuple[dict[int, int], HealthStatus]:
    status = HealthStatus.HEALTHY if packed[:1] == HEALTHY else HealthStatus.UNHEALTHY
    return dict(_PORT_PAIR.iter_unpack(packed[1:])), status
