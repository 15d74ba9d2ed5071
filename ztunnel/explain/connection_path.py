"""Explains the whole path of one connection by running the data path's decisions.

`telling` runs `route` for the client's side and, if the other end is known here, the decisions of
`ztunnel.explain.arrival`. It adds the details: which endpoints there were and why they were not chosen, which
policies apply and which clause decides, and one sentence at the end.

Randomness: where the real decision chooses one of several endpoints, this one uses a random generator seeded
by the question. So the same question about the same mesh has the same answer.

Pauses: a mesh may have 100,000 workloads, and the process carries traffic meanwhile. The decision itself is
made at once, as for a connection; names, endpoints and policies are processed in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from random import Random

from ztunnel.decide.balance import SelectionMode, service_by_address
from ztunnel.decide.plans import (
    OutboundPlan,
    OutboundProtocol,
    OutboundRequest,
    Refusal,
)
from ztunnel.decide.route import route
from ztunnel.decide.survey import SURVEY_SLICE, Surveyed, survey_endpoints
from ztunnel.explain.arrival import Setting, arrive, arrive_plain, client_address, named
from ztunnel.explain.catalogue import Catalogue
from ztunnel.explain.explanation import (
    ArrivalView,
    EndpointView,
    Explanation,
    Outcome,
    PlanView,
    StepTaken,
    WorkloadView,
)
from ztunnel.explain.name_lookup import Destination, UnclearError, find_destination, find_source
from ztunnel.explain.refusals import reasons
from ztunnel.model.address import SocketAddress
from ztunnel.model.service import Service
from ztunnel.model.workload import HealthStatus, Protocol, Workload
from ztunnel.slices import Slices, at_once

POLICY_CODE = "ZT-POL-001"
_STATES = ("chosen", "possible", "left out")


@dataclass(frozen=True, slots=True)
class Question:
    """Source and destination. ``avoid``: the workloads that failed a moment ago, as in `route`."""

    source: str
    destination: str
    avoid: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """An explanation, and the values from which it was made, for a running data plane that adds live state.

    source, destination, plan: None when the question is unclear; plan is also None for a client outside the
        mesh.
    """

    explanation: Explanation
    source: Workload | None = None
    destination: SocketAddress | None = None
    plan: OutboundPlan | Refusal | None = None


def _nobody(_source: Workload) -> Collection[str]:
    return ()


def telling(
    catalogue: Catalogue,
    question: Question,
    setting: Setting,
    avoided_by: Callable[[Workload], Collection[str]] = _nobody,
) -> Slices[Told]:
    """Explain the path of a connection. For an unknown name the outcome is UNKNOWN; it raises nothing.

    avoided_by: returns the workloads that a client avoids, in addition to those of the question.
    """
    try:
        source = yield from find_source(catalogue, question.source, setting.network, setting.bounds)
        destination = yield from find_destination(
            catalogue, question.destination, source, setting.network, setting.cluster_domain, setting.bounds
        )
    except UnclearError as unclear:
        return Told(
            Explanation(
                question.source,
                question.destination,
                Outcome.UNKNOWN,
                str(unclear),
                code=unclear.code,
                nearest=unclear.nearest,
            )
        )
    avoid = frozenset((*question.avoid, *avoided_by(source)))
    question = Question(question.source, question.destination, avoid)
    plan = _route(catalogue, question, setting, source, destination)
    explanation = yield from _Telling(catalogue, question, setting, source, destination).tell(plan)
    return Told(explanation, source, destination.address, plan)


def explain(catalogue: Catalogue, question: Question, setting: Setting) -> Explanation:
    """Returns the explanation at once, for callers without other tasks."""
    return at_once(telling(catalogue, question, setting)).explanation


def _route(
    catalogue: Catalogue, question: Question, setting: Setting, source: Workload, destination: Destination
) -> OutboundPlan | Refusal | None:
    if source.protocol is not Protocol.HBONE:
        return None
    request = OutboundRequest(source, client_address(source), destination.address, setting.network)
    random = Random(f"{question.source} {question.destination}")  # noqa: S311 - one of several equal endpoints
    return route(catalogue.view, request, random, illegal_ports=setting.illegal_ports, avoid=question.avoid)


class _Telling:
    """One explanation in progress."""

    def __init__(
        self,
        catalogue: Catalogue,
        question: Question,
        setting: Setting,
        source: Workload,
        destination: Destination,
    ) -> None:
        self.catalogue = catalogue
        self.view = catalogue.view
        self.question = question
        self.setting = setting
        self.source = source
        self.destination = destination
        self.notes: list[str] = []

    def tell(self, plan: OutboundPlan | Refusal | None) -> Slices[Explanation]:
        if not self.source.addresses:
            self.notes.append(f"Workload {self.source.uid} has no address, so its connections are unknown.")
        if plan is None:
            return (yield from self._from_outside())
        if isinstance(plan, Refusal):
            return (
                yield from self._answer(
                    Outcome.REFUSED,
                    f"{named(self.source)} cannot reach {self._goal()}: {plan.text} ({plan.kind.value}).",
                    plan,
                    code=plan.kind.value,
                )
            )
        arrival = yield from arrive(self.view, self.source, plan, self.setting, self.notes)
        outcome, code, summary = self._end(plan, arrival)
        return (yield from self._answer(outcome, summary, plan, arrival, code))

    # -- the client's side -------------------------------------------------------------------------------

    def _answer(
        self,
        outcome: Outcome,
        summary: str,
        plan: OutboundPlan | Refusal,
        arrival: ArrivalView | None = None,
        code: str = "",
    ) -> Slices[Explanation]:
        endpoints = yield from self._endpoints(plan)
        if isinstance(plan, Refusal):
            summary += "".join(f" {reason}" for reason in reasons(plan, endpoints))
        return self._explanation(outcome, summary, code, endpoints, arrival, plan)

    def _explanation(
        self,
        outcome: Outcome,
        summary: str,
        code: str,
        endpoints: tuple[EndpointView, ...],
        arrival: ArrivalView | None,
        plan: OutboundPlan | Refusal | None = None,
    ) -> Explanation:
        how = (self.destination.how,) if self.destination.how else ()
        return Explanation(
            self.question.source,
            self.question.destination,
            outcome,
            summary,
            code=code,
            source=_workload_view(self.source),
            destination=str(self.destination.address),
            steps=() if plan is None else tuple(StepTaken(step.name, step.value) for step in plan.steps),
            why=how if plan is None else (*how, *plan.why),
            endpoints=endpoints,
            plan=self._plan(plan) if isinstance(plan, OutboundPlan) else None,
            arrival=arrival,
            notes=tuple(self.notes),
        )

    def _plan(self, plan: OutboundPlan) -> PlanView:
        mesh = plan.protocol is not OutboundProtocol.TCP
        through = ""
        if plan.waypoint:
            through = "waypoint"
        if plan.protocol is OutboundProtocol.DOUBLE_HBONE:
            through = "network gateway, then waypoint" if plan.waypoint else "network gateway"
        return PlanView(
            protocol=plan.protocol.value,
            next_hop=_next_hop(plan),
            authority=plan.authority or "",
            presents=str(self.source.identity) if mesh else "",
            expects=plan.expected,
            inner_expects=plan.inner_expected,
            resolves="" if plan.resolve is None else plan.resolve.hostname,
            service="" if plan.destination_service is None else str(plan.destination_service.key),
            workload="" if plan.destination_workload is None else plan.destination_workload.uid,
            through=through,
        )

    def _endpoints(self, plan: OutboundPlan | Refusal) -> Slices[tuple[EndpointView, ...]]:
        """Returns the endpoints of the service that was addressed.

        Those of a waypoint or gateway are its own.
        """
        service = self.destination.service
        if service is None:
            service = service_by_address(
                self.view, self.setting.network, self.destination.address.ip, self.source.namespace
            )
        if service is None:
            return ()
        port = self.destination.address.port
        found = yield from survey_endpoints(
            self.view, service, port, self.source, SelectionMode.STANDARD, self.question.avoid
        )
        chosen = ""
        if isinstance(plan, OutboundPlan) and plan.destination_workload is not None:
            chosen = plan.endpoint_uid or plan.destination_workload.uid
        found |= yield from self._unhealthy(service, found)
        most = self.setting.bounds.endpoints
        if len(found) > most:
            self.notes.append(f"Of {len(found)} endpoints {most} are listed.")
        return _endpoint_views(found, chosen, most)

    def _unhealthy(self, service: Service, known: Collection[str]) -> Slices[dict[str, Surveyed]]:
        """Returns the workloads that belong to the service and are no endpoints because of their health."""
        key = str(service.key)
        left_out: dict[str, Surveyed] = {}
        for uids in self.catalogue.uids():
            mentioning = [uid for uid in uids if uid not in known and self.catalogue.mentions(uid, key)]
            yield
            for number, uid in enumerate(mentioning, 1):
                workload = self.catalogue.read(uid)
                if workload is not None and service.key in workload.services:
                    healthy = workload.status is HealthStatus.HEALTHY
                    why = "it is no endpoint" if healthy else "it is not healthy (not ready)"
                    left_out[uid] = Surveyed(uid, workload, 0, why)
                if number % SURVEY_SLICE == 0:
                    yield
        return left_out

    # -- a client outside the mesh -----------------------------------------------------------------------

    def _from_outside(self) -> Slices[Explanation]:
        """Explain a client whose traffic is not captured: plain TCP arrives, and policies see no identity."""
        self.notes.append(
            f"{named(self.source)} is not in the mesh (it does not speak HBONE), so no ztunnel takes "
            "its connections. Is its namespace or pod labelled istio.io/dataplane-mode=ambient, and is "
            "istio-cni up on its node?"
        )
        address = self.destination.address
        service = self.destination.service or service_by_address(
            self.view, self.setting.network, address.ip, self.source.namespace
        )
        workload = self.view.workload_by_address(self.setting.network, address.ip)
        port = address.port
        endpoints: tuple[EndpointView, ...] = ()
        if service is not None and (workload is None or service is self.destination.service):
            found = yield from survey_endpoints(self.view, service, port, self.source, SelectionMode.STANDARD)
            possible = next((one for one in found.values() if one.possible), None)
            workload = None if possible is None else possible.workload
            port = port if possible is None else possible.port
            endpoints = _endpoint_views(found, "", self.setting.bounds.endpoints)
        arrival = None
        if workload is not None and workload.protocol is Protocol.HBONE and workload.addresses:
            arrival = yield from arrive_plain(
                self.view, self.source, workload, SocketAddress(workload.addresses[0], port), self.setting
            )
        name = named(self.source)
        if arrival is not None and not arrival.allowed:
            outcome, code = Outcome.REFUSED, POLICY_CODE
            summary = f"{name} is outside the mesh, and {arrival.workload} refuses it: {_reason(arrival)}"
        else:
            outcome, code = Outcome.PLAIN, ""
            summary = (
                f"{name} is outside the mesh: its connections are plain TCP, and no ztunnel carries them."
            )
        return self._explanation(outcome, summary, code, endpoints, arrival)

    # -- the sentence at the end -------------------------------------------------------------------------

    def _end(self, plan: OutboundPlan, arrival: ArrivalView | None) -> tuple[Outcome, str, str]:
        name, goal = named(self.source), self._goal()
        if plan.protocol is OutboundProtocol.TCP:
            why = (
                "that is outside the mesh"
                if plan.destination_workload is None
                else "it is a workload outside the mesh"
            )
            return Outcome.PLAIN, "", f"{name} reaches {goal} as plain TCP at {plan.next_hop}: {why}."
        way = f"through its {plan_way(plan)} " if plan.waypoint or plan.inner_expected else ""
        if plan.protocol is OutboundProtocol.DOUBLE_HBONE:
            way = f"through the {plan_way(plan)} "
            if not plan.inner_expected:
                summary = (
                    f"{name} cannot reach {goal}: it goes {way}, and the service names no identities, so no "
                    "peer is accepted inside the tunnel."
                )
                return Outcome.REFUSED, "ZT-NET-010", summary
        hop = plan.destination_workload
        whom = "" if hop is None else named(hop)
        where = f"{way}by HBONE to {whom} at {plan.next_hop}"
        if arrival is None:
            return Outcome.ALLOWED, "", f"{name} reaches {goal} {where}; what is beyond decides by itself."
        if not arrival.allowed:
            code = POLICY_CODE if arrival.policies else _code_in(arrival.reason)
            return Outcome.REFUSED, code, f"{name} reaches {whom} and is refused there: {_reason(arrival)}"
        deciding = [policy.key for policy in arrival.policies if policy.decides]
        by = f"policy {deciding[0]} allows it" if deciding else "no policy forbids it"
        return Outcome.ALLOWED, "", f"{name} reaches {goal} {where}, and {by}."

    def _goal(self) -> str:
        service = self.destination.service
        address = self.destination.address
        return str(address) if service is None else f"service {service.key} ({address})"


def plan_way(plan: OutboundPlan) -> str:
    """Returns a text about the part of the path before the destination."""
    if plan.protocol is OutboundProtocol.DOUBLE_HBONE:
        return "network gateway"
    return "waypoint" if plan.waypoint else ""


def _state(one: Surveyed, chosen: str) -> int:
    """Returns the index of an endpoint's state in `_STATES`, which is the order of the list."""
    return 0 if one.uid == chosen else 1 if one.possible else 2


def _endpoint_views(found: Mapping[str, Surveyed], chosen: str, most: int) -> tuple[EndpointView, ...]:
    """Returns the first ``most`` of the endpoints by uid, ordered by their state."""
    ranked = nsmallest(most, ((_state(one, chosen), uid) for uid, one in found.items()))
    return tuple(_endpoint_view(found[uid], _STATES[state]) for state, uid in ranked)


def _endpoint_view(one: Surveyed, state: str) -> EndpointView:
    workload = one.workload
    name = "" if workload is None else workload.name
    address = str(workload.addresses[0]) if workload is not None and workload.addresses else ""
    return EndpointView(one.uid, state, one.why, name, address, one.port)


def _next_hop(plan: OutboundPlan) -> str:
    if plan.resolve is None:
        return str(plan.next_hop)
    return f"{plan.resolve.hostname}:{plan.next_hop.port}"


def _reason(arrival: ArrivalView) -> str:
    clues = [clue for policy in arrival.policies if policy.decides for clue in policy.clues[:1]]
    return f"{arrival.reason}. {' '.join(clues[:3])}".rstrip()


def _code_in(reason: str) -> str:
    return reason.rpartition("(")[2].rstrip(")")


def _workload_view(workload: Workload) -> WorkloadView:
    return WorkloadView(
        workload.uid,
        workload.name,
        workload.namespace,
        str(workload.identity),
        workload.protocol.value,
        tuple(map(str, workload.addresses)),
        workload.node,
        workload.network,
    )
