"""An explanation as values: the output of ``--json``, and the source of the text."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec


class Outcome(Enum):
    """The expected outcome of a connection."""

    ALLOWED = "allowed"
    """It is carried, and the other end allows it."""
    REFUSED = "refused"
    """It is refused; ``code`` and ``summary`` say by whom."""
    FAILING = "failing"
    """Nothing in the mesh forbids it, but the last connection failed, or there is no certificate for it."""
    PLAIN = "plaintext"
    """It leaves as plain TCP, to a destination outside the mesh."""
    UNKNOWN = "unknown"
    """The question names something that does not exist, or is ambiguous; see ``nearest``."""


class StepTaken(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of the decision: a box of the chart in docs/routing.md."""

    name: str
    text: str


class EndpointView(msgspec.Struct, frozen=True, omit_defaults=True):
    """An endpoint of the service.

    ``state`` is ``chosen``, ``possible`` (it might be chosen) or ``left out``.
    """

    uid: str
    state: str
    why: str = ""
    name: str = ""
    address: str = ""
    port: int = 0


class WorkloadView(msgspec.Struct, frozen=True, omit_defaults=True):
    """The workload at one end."""

    uid: str
    name: str
    namespace: str
    identity: str
    protocol: str
    addresses: tuple[str, ...] = ()
    node: str = ""
    network: str = ""


class PlanView(msgspec.Struct, frozen=True, omit_defaults=True):
    """The plan of the client's ztunnel: the next hop, our identity, and the identity that it expects."""

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
    """A policy that applies at the other end: whether it matches, and which clause decides."""

    key: str
    action: str
    scope: str
    matches: bool
    decides: bool = False
    dry_run: bool = False
    clues: tuple[str, ...] = ()


class ArrivalView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the other end's ztunnel does. ``known``: whether that pod is known here."""

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

    asked_from, asked_to: the question. summary: one sentence at the end. why: the sentences of the plan.
    nearest: similar names that exist, if a name does not. notes: remarks that do not decide.
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
