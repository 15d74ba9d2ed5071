"""An explanation as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ztunnel.explain.explanation import (
    ArrivalView,
    EndpointView,
    Explanation,
    Outcome,
    PlanView,
    PolicyDecisionView,
)

_SHOWN = 12


def lines(answer: Explanation) -> Iterator[str]:
    """Returns the lines, without line breaks. The last one is the summary."""
    yield f"From {answer.asked_from} to {answer.asked_to}"
    if answer.outcome is Outcome.UNKNOWN:
        if answer.nearest:
            yield ""
            yield "The nearest names:"
            yield from (f"  {name}" for name in answer.nearest)
        yield ""
        yield f"=> {answer.summary}" + (f" ({answer.code})" if answer.code else "")
        return
    if answer.source is not None:
        node = f" on node {answer.source.node}" if answer.source.node else ""
        yield ""
        yield f"The client: {answer.source.uid}{node}, {answer.source.identity}"
    yield ""
    yield f"The way to {answer.destination}:"
    yield from (f"  {number}. {sentence}" for number, sentence in enumerate(answer.why, 1))
    yield from _endpoints(answer.endpoints)
    if answer.plan is not None:
        yield from _plan(answer.plan)
    if answer.arrival is not None:
        yield from _arrival(answer.arrival)
    yield from _live(answer.live)
    if answer.notes:
        yield ""
        yield "Also:"
        yield from (f"  - {note}" for note in answer.notes)
    yield ""
    yield f"=> {answer.summary}" + (
        f" ({answer.code})" if answer.code and answer.code not in answer.summary else ""
    )


def _endpoints(endpoints: tuple[EndpointView, ...]) -> Iterator[str]:
    if not endpoints:
        return
    yield ""
    yield f"Endpoints ({len(endpoints)}):"
    for one in endpoints[:_SHOWN]:
        at = f" {one.address}:{one.port}" if one.address and one.port else ""
        why = f": {one.why}" if one.why else ""
        yield f"  {one.state:<8}  {one.uid}{at}{why}"
    if len(endpoints) > _SHOWN:
        yield f"  … and {len(endpoints) - _SHOWN} more (--json has all)"


def _plan(plan: PlanView) -> Iterator[str]:
    yield ""
    yield "The client's ztunnel:"
    through = f" (the {plan.through})" if plan.through else ""
    yield f"  dials     {plan.next_hop}{through} as {plan.protocol}"
    if plan.authority:
        yield f"  asks for  {plan.authority}"
    if plan.presents:
        yield f"  presents  {plan.presents}"
    if plan.expects:
        yield f"  expects   {' or '.join(plan.expects)}"
    if plan.inner_expects:
        yield f"  expects, inside the outer tunnel, {' or '.join(plan.inner_expects)}"


def span(seconds: float | None) -> str:
    """Returns a duration in a few characters, "" for None."""
    if seconds is None:
        return ""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f}ms"
    if abs(seconds) < 10:
        return f"{seconds:.1f}s"
    if abs(seconds) < 100:
        return f"{seconds:.0f}s"
    if abs(seconds) < 7200:
        return f"{seconds / 60:.0f}min"
    return f"{seconds / 3600:.1f}h"


def _arrival(arrival: ArrivalView) -> Iterator[str]:
    yield ""
    yield f"At the other end ({arrival.workload}):"
    yield from (f"  {sentence}" for sentence in arrival.why)
    if arrival.sees:
        yield f"  sees      {arrival.sees}"
    if arrival.dials:
        yield f"  dials     {arrival.dials}"
    if arrival.missing:
        yield f"  policies that the workload refers to and that are not known: {', '.join(arrival.missing)}"
    if not arrival.policies and arrival.dials:
        yield "  no authorization policy applies"
    for policy in arrival.policies:
        yield from _policy(policy)


def _policy(policy: PolicyDecisionView) -> Iterator[str]:
    mark = "decides" if policy.decides else "matches" if policy.matches else "does not match"
    dry = ", dry-run" if policy.dry_run else ""
    yield f"  policy    {policy.key} ({policy.action}, {policy.scope}{dry}): {mark}"
    yield from (f"              {clue}" for clue in policy.clues[:3])


def _live(live: dict[str, Any]) -> Iterator[str]:
    if not live:
        return
    yield ""
    yield "At this moment:"
    for sentence in live.get("sentences", ()):
        yield f"  {sentence}"
    if live.get("noTunnel"):
        yield f"  {live['noTunnel']}"
    for tunnel in live.get("tunnels", ()):
        window = tunnel["sendWindow"]
        room = "" if window is None else f", smallest send window {window}"
        yield (
            f"  a tunnel to {tunnel['peer']} stands: {tunnel['streams']} streams, "
            f"age {span(tunnel['ageSeconds'])}{room}"
        )
    for one in live.get("connections", ()):
        end = f"{one['error']} ({one['code']})" if one.get("error") else one.get("state", "")
        if one.get("waitsFor", "nobody") != "nobody":
            end += f", waits for {one['waitsFor']}"
        yield f"  connection {one['id']}, {span(one['ageSeconds'])} ago: {end}"
        if one.get("why"):
            yield f"      {one['why']}"
