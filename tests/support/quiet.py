"""Waiting until everything that ztunnels have to say about past connections has been said."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tests.support.pod import MeshPod, eventually


async def quiet(pods: Iterable[MeshPod]) -> None:
    """Wait until no connection is open and each that was closed has its access log line.

    After that the next line belongs to the next connection. An attempt that was repeated elsewhere is closed
    for the metrics and has a line of another kind.
    """
    for pod in pods:
        await eventually(partial(_said_all, pod), f"{pod.name} told of all connections", 20)


def _said_all(pod: MeshPod) -> bool:
    opened = pod.metric("istio_tcp_connections_opened_total")
    closed = pod.metric("istio_tcp_connections_closed_total")
    complete = len(pod.access_log(message="connection complete"))
    repeated = len(pod.log(message="trying another endpoint"))
    return opened == closed == complete + repeated
