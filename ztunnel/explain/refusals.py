"""Why a connection is not routed, in the sentences at the end of an explanation. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ztunnel.decide.plans import Refusal, RefusalKind
from ztunnel.explain.explanation import EndpointView

_NAMED = 3
"""Endpoints that are named with the reason why they are left out."""

_TWO_SENTENCES = frozenset(
    {
        RefusalKind.UNKNOWN_WAYPOINT,
        RefusalKind.UNKNOWN_NETWORK_GATEWAY,
        RefusalKind.NO_VALID_DESTINATION,
    }
)
"""Refusals whose last reason is only understood with the one before it."""


def reasons(refusal: Refusal, endpoints: Sequence[EndpointView]) -> Iterator[str]:
    """Returns the sentences that say why, and where to look.

    endpoints: of the service that was asked for, empty if it has none.
    """
    yield from refusal.why[-2:] if refusal.kind in _TWO_SENTENCES else refusal.why[-1:]
    if refusal.kind is not RefusalKind.NO_HEALTHY_UPSTREAM:
        return
    left_out = [f"{one.uid} ({one.why})" for one in endpoints if one.why]
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        yield f"Left out: {', '.join(left_out[:_NAMED])}{more}."
    elif not endpoints:
        yield "No pod belongs to it: does its selector match any, and are they running?"
