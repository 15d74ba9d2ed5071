"""What the front page is told by the control side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.support.data_plane import CONFIG
from ztunnel.bounds import ControlBounds
from ztunnel.certs.manager import Expiry
from ztunnel.config.model import Config, LocalStatic, WorkloadInfo
from ztunnel.control.mesh_source import MeshSource
from ztunnel.control.overview import count_into, overview
from ztunnel.inpod.zds_session import PodState, PodView
from ztunnel.messages import InboundConnection, MeshDelta, PodConnections, PodInfo, Rejected, Report, Sample
from ztunnel.model.identity import Identity
from ztunnel.observe import families
from ztunnel.observe.metrics import ControlMetrics

ONE = InboundConnection("10.0.0.1:1", None, "10.0.0.2:80", "HBONE")
CLIENT = PodConnections("u1", (ONE,), ())
IDENTITY = Identity("cluster.local", "default", "client")


async def applied(_: MeshDelta) -> Sequence[Rejected]:
    raise AssertionError("nothing is synced here")


def shown(config: Config, **fields: Any) -> dict[str, Any]:
    mesh = MeshSource(config, applied, ControlMetrics("", shared=True), ControlBounds())
    given: dict[str, Any] = {"expiries": [], "pods": [], "reports": [], "counts": {}, "process": []}
    return overview(config, mesh, **given | fields)


def row(uid: str, name: str, service_account: str, state: str, inbound: int) -> dict[str, Any]:
    return {
        "uid": uid,
        "name": name,
        "serviceAccount": service_account,
        "state": state,
        "inbound": inbound,
        "outbound": 0,
    }


def test_it_names_the_pods_of_the_agent_with_what_all_data_planes_have_open():
    pods = [
        PodView("u1", PodInfo("client", "default", "sa"), PodState.UP),
        PodView("u2", PodInfo("late", "shop", "sb"), PodState.PENDING),
    ]
    told = shown(CONFIG, pods=pods, reports=[Report(1, (), (CLIENT,)), Report(2, (), (CLIENT,))])
    assert told["pods"] == [
        row("u1", "default/client", "sa", "Up", 2),
        row("u2", "shop/late", "sb", "Pending", 0),
    ]
    assert told["open"] == 2


def test_the_pod_of_a_dedicated_ztunnel_comes_from_its_configuration():
    info = WorkloadInfo(name="client", namespace="default", service_account="sa")
    told = shown(replace(CONFIG, proxy_workload_info=info), reports=[Report(1, (), (CLIENT,))])
    assert told["pods"] == [row("u1", "default/client", "sa", "Up", 1)]
    [nameless] = shown(CONFIG, reports=[Report(1, (), (CLIENT,))])["pods"]
    assert (nameless["name"], nameless["serviceAccount"]) == ("u1", "")


def test_where_the_mesh_comes_from_and_what_it_waits_for():
    told = shown(CONFIG)
    assert told["xdsTrouble"]
    assert told["xds"] == told["waitingFor"] != ""
    local = replace(CONFIG, xds_address=None, local_xds=LocalStatic("{}"))
    told = shown(local)
    assert (told["xds"], told["waitingFor"], told["xdsTrouble"]) == ("none: the local file", "", False)
    assert shown(replace(CONFIG, xds_address=None))["xds"] == "none"


def test_a_certificate_that_cannot_be_renewed_is_told_of_first():
    fine, failing = Expiry(IDENTITY, 1.0, None), Expiry(IDENTITY, 1.0, "no answer")
    told = shown(replace(CONFIG, ca_address=None), expiries=[fine])
    assert (told["ca"], told["caTrouble"]) == ("the built-in one, 1 certificate", False)
    told = shown(replace(CONFIG, ca_address="https://ca:1"), expiries=[fine, fine])
    assert told["ca"] == "https://ca:1, 2 certificates"
    told = shown(CONFIG, expiries=[fine, failing])
    assert (told["ca"], told["caTrouble"]) == ("1 cannot be renewed: no answer", True)


def test_figures_are_of_this_process_and_of_all_data_planes():
    seconds, count = families.LOOP_LAG.samples[:2]
    counts: dict[str, float] = {}
    for _ in range(2):
        count_into(
            counts,
            [
                Sample(seconds, (), 0.5),
                Sample(count, (), 10),
                Sample(families.FAILURES.samples[0], ("ZT-POL-001",), 3),
                Sample(families.OPEN_FDS.name, (), 20),
                Sample(families.ALIVE_TASKS.name, (), 7),
                Sample("istio_tcp_sent_bytes_total", (), 1000),
            ],
        )
    assert "istio_tcp_sent_bytes_total" not in counts
    process = [
        Sample(families.OPEN_FDS.name, (), 2),
        Sample(families.MAX_FDS.name, (), 1024),
        Sample(families.ALIVE_TASKS.name, (), 1),
    ]
    told = shown(CONFIG, counts=counts, process=process)
    assert told["loopLagSeconds"] == 0.05
    assert (told["failed"], told["tasks"], told["descriptors"]) == (6, 15, "42 of 1024")
    assert shown(CONFIG)["loopLagSeconds"] == 0
