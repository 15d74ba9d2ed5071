"""Corrects an explanation by the live state, which may be worse than the mesh suggests. Pure.

``live`` comes from one data plane or from several, as JSON values. It is merged and judged here, because only
all data planes together know which connection was the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ztunnel.bounds import DEFAULTS, ExplainBounds
from ztunnel.explain.explanation import Explanation, Outcome
from ztunnel.explain.text import span

_DRAINED = "ZT-DRN-001"
_NO_CERTIFICATE = "ZT-CA-010"


def merged_live(
    parts: Sequence[Mapping[str, Any]], bounds: ExplainBounds = DEFAULTS.explain
) -> dict[str, Any]:
    """Returns the live parts of the answers of several data planes as one."""
    live: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, list):
                known = live.setdefault(name, [])
                known += [item for item in value if item not in known]
            else:
                live.setdefault(name, value)
    if live.get("connections"):
        latest = sorted(live["connections"], key=lambda one: one["ageSeconds"])
        live["connections"] = latest[: bounds.connections]
    if live.get("tunnels"):
        live.pop("noTunnel", None)
    return live


def judge(explanation: Explanation) -> None:
    """Change outcome, code and summary if the live state contradicts the mesh."""
    if explanation.outcome not in (Outcome.ALLOWED, Outcome.PLAIN):
        return
    live = explanation.live
    connections = live.get("connections", ())
    latest = min(connections, key=lambda one: one["ageSeconds"], default=None)
    trouble = live.get("certificateTrouble")
    if trouble:
        explanation.summary += f" But {trouble}"
        explanation.code = _NO_CERTIFICATE
    elif latest is not None and latest.get("error") and latest.get("code") != _DRAINED:
        explanation.summary += (
            f" But the last one, {span(latest['ageSeconds'])} ago, failed: {latest['error']}."
        )
        if latest.get("why"):
            why = latest["why"]
            explanation.summary += f" {why[0].upper()}{why[1:]}"
        explanation.code = latest.get("code", "")
    else:
        explanation.summary += _waits(connections)
        return
    explanation.outcome = Outcome.FAILING


def _waits(connections: Sequence[Mapping[str, Any]]) -> str:
    """Whether the last connection is open and stalled: no failure, but usually what is asked about."""
    for one in connections:
        waits_for = one.get("waitsFor", "")
        if one["state"] == "open" and waits_for not in ("", "nobody"):
            idle = one.get("idleSeconds")
            since = one["ageSeconds"] if idle is None else idle
            text = (
                f" But connection {one['id']} does not move: for {span(since)} it has waited for {waits_for}."
            )
            if waits_for == "peer's window":
                text += " The application at the other end does not read what it was sent."
            return text
    return ""
