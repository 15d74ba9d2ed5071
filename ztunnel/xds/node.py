"""The Node message of the first xDS requests: how this process identifies itself to the control plane.

It is made once at start. Later entries of the metadata override earlier ones: our own values, then the proxy
metadata as strings, then the parsed ``ISTIO_METAJSON_*`` values. Source: docs/protocol/state-and-xds.md#node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ztunnel.config.model import Config
from ztunnel.pb.envoy.service.discovery.v3 import Node
from ztunnel.pb.google.protobuf import ListValue, NullValue, Struct, Value

MAX_DEPTH = 30
"""How deep a JSON value may be nested. Decoders refuse messages nested 100 deep, and each level takes three.

"""


def node_metadata(config: Config) -> dict[str, Any]:
    """Returns the metadata as JSON values, in the order of precedence."""
    metadata: dict[str, Any] = {
        "NAME": config.pod_name,
        "NAMESPACE": config.pod_namespace,
        "INSTANCE_IPS": config.local_ip,
        "NODE_NAME": config.local_node or "",
    }
    metadata.update(config.proxy_metadata)
    metadata.update(config.node_metadata_json)
    return metadata


def encode_node(config: Config, problems: list[str]) -> bytes:
    """Returns the bytes of the Node message: id and metadata; no cluster, locality or user agent.

    A value that protobuf cannot carry (nested too deep, a number too large) is left out, and a sentence about
    it is appended to ``problems``.
    """
    fields = {}
    for key, value in node_metadata(config).items():
        try:
            fields[key] = _value(value, MAX_DEPTH)
        except (ValueError, OverflowError) as error:
            problems.append(f"metadata {key} is not sent to the control plane: {error}")
    return bytes(Node(id=config.node_id, metadata=Struct(fields=fields)))


def _value(value: Any, depth: int) -> Value:
    """Returns a JSON value as google.protobuf.Value; numbers become doubles."""
    if depth == 0:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    match value:
        case None:
            return Value(null_value=NullValue.NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() | float():
            return Value(number_value=float(value))
        case str():
            return Value(string_value=value)
        case Mapping():
            fields = {str(key): _value(item, depth - 1) for key, item in value.items()}
            return Value(struct_value=Struct(fields=fields))
        case Sequence():
            return Value(list_value=ListValue(values=[_value(item, depth - 1) for item in value]))
        case _:
            raise ValueError(f"it is of type {type(value).__name__}")
