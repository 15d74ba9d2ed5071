"""The survey of endpoints says of each what `select_endpoint` does with it."""

from __future__ import annotations

from random import Random

from tests.support.fake_mesh import HBONE, FakeMesh, balancer
from tests.support.random_mesh import Builder
from ztunnel.decide.balance import SelectionMode, select_endpoint
from ztunnel.decide.survey import Surveyed, survey_endpoints
from ztunnel.model.service import LoadBalancerMode, LoadBalancerScope
from ztunnel.model.workload import Locality
from ztunnel.slices import at_once

STANDARD = SelectionMode.STANDARD


def survey(*arguments) -> list[Surveyed]:
    """The endpoints, without pauses."""
    return list(at_once(survey_endpoints(*arguments)).values())


def test_possible_are_just_those_that_can_be_chosen():
    chosen_somewhere = left_out_somewhere = 0
    for seed in range(400):
        random = Random(seed)
        build = Builder(random)
        mesh = FakeMesh()
        for index in range(2):
            service = build.service(index)
            mesh.services[service.key] = service
            mesh.members.setdefault(service.key, {})
        workloads = [build.workload(index, mesh) for index in range(6)]
        source = random.choice(workloads)
        mode = random.choice(list(SelectionMode))
        avoid = frozenset(workload.uid for workload in build.some(workloads, 3))
        for service in mesh.services.values():
            port = random.choice([80, 8080, 9])
            draws = [
                select_endpoint(mesh, service, port, source, mode, random=Random(one), avoid=avoid)
                for one in range(60)
            ]
            chosen = {draw.workload.uid for draw in draws if not isinstance(draw, str)}
            ports = {draw.workload.uid: draw.port for draw in draws if not isinstance(draw, str)}
            surveyed = survey(mesh, service, port, source, mode, avoid)
            assert {one.uid for one in surveyed if one.possible} == chosen
            assert {one.uid: one.port for one in surveyed if one.possible} == ports
            assert {one.uid for one in surveyed} == set(mesh.endpoints(service))
            chosen_somewhere += len(chosen)
            left_out_somewhere += len(surveyed) - len(chosen)
    assert chosen_somewhere > 100
    assert left_out_somewhere > 100


def test_the_reasons():
    mesh = FakeMesh()
    service = mesh.add_service(
        "web",
        "10.96.0.1",
        ports={80: 0},
        load_balancer=balancer(LoadBalancerMode.FAILOVER, LoadBalancerScope.ZONE),
    )
    near, far = Locality("r", "z"), Locality("r", "other")
    source = mesh.add_workload("client", "10.0.0.1", HBONE, locality=near)
    mesh.add_workload("near", "10.0.0.2", HBONE, behind=service, ports={80: 8080}, locality=near)
    mesh.add_workload("empty", "10.0.0.3", HBONE, behind=service, ports={80: 8080}, locality=near, capacity=0)
    mesh.add_workload("far", "10.0.0.4", HBONE, behind=service, ports={80: 8080}, locality=far)
    mesh.add_workload("unnamed", "10.0.0.5", HBONE, behind=service, locality=near)
    mesh.add_workload("nowhere", "", HBONE, behind=service, ports={80: 8080}, locality=near)
    found = {one.uid.rpartition("/")[2]: one.why for one in survey(mesh, service, 80, source, STANDARD)}
    assert found == {
        "near": "",
        "empty": "its capacity is 0",
        "far": "load balancing mode Failover (Zone) prefers others",
        "unnamed": "port 80 is a named port that this workload does not define",
        "nowhere": "it has no address, no hostname and no network gateway",
    }
    surveyed = survey(mesh, service, 81, source, STANDARD)
    [gone] = {one.why for one in surveyed if one.workload is not None and one.workload.addresses}
    assert gone == "the service has no port 81; it has 80"
    mesh.add_workload("near-2", "10.0.0.6", HBONE, behind=service, ports={80: 8080}, locality=near)
    avoided = survey(mesh, service, 80, source, STANDARD, {"cluster//Pod/default/near"})
    [why] = [one.why for one in avoided if one.uid.endswith("/near")]
    assert why == "it failed a moment ago and is avoided while there are others"
