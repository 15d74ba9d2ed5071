"""Encodes and decodes ZDS packets: the requests of the CNI agent, and our hello and acks.

One packet of a SOCK_SEQPACKET connection is one protobuf message of ``istio.workload.zds``, without a length
prefix. The packet that adds a pod carries the descriptor of its network namespace; no other packet carries
one. This module does not use descriptors; it only gets the number that came with a packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ztunnel.inpod.zds_errors import ZdsReadError
from ztunnel.messages import PodInfo
from ztunnel.pb.istio.workload import zds

LARGEST_PACKET = 1024
"""The largest packet in bytes that either side reads. A longer one arrives truncated, which is an error."""


@dataclass(frozen=True, slots=True)
class AddPod:
    """Serve a pod. ``info`` is None when the agent left it out, which breaks the protocol."""

    uid: str
    info: PodInfo | None


@dataclass(frozen=True, slots=True)
class KeepPod:
    """Keep serving a pod, although the agent does not know where its namespace is."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    """A pod was removed."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The agent has sent all pods that it knew when we connected."""


Request: TypeAlias = AddPod | KeepPod | DeletePod | SnapshotSent


def encode_hello() -> bytes:
    """Our first packet."""
    return bytes(zds.ZdsHello(version=zds.Version.V1))


def encode_ack(error: str | None) -> bytes:
    """Returns the answer to one request.

    ``error``: None for success; it is cut to the size of the agent's buffer.
    """
    text = error or ""
    # Tag and length of the two nested fields take at most 6 bytes.
    fitting = text.encode("utf-8", "replace")[: LARGEST_PACKET - 8].decode("utf-8", "ignore")
    return bytes(zds.WorkloadResponse(ack=zds.Ack(error=fitting)))


def decode_request(data: bytes, descriptors: int) -> Request:
    """Read one packet that came with this number of descriptors.

    An add may come with more than one descriptor; the first is the namespace. Raises `ZdsReadError`.
    """
    try:
        message = zds.WorkloadRequest.parse(data)
    except Exception as error:  # any exception of the decoder means a bad packet
        raise ZdsReadError(f"failed to decode protobuf message: {error}") from error
    request = _request(message)
    if isinstance(request, AddPod):
        if descriptors == 0:
            raise ZdsReadError("No control message")
    elif descriptors:
        raise ZdsReadError("Unexpected control message")
    return request


def _request(message: zds.WorkloadRequest) -> Request:
    payloads = [
        payload
        for payload in (message.add, message.keep, message.del_, message.snapshot_sent)
        if payload is not None
    ]
    if len(payloads) != 1:
        raise ZdsReadError("a request has exactly one payload")
    # The decoder accepts a field of another wire type, so types are checked here.
    match payloads[0]:
        case zds.AddWorkload(uid=str(uid), workload_info=None):
            return AddPod(uid, None)
        case zds.AddWorkload(
            uid=str(uid),
            workload_info=zds.WorkloadInfo(
                name=str(name), namespace=str(namespace), service_account=str(account)
            ),
        ):
            return AddPod(uid, PodInfo(name, namespace, account))
        case zds.KeepWorkload(uid=str(uid)):
            return KeepPod(uid)
        case zds.DelWorkload(uid=str(uid)):
            return DeletePod(uid)
        case zds.SnapshotSent():
            return SnapshotSent()
        case _:
            raise ZdsReadError("a field has the wrong type")
