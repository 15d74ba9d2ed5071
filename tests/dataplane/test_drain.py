"""What is said of a drain: enough to know what holds it up, and not more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio

from tests.support.logs import capture_logs
from ztunnel.dataplane.drain import drain_samples, progress, report_progress
from ztunnel.messages import PodInfo
from ztunnel.proxy.connection_table import ConnectionTable, InboundEntry, OutboundEntry


class Pod:
    """As much of a pod as a drain looks at."""

    def __init__(self, name: str, *, inbound: int = 0, outbound: int = 0, sockets: int | None = None) -> None:
        table = ConnectionTable()
        table.inbound.update(InboundEntry(trio.CancelScope()) for _ in range(inbound))
        table.outbound.update(OutboundEntry(trio.CancelScope()) for _ in range(outbound))
        info = PodInfo(name, "default", "account")
        self.context = SimpleNamespace(info=info, connections=table)
        self.open_sockets = inbound + outbound if sockets is None else sockets

    def close_one(self) -> None:
        self.context.connections.outbound.pop()
        self.open_sockets -= 1


async def said(pods: Any, seconds: float, events: dict[float, Any] | None = None) -> list[dict[str, Any]]:
    """The fields of the lines about a drain with ten seconds, of which ``seconds`` pass."""
    began = trio.current_time()
    with capture_logs("info") as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report_progress, lambda: pods, began + 10)
            for at, event in (events or {}).items():
                await trio.sleep_until(began + at)
                event()
            await trio.sleep_until(began + seconds)
            nursery.cancel_scope.cancel()
    return [dict(line.fields) for line in lines if line.message == "draining"]


async def test_the_first_line_comes_at_once_and_says_what_is_left(autojump_clock):
    busy, idle = Pod("busy", inbound=1, outbound=2), Pod("idle", outbound=1)
    await trio.sleep(7)
    [line] = await said([idle, busy, Pod("empty")], 0.5)
    assert line == {
        "connections": 4,
        "sockets": 4,
        "pods": 2,
        "remaining": "10s",
        "left": "default/busy: 3, oldest 7s; default/idle: 1, oldest 7s",
    }


async def test_nothing_left_is_nothing_said(autojump_clock):
    assert await said([Pod("empty")], 9) == []


async def test_a_line_a_second_while_something_changes_and_every_five_otherwise(autojump_clock):
    pod = Pod("pod", outbound=5)
    lines = await said([pod], 9.5, {1.5: pod.close_one, 1.6: pod.close_one, 2.5: pod.close_one})
    assert [(line["connections"], line["remaining"]) for line in lines] == [
        (5, "10s"),
        (3, "8s"),
        (2, "7s"),
        (2, "2s"),
    ]


async def test_a_line_stays_short_however_many_pods_there_are(autojump_clock):
    [line] = await said([Pod(f"pod-{number:02}", outbound=1) for number in range(50)], 0.5)
    assert (line["pods"], line["left"].count("default/")) == (50, 8)
    assert line["left"].endswith("; and 42 more pods")


async def test_a_tunnel_without_connections_holds_it_up_too(autojump_clock):
    pods: Any = [Pod("pod", sockets=1)]
    [line] = await said(pods, 0.5)
    assert (line["connections"], line["sockets"], line["left"]) == (0, 1, "default/pod: 0")
    assert [(one.pod, one.connections, one.age) for one in progress(pods)] == [(("default", "pod"), 0, None)]


async def test_metrics_are_by_pod(autojump_clock):
    pods: Any = [Pod("pod", outbound=2), Pod("empty")]
    await trio.sleep(3)
    found = {(sample.family, sample.labels): sample.value for sample in drain_samples(pods, 12)}
    assert found == {
        ("ztunnel_drain_remaining_seconds", ()): 12 - trio.current_time(),
        ("ztunnel_drain_connections", ("default", "pod")): 2,
        ("ztunnel_drain_oldest_connection_seconds", ("default", "pod")): 3,
    }
