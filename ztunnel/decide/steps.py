"""The outbound decision as a chart: its boxes, and the arrows between them.

`route` notes each box that it goes through. Tests check that it follows only arrows of `WAYS` and that each
arrow is used, and that the chart in docs/routing.md is what `mermaid` draws. So the chart shows what the code
does.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Step(Enum):
    """A box of the chart. The value is its text; questions end with a question mark."""

    START = "A pod connects to an address and port"
    LOOP = "Is it a port of our own on loopback?"
    ADDRESS = "What has this address?"
    SERVICE_WAYPOINT = "Does the service have a waypoint?"
    UPSTREAM = "Which workload receives the connection?"
    NOBODY = "Was it a service that chooses endpoints?"
    UPSTREAM_NETWORK = "Is the workload on our network?"
    WORKLOAD_WAYPOINT = "Is there a waypoint before the workload?"
    FIND_WAYPOINT = "Can the waypoint be found?"
    WAYPOINT_NETWORK = "Is the service's waypoint on our network?"
    GATEWAY = "Does it have a network gateway that can be found?"
    DIRECT = "What does the workload speak?"
    TO_PASSTHROUGH = "Plain TCP to the original address"
    TO_TCP = "Plain TCP to the workload"
    TO_HBONE = "HBONE to the workload"
    TO_WAYPOINT = "HBONE to the waypoint"
    TO_GATEWAY = "Double HBONE: to the gateway, and through it"
    REFUSE_LOOP = "Refused: attempted recursive call to ourselves"
    REFUSE_NO_UPSTREAM = "Refused: no healthy upstream"
    REFUSE_NO_SERVICE = "Refused: no service for target address"
    REFUSE_WAYPOINT = "Refused: unknown waypoint"
    REFUSE_GATEWAY = "Refused: unknown network gateway"
    REFUSE_NO_DESTINATION = "Refused: no valid routing destination"


class Way(NamedTuple):
    """An arrow of the chart, and its label."""

    source: Step
    target: Step
    label: str = ""


_LOOPS = "it would dial our own port"

WAYS: tuple[Way, ...] = (
    Way(Step.START, Step.LOOP),
    Way(Step.LOOP, Step.REFUSE_LOOP, "yes"),
    Way(Step.LOOP, Step.ADDRESS, "no"),
    Way(Step.ADDRESS, Step.SERVICE_WAYPOINT, "a service, and no workload"),
    Way(Step.ADDRESS, Step.UPSTREAM, "a workload, or nothing"),
    Way(Step.SERVICE_WAYPOINT, Step.FIND_WAYPOINT, "yes: one, or one drawn by weight"),
    Way(Step.SERVICE_WAYPOINT, Step.UPSTREAM, "no"),
    Way(Step.UPSTREAM, Step.UPSTREAM_NETWORK, "the service's chosen endpoint, else the workload itself"),
    Way(Step.UPSTREAM, Step.NOBODY, "none"),
    Way(Step.NOBODY, Step.REFUSE_NO_UPSTREAM, "yes"),
    Way(Step.NOBODY, Step.TO_PASSTHROUGH, "no: unknown, or mode PASSTHROUGH"),
    Way(Step.NOBODY, Step.REFUSE_LOOP, _LOOPS),
    Way(Step.UPSTREAM_NETWORK, Step.WORKLOAD_WAYPOINT, "yes"),
    Way(Step.UPSTREAM_NETWORK, Step.GATEWAY, "no, and a service was addressed"),
    Way(Step.UPSTREAM_NETWORK, Step.REFUSE_NO_SERVICE, "no, and no service was addressed"),
    Way(Step.WORKLOAD_WAYPOINT, Step.FIND_WAYPOINT, "yes"),
    Way(Step.WORKLOAD_WAYPOINT, Step.DIRECT, "no, or a service was addressed, or we are that waypoint"),
    Way(Step.FIND_WAYPOINT, Step.WAYPOINT_NETWORK, "yes, of a service"),
    Way(Step.FIND_WAYPOINT, Step.TO_WAYPOINT, "yes, of a workload"),
    Way(Step.FIND_WAYPOINT, Step.REFUSE_WAYPOINT, "no"),
    Way(Step.FIND_WAYPOINT, Step.REFUSE_NO_DESTINATION, "yes, of a workload, without an address"),
    Way(Step.FIND_WAYPOINT, Step.REFUSE_LOOP, _LOOPS),
    Way(Step.WAYPOINT_NETWORK, Step.TO_WAYPOINT, "yes"),
    Way(Step.WAYPOINT_NETWORK, Step.GATEWAY, "no"),
    Way(Step.WAYPOINT_NETWORK, Step.REFUSE_NO_DESTINATION, "yes, but it has no address"),
    Way(Step.WAYPOINT_NETWORK, Step.REFUSE_LOOP, _LOOPS),
    Way(Step.GATEWAY, Step.TO_GATEWAY, "yes"),
    Way(Step.GATEWAY, Step.REFUSE_NO_DESTINATION, "it has none, or one without an address"),
    Way(Step.GATEWAY, Step.REFUSE_GATEWAY, "it has one that cannot be found"),
    Way(Step.GATEWAY, Step.REFUSE_LOOP, _LOOPS),
    Way(Step.DIRECT, Step.TO_HBONE, "HBONE"),
    Way(Step.DIRECT, Step.TO_TCP, "TCP"),
    Way(Step.DIRECT, Step.REFUSE_NO_DESTINATION, "it has no address"),
    Way(Step.DIRECT, Step.REFUSE_LOOP, _LOOPS),
)


def mermaid() -> str:
    """Returns the chart as Mermaid text with a last newline (https://mermaid.js.org/syntax/flowchart.html)."""
    lines = ["flowchart TD"]
    for step in Step:
        if step.value.endswith("?"):
            lines.append(f'  {step.name}{{"{step.value}"}}')
        elif step.name.startswith("REFUSE"):
            lines.append(f'  {step.name}[/"{step.value}"/]')
        else:
            lines.append(f'  {step.name}(["{step.value}"])')
    for way in WAYS:
        arrow = f'-->|"{way.label}"|' if way.label else "-->"
        lines.append(f"  {way.source.name} {arrow} {way.target.name}")
    return "\n".join(lines) + "\n"
