"""The state in a dump at the time when it was made: the client's certificate and its open connections.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ztunnel.explain.connection_path import Told

_SHOWN = 5


def dump_state(dump: Mapping[str, Any], told: Told) -> dict[str, Any]:
    """Returns the live part of an explanation, as far as a dump has it.

    ``certificateTrouble`` as in `judge`.
    """
    source = told.source
    if source is None:
        return {}
    pod = _pod(dump, source.namespace, source.name)
    identity = str(source.identity)
    found = [one for one in _listed(dump.get("certificates")) if one.get("identity") == identity]
    held = next((one for one in found if one.get("state") == "Available"), found[0] if found else None)
    live: dict[str, Any] = {}
    if held is not None:
        sentence, trouble = _certificate(identity, held)
        live = {"certificateTrouble": sentence} if trouble else {}
        live["sentences"] = [sentence]
    elif pod is not None:
        live["sentences"] = [f"no certificate of {identity} had been asked for when the dump was taken."]
    if pod is not None and told.destination is not None:
        live.setdefault("sentences", []).extend(_connections(pod, str(told.destination)))
    return live


def _certificate(identity: str, held: Mapping[str, Any]) -> tuple[str, bool]:
    state = str(held.get("state"))
    if state == "Available":
        chain = _listed(held.get("certChain"))
        end = chain[0].get("expirationTime") if chain else None
        return f"the certificate of {identity} is valid until {end}.", False
    if state == "Initializing":
        return f"the certificate of {identity} was being fetched when the dump was taken.", False
    reason = state.removeprefix("Unavailable: ")
    return f"there was no certificate of {identity} when the dump was taken: {reason}", True


def _connections(pod: Mapping[str, Any], destination: str) -> Iterator[str]:
    held = pod.get("connections")
    outbound = _listed(held.get("outbound")) if isinstance(held, Mapping) else []
    open_ones = [one for one in outbound if one.get("originalDst") == destination]
    if open_ones:
        yield f"{len(open_ones)} connections of it to {destination} were open when the dump was taken."
    for one in open_ones[:_SHOWN]:
        yield f"  from {one.get('src')} by {one.get('protocol')} to {one.get('actualDst')}"


def _pod(dump: Mapping[str, Any], namespace: str, name: str) -> Mapping[str, Any] | None:
    state = dump.get("workloadState")
    for one in _listed(list(state.values()) if isinstance(state, Mapping) else state):
        info = one.get("info")
        if isinstance(info, Mapping) and (info.get("namespace"), info.get("name")) == (namespace, name):
            return one
    return None


def _listed(found: Any) -> list[Mapping[str, Any]]:
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
