"""Explains, for each endpoint of a service, why `select_endpoint` may or may not choose it.

`tests/decide/test_survey.py` compares the two for random services: an endpoint that `select_endpoint` chooses
is possible here, and one that it never chooses is left out here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from ztunnel.decide.balance import Candidate, SelectionMode, can_be_reached, not_avoided, qualified
from ztunnel.decide.mesh_view import MeshView
from ztunnel.model.service import Endpoint, Service
from ztunnel.model.workload import Workload
from ztunnel.slices import Slices

SURVEY_SLICE = 100
"""Endpoints that are looked at between two pauses: their workloads may have to be decoded, 20 µs each."""


class Surveyed(NamedTuple):
    """An endpoint. ``why``: why it is left out, "" if it may be chosen. ``port``: its own port, or 0."""

    uid: str
    workload: Workload | None
    port: int
    why: str = ""

    @property
    def possible(self) -> bool:
        """Whether it may be chosen."""
        return not self.why


def survey_endpoints(
    view: MeshView,
    service: Service,
    port: int,
    source: Workload,
    mode: SelectionMode,
    avoid: Collection[str] = (),
) -> Slices[dict[str, Surveyed]]:
    """Returns all endpoints by uid, in the order of the store. The parameters are those of `select_endpoint`.

    Pauses every `SURVEY_SLICE` endpoints; at the end the load balancing mode goes over all of them at once,
    as it does for each connection.
    """
    usable: list[Candidate] = []
    result: dict[str, Surveyed] = {}
    for number, (uid, endpoint) in enumerate(list(view.endpoints(service).items()), 1):
        if number % SURVEY_SLICE == 0:
            yield
        workload = view.workload(uid)
        own, why = _own_port(service, endpoint, workload, port, source, mode)
        result[uid] = Surveyed(uid, workload, own, why)
        if not why and workload is not None:
            usable.append((workload, endpoint, own))
    _rank(result, service, source, usable, avoid)
    return result


def _own_port(
    service: Service,
    endpoint: Endpoint,
    workload: Workload | None,
    port: int,
    source: Workload,
    mode: SelectionMode,
) -> tuple[int, str]:
    """Returns the port at which an endpoint would be used, and why it cannot be."""
    if workload is None:
        return 0, "its workload is not known"
    if not (workload.addresses or can_be_reached(workload, source)):
        return 0, "it has no address, no hostname and no network gateway"
    target = service.ports.get(port)
    if target is None and mode is SelectionMode.STANDARD:
        return 0, f"the service has no port {port}; it has {_ports(service.ports)}"
    own = endpoint.ports.get(port) or target
    if mode is SelectionMode.WAYPOINT:
        tunnel = workload.application_tunnel
        if target is None and tunnel is None:
            return 0, f"the service has no port {port}, and it has no application tunnel"
        own = own or (port if tunnel is not None and tunnel.port else None)
    if not own:
        return 0, f"port {port} is a named port that this workload does not define"
    return own, ""


def _ports(ports: Mapping[int, int]) -> str:
    return ", ".join(map(str, sorted(ports))) or "none"


def _rank(
    result: dict[str, Surveyed],
    service: Service,
    source: Workload,
    usable: list[Candidate],
    avoid: Collection[str],
) -> None:
    fresh = not_avoided(usable, avoid) if avoid else usable
    best = qualified(service, source, fresh)
    spared = bool(avoid) and any(workload.capacity for workload, _, _ in best)
    if not spared:
        best = qualified(service, source, usable)
    chosen = {workload.uid for workload, _, _ in best}
    kept = {workload.uid for workload, _, _ in fresh}
    for workload, _, _ in usable:
        uid = workload.uid
        if spared and uid not in kept:
            why = "it failed a moment ago and is avoided while there are others"
        elif uid not in chosen:
            why = _not_best(service)
        elif not workload.capacity:
            why = "its capacity is 0"
        else:
            continue
        result[uid] = result[uid]._replace(why=why)


def _not_best(service: Service) -> str:
    balancer = service.load_balancer
    assert balancer is not None
    scopes = ", ".join(scope.value for scope in balancer.routing_preferences)
    return f"load balancing mode {balancer.mode.value} ({scopes}) prefers others"
