"""The whole way of one connection, told: from a pod to a destination, through the decisions themselves.

`explain` runs `route` for the client's side, and for the other end, where it is known here, the decisions of
`ztunnel.explain.arrival`. What it adds is the reading: which endpoints there were and why not
the others, which policies apply and which clause decides, and one sentence at the end.

Randomness: where the real decision draws one of several endpoints, so does this one, from a generator made
of the question; so the same question about the same mesh has the same answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from ztunnel.decide.balance import SelectionMode, service_by_address
from ztunnel.decide.plans import (
    OutboundPlan,
    OutboundProtocol,
    OutboundRequest,
    Refusal,
)
from ztunnel.decide.route import route
from ztunnel.decide.survey import survey_endpoints
from ztunnel.explain.answer import (
    ArrivalView,
    EndpointView,
    Explanation,
    Outcome,
    PlanView,
    StepTaken,
    WorkloadView,
)
from ztunnel.explain.arrival import Setting, arrive, arrive_plain, client_address, named
from ztunnel.explain.catalogue import Catalogue
from ztunnel.explain.names import Destination, UnclearError, find_destination, find_source
from ztunnel.model.address import SocketAddress
from ztunnel.model.service import Service
from ztunnel.model.workload import HealthStatus, Protocol, Workload

POLICY_CODE = "ZT-POL-001"
_ENDPOINTS = 200
"""Endpoints that an answer lists; the chosen one is always among them."""

_LEFT_OUT = 500
"""Workloads of a service's namespace that are looked at for those that its health policy left out."""


@dataclass(frozen=True, slots=True)
class Question:
    """From whom to whom. ``avoid``: who failed a moment ago, as in `route`."""

    source: str
    destination: str
    avoid: Collection[str] = ()


def explain(catalogue: Catalogue, question: Question, setting: Setting) -> Explanation:
    """Tell the way of a connection. Never raises for a name that is none: the outcome then is UNKNOWN."""
    try:
        source = find_source(catalogue, question.source, setting.network)
        destination = find_destination(
            catalogue, question.destination, source, setting.network, setting.cluster_domain
        )
    except UnclearError as unclear:
        return Explanation(
            question.source,
            question.destination,
            Outcome.UNKNOWN,
            str(unclear),
            code=unclear.code,
            nearest=unclear.nearest,
        )
    return _Telling(catalogue, question, setting, source, destination).tell()


def plan_of(
    catalogue: Catalogue, question: Question, setting: Setting
) -> tuple[Workload, SocketAddress, OutboundPlan | Refusal | None] | None:
    """The client, the address it connects to, and the plan (None for a client outside the mesh).

    None when the question is unclear. For what only a running data plane can add to an explanation.
    """
    try:
        source = find_source(catalogue, question.source, setting.network)
        destination = find_destination(
            catalogue, question.destination, source, setting.network, setting.cluster_domain
        )
    except UnclearError:
        return None
    return source, destination.address, _route(catalogue, question, setting, source, destination)


def _route(
    catalogue: Catalogue, question: Question, setting: Setting, source: Workload, destination: Destination
) -> OutboundPlan | Refusal | None:
    if source.protocol is not Protocol.HBONE:
        return None
    request = OutboundRequest(source, client_address(source), destination.address, setting.network)
    random = Random(f"{question.source} {question.destination}")  # noqa: S311 - one of several equal endpoints
    return route(catalogue.view, request, random, illegal_ports=setting.illegal_ports, avoid=question.avoid)


class _Telling:
    """One explanation under way."""

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

    def tell(self) -> Explanation:
        if not self.source.addresses:
            self.notes.append(f"Workload {self.source.uid} has no address, so its connections are unknown.")
        plan = _route(self.catalogue, self.question, self.setting, self.source, self.destination)
        if plan is None:
            return self._from_outside()
        if isinstance(plan, Refusal):
            return self._answer(
                Outcome.REFUSED,
                f"{named(self.source)} cannot reach {self._goal()}: {plan.text} ({plan.kind.value}). "
                f"{plan.why[-1] if plan.why else ''}".rstrip(),
                plan,
                code=plan.kind.value,
            )
        arrival = arrive(self.view, self.source, plan, self.setting, self.notes)
        outcome, code, summary = self._end(plan, arrival)
        return self._answer(outcome, summary, plan, arrival, code)

    # -- the client's side -------------------------------------------------------------------------------

    def _answer(
        self,
        outcome: Outcome,
        summary: str,
        plan: OutboundPlan | Refusal,
        arrival: ArrivalView | None = None,
        code: str = "",
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
            steps=tuple(StepTaken(step.name, step.value) for step in plan.steps),
            why=(*how, *plan.why),
            endpoints=self._endpoints(plan),
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
            next_hop=str(plan.next_hop)
            if plan.resolve is None
            else f"{plan.resolve.hostname}:{plan.next_hop.port}",
            authority=plan.authority or "",
            presents=str(self.source.identity) if mesh else "",
            expects=plan.expected,
            inner_expects=plan.inner_expected,
            resolves="" if plan.resolve is None else plan.resolve.hostname,
            service="" if plan.destination_service is None else str(plan.destination_service.key),
            workload="" if plan.destination_workload is None else plan.destination_workload.uid,
            through=through,
        )

    def _endpoints(self, plan: OutboundPlan | Refusal) -> tuple[EndpointView, ...]:
        """The endpoints of the service that was addressed; those of a waypoint or gateway are its own."""
        service = self.destination.service
        if service is None:
            service = service_by_address(
                self.view, self.setting.network, self.destination.address.ip, self.source.namespace
            )
        if service is None:
            return ()
        port = self.destination.address.port
        found = survey_endpoints(
            self.view, service, port, self.source, SelectionMode.STANDARD, self.question.avoid
        )
        chosen = ""
        if isinstance(plan, OutboundPlan) and plan.destination_workload is not None:
            chosen = plan.endpoint_uid or plan.destination_workload.uid
        views = [
            EndpointView(
                one.uid,
                "chosen" if one.uid == chosen else "possible" if one.possible else "left out",
                one.why,
                "" if one.workload is None else one.workload.name,
                "" if one.workload is None or not one.workload.addresses else str(one.workload.addresses[0]),
                one.port,
            )
            for one in found
        ]
        order = {"chosen": 0, "possible": 1, "left out": 2}
        views += self._unhealthy(service, {one.uid for one in found})
        views.sort(key=lambda one: (order[one.state], one.uid))
        if len(views) > _ENDPOINTS:
            self.notes.append(f"Of {len(views)} endpoints {_ENDPOINTS} are listed.")
        return tuple(views[:_ENDPOINTS])

    def _unhealthy(self, service: Service, known: Collection[str]) -> list[EndpointView]:
        """Workloads that belong to the service and are no endpoints, since they are not healthy."""
        part = f"/{service.namespace}/"
        uids = [uid for uid in self.catalogue.uids() if part in uid and uid not in known]
        left_out = []
        for uid in sorted(uids)[:_LEFT_OUT]:
            workload = self.view.workload(uid)
            if workload is not None and service.key in workload.services:
                healthy = workload.status is HealthStatus.HEALTHY
                why = "it is no endpoint" if healthy else "it is not healthy (not ready)"
                address = str(workload.addresses[0]) if workload.addresses else ""
                left_out.append(EndpointView(uid, "left out", why, workload.name, address))
        return left_out

    # -- a client outside the mesh -----------------------------------------------------------------------

    def _from_outside(self) -> Explanation:
        """Nothing captures the client's traffic: it arrives as plain TCP, and policies see no identity."""
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
            found = survey_endpoints(self.view, service, port, self.source, SelectionMode.STANDARD)
            possible = [one for one in found if one.possible and one.workload is not None]
            workload = possible[0].workload if possible else None
            port = possible[0].port if possible else port
            endpoints = tuple(
                EndpointView(one.uid, "possible" if one.possible else "left out", one.why, port=one.port)
                for one in found[:_ENDPOINTS]
            )
        arrival = None
        if workload is not None and workload.protocol is Protocol.HBONE and workload.addresses:
            arrival = arrive_plain(
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
        return Explanation(
            self.question.source,
            self.question.destination,
            outcome,
            summary,
            code=code,
            source=_workload_view(self.source),
            destination=str(address),
            why=(self.destination.how,) if self.destination.how else (),
            endpoints=endpoints,
            arrival=arrival,
            notes=tuple(self.notes),
        )

    # -- the sentence at the end -------------------------------------------------------------------------

    def _end(self, plan: OutboundPlan, arrival: ArrivalView | None) -> tuple[Outcome, str, str]:
        name, goal = named(self.source), self._goal()
        if plan.protocol is OutboundProtocol.TCP:
            whom = (
                "nobody of the mesh" if plan.destination_workload is None else "a workload outside the mesh"
            )
            return Outcome.PLAIN, "", f"{name} reaches {goal} as plain TCP at {plan.next_hop}: it is {whom}."
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
    """What a connection goes through before its destination."""
    if plan.protocol is OutboundProtocol.DOUBLE_HBONE:
        return "network gateway"
    return "waypoint" if plan.waypoint else ""


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
