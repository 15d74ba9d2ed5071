"""An explanation as values: what ``--json`` shows, and what the text is written from."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec


class Outcome(Enum):
    """How a connection would end."""

    ALLOWED = "allowed"
    """It is carried, and the other end lets it in."""
    REFUSED = "refused"
    """Somebody on the way refuses it; ``code`` and ``summary`` say who."""
    FAILING = "failing"
    """Nothing in the mesh forbids it, and the last connection failed, or there is no certificate for it."""
    PLAIN = "plaintext"
    """It leaves as plain TCP, to somebody outside the mesh."""
    UNKNOWN = "unknown"
    """The question names something that does not exist, or leaves something open; see ``nearest``."""


class StepTaken(msgspec.Struct, frozen=True, omit_defaults=True):
    """A box of the chart in docs/routing.md that the decision went through."""

    name: str
    text: str


class EndpointView(msgspec.Struct, frozen=True, omit_defaults=True):
    """An endpoint of the service; ``state`` is ``chosen``, ``possible`` (it might be) or ``left out``."""

    uid: str
    state: str
    why: str = ""
    name: str = ""
    address: str = ""
    port: int = 0


class WorkloadView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is at one end."""

    uid: str
    name: str
    namespace: str
    identity: str
    protocol: str
    addresses: tuple[str, ...] = ()
    node: str = ""
    network: str = ""


class PlanView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client's ztunnel does: whom it dials, as whom, and whom it expects there."""

    protocol: str
    next_hop: str
    authority: str = ""
    presents: str = ""
    expects: tuple[str, ...] = ()
    inner_expects: tuple[str, ...] = ()
    resolves: str = ""
    service: str = ""
    workload: str = ""
    through: str = ""


class PolicyDecisionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A policy that applies at the other end: whether it matches, and which clause says so."""

    key: str
    action: str
    scope: str
    matches: bool
    decides: bool = False
    dry_run: bool = False
    clues: tuple[str, ...] = ()


class ArrivalView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the other end's ztunnel does. ``known``: whether that pod is known here at all."""

    workload: str
    known: bool = True
    dials: str = ""
    sees: str = ""
    why: tuple[str, ...] = ()
    policies: tuple[PolicyDecisionView, ...] = ()
    allowed: bool = True
    reason: str = ""
    missing: tuple[str, ...] = ()


class Explanation(msgspec.Struct, omit_defaults=True):
    """The whole answer.

    asked_from, asked_to: the question. summary: the one sentence at the end. why: the sentences of the plan.
    nearest: names that exist, for one that does not. notes: what is odd on the way, and does not decide.
    live: what only a running ztunnel knows: tunnels, ejections, certificate, the last connections.
    """

    asked_from: str
    asked_to: str
    outcome: Outcome
    summary: str
    code: str = ""
    source: WorkloadView | None = None
    destination: str = ""
    steps: tuple[StepTaken, ...] = ()
    why: tuple[str, ...] = ()
    endpoints: tuple[EndpointView, ...] = ()
    plan: PlanView | None = None
    arrival: ArrivalView | None = None
    notes: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()
    live: dict[str, Any] = {}
