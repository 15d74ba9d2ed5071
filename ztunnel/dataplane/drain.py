"""The progress of a drain: how many connections are left, of which pods, and how old they are.

Somebody who waits for a node to be upgraded wants to know what it waits for. A log line says so in each
second in which something has changed, and every five seconds otherwise. The metrics page shows it for each
pod.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import trio

from ztunnel.bounds import DEFAULTS, LogBounds
from ztunnel.messages import Sample
from ztunnel.observe import families
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.pod import PodProxy

log = get_logger("drain")

_PODS_SHOWN = 8


class PodProgress(NamedTuple):
    """What one pod still has open.

    pod: namespace and name. connections: those of applications. sockets: accepted and still served; a peer's
        tunnel is one, whatever its number of connections. age: seconds since the oldest connection began,
        None without any.
    """

    pod: tuple[str, str]
    connections: int
    sockets: int
    age: float | None

    def __str__(self) -> str:
        age = "" if self.age is None else f", oldest {self.age:.0f}s"
        return f"{self.pod[0]}/{self.pod[1]}: {self.connections}{age}"


def progress(pods: Iterable[PodProxy]) -> list[PodProgress]:
    """Returns what pods still have open, the largest number of connections first; idle pods are left out."""
    now = trio.current_time()
    left = []
    for pod in pods:
        context = pod.context
        oldest = context.connections.oldest()
        found = PodProgress(
            (context.info.namespace, context.info.name),
            len(context.connections),
            pod.open_sockets,
            None if oldest is None else now - oldest,
        )
        if found.connections or found.sockets:
            left.append(found)
    left.sort(key=lambda one: (-one.connections, one.pod))
    return left


def drain_samples(pods: Iterable[PodProxy], deadline: float) -> list[Sample]:
    """Returns the metrics of a drain that ends at ``deadline`` on Trio's clock."""
    samples = [Sample(families.DRAIN_REMAINING.name, (), max(0.0, deadline - trio.current_time()))]
    for one in progress(pods):
        samples.append(Sample(families.DRAIN_CONNECTIONS.name, one.pod, one.connections))
        samples.append(Sample(families.DRAIN_OLDEST.name, one.pod, one.age or 0.0))
    return samples


async def report_progress(
    pods: Callable[[], Iterable[PodProxy]], deadline: float, bounds: LogBounds = DEFAULTS.log
) -> None:
    """Log what is left, until cancelled. Logs nothing when nothing is left."""
    said: list[tuple[tuple[str, str], int, int]] = []
    unchanged = 0
    while True:
        left = progress(pods())
        now = [(one.pod, one.connections, one.sockets) for one in left]
        unchanged = unchanged + 1 if now == said else 0
        if left and unchanged % bounds.drain_unchanged == 0:
            _say(left, deadline - trio.current_time())
        said = now
        await trio.sleep(bounds.drain_interval)


def _say(left: list[PodProgress], remaining: float) -> None:
    shown = [str(one) for one in left[:_PODS_SHOWN]]
    if len(left) > _PODS_SHOWN:
        shown.append(f"and {len(left) - _PODS_SHOWN} more pods")
    log.info(
        "draining",
        connections=sum(one.connections for one in left),
        sockets=sum(one.sockets for one in left),
        pods=len(left),
        remaining=f"{max(0.0, remaining):.0f}s",
        left="; ".join(shown),
    )
