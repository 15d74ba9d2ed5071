"""The overview of the node: what the front page shows from the control side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ztunnel.certs.manager import Expiry
from ztunnel.config.model import Config
from ztunnel.control.merge import merged_connections
from ztunnel.control.mesh_source import MeshSource
from ztunnel.inpod.zds_session import PodView
from ztunnel.messages import PodConnections, Report, Sample
from ztunnel.observe import families
from ztunnel.version import build_info


def overview(
    config: Config,
    mesh: MeshSource,
    expiries: Sequence[Expiry],
    pods: Iterable[PodView],
    reports: Sequence[Report],
    counts: Mapping[str, float],
    process: Iterable[Sample],
) -> dict[str, Any]:
    """Returns values for JSON; ``front.js`` shows them.

    pods: those that the CNI agent added; none in dedicated mode. reports: of the data planes. counts: of
        their samples, by `count_into`. process: of `process_samples`.
    """
    held = dict(merged_connections(reports))
    own = {sample.family: sample.value for sample in process}

    def counted(name: str) -> float:
        return counts.get(name, 0)

    total, count = map(counted, families.LOOP_LAG.samples[:2])
    open_now = own.get(families.OPEN_FDS.name, 0) + counted(families.OPEN_FDS.name)
    failing = [one for one in expiries if one.renewal_failing is not None]
    return {
        "version": build_info(config.istio_version).view()["version"],
        "node": config.local_node or "",
        "mode": config.proxy_mode.value,
        "waitingFor": mesh.waiting_for or "",
        "xds": _xds(mesh),
        "xdsTrouble": bool(mesh.trouble or mesh.waiting_for),
        "ca": _ca(config, expiries, failing),
        "caTrouble": bool(failing),
        "pods": [*_pods(pods, held), *_others(config, held)],
        "open": sum(len(one.inbound) + len(one.outbound) for report in reports for one in report.pods),
        "failed": counted(families.FAILURES.samples[0]),
        "tasks": own.get(families.ALIVE_TASKS.name, 0) + counted(families.ALIVE_TASKS.name),
        "loopLagSeconds": total / count if count else 0.0,
        "descriptors": f"{open_now:g} of {own.get(families.MAX_FDS.name, 0):g}",
    }


_SHOWN = frozenset((*families.LOOP_LAG.samples[:2], families.FAILURES.samples[0], families.OPEN_FDS.name)) | {
    families.ALIVE_TASKS.name
}


def count_into(counts: dict[str, float], samples: Iterable[Sample]) -> None:
    """Add up the samples that the overview shows. There may be 100,000 samples in all."""
    for one in samples:
        if one.family in _SHOWN:
            counts[one.family] = counts.get(one.family, 0) + one.value


def _xds(mesh: MeshSource) -> str:
    if mesh.xds is None:
        return "none: the local file" if mesh.local is not None else "none"
    return mesh.waiting_for or mesh.trouble or f"connected to {mesh.xds.address}"


def _ca(config: Config, expiries: Sequence[Expiry], failing: Sequence[Expiry]) -> str:
    if failing:
        return f"{len(failing)} cannot be renewed: {failing[0].renewal_failing}"
    where = "the built-in one" if config.ca_address is None else config.ca_address
    return f"{where}, {len(expiries)} certificate{'' if len(expiries) == 1 else 's'}"


def _pods(pods: Iterable[PodView], held: dict[str, PodConnections]) -> list[dict[str, Any]]:
    return [
        {
            "uid": pod.uid,
            "name": f"{pod.info.namespace}/{pod.info.name}",
            "serviceAccount": pod.info.service_account,
            "state": pod.state.value,
            **_counts(held.pop(pod.uid, None)),
        }
        for pod in pods
    ]


def _others(config: Config, held: dict[str, PodConnections]) -> list[dict[str, Any]]:
    """Returns pods that the agent did not add: the one of a dedicated ztunnel."""
    info = config.proxy_workload_info
    return [
        {
            "uid": uid,
            "name": uid if info is None else f"{info.namespace}/{info.name}",
            "serviceAccount": "" if info is None else info.service_account,
            "state": "Up",
            **_counts(one),
        }
        for uid, one in held.items()
    ]


def _counts(held: PodConnections | None) -> dict[str, int]:
    if held is None:
        return {"inbound": 0, "outbound": 0}
    return {"inbound": len(held.inbound), "outbound": len(held.outbound)}
