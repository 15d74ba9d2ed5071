"""From bytes to the mesh's messages, by the runtime of the protobuf package (upb).

upb parses a workload in half a microsecond, and is more lenient than the Rust ztunnel in one
respect: to it, a known field with another wire type is an unknown field. A workload or policy that was half
read must never come into force, so `parse` finds out whether anything in the bytes was not understood, and
then lets `ztunnel.protobuf` decide. That also gives the reasons of refusals, which the control plane sees
in NACKs.

A map (the services of a workload) is read as the list of entries that it is on the wire, and an enumeration
as an unsigned number; scripts/descriptors says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ztunnel.pb.descriptors import FILES
from ztunnel.protobuf import WireError, check

_POOL = descriptor_pool.DescriptorPool()
for _file in FILES:
    _POOL.AddSerializedFile(_file)


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


ADDRESS = _class("istio.workload.Address")
ADDRESS_KEYS = _class("istio.workload.AddressKeys")
"""An Address of a workload, whose inner messages stay bytes."""
SERVICES_ENTRY = _class("istio.workload.Workload.ServicesEntry")
AUTHORIZATION = _class("istio.security.Authorization")


def parse(kind: Any, body: bytes) -> Any:
    """Returns the message of class ``kind``, one of this module, that the bytes are. Raises WireError."""
    try:
        message = understood(kind, body)
        if message is None:
            check(kind.DESCRIPTOR, body)
            message = kind.FromString(body)
    except DecodeError as error:
        check(kind.DESCRIPTOR, body)
        raise WireError(str(error)) from None  # what only upb refuses: a key of more than five bytes, say
    return message


def understood(kind: Any, body: bytes) -> Any:
    """Returns the message, None unless all of it is understood and written as usual. Raises DecodeError."""
    message = kind.FromString(body)
    # Written anew it is as long as it came, with and without what is unknown: so nothing is.
    size = message.ByteSize()
    if size == len(body):
        message.DiscardUnknownFields()
        if message.ByteSize() == size:
            return message
    return None


def enumeration_numbers(name: str) -> Mapping[str, int]:
    """Returns the numbers of an enumeration of the .proto by their names."""
    values = _POOL.FindEnumTypeByName(name).values_by_name
    return {name: value.number for name, value in values.items()}
