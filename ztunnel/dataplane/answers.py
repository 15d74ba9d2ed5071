"""The answers of a data plane to the questions of people (`ztunnel.messages.Asked`).

For each topic, the parameters and the items of the answer:

- EXPLAIN: ``from``, ``to``. One `Explanation`; those of several data planes differ only in ``live``.
- CONNECTIONS: the parameters of `ztunnel.explain.connection_views.Selection`. One `ConnectionView` for each.
- TASKS: the pid of this process, then one `TaskNode` for each task; nothing if ``pid`` is given and is ours.
- SOCKETS, POOL: one mapping for each descriptor or tunnel.

An answer is a generator. Long answers are made in slices: between them it yields None, so that other tasks
can run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import trio

from ztunnel.bounds import DEFAULTS, ExplainBounds
from ztunnel.config.model import Config
from ztunnel.decide.plans import OutboundPlan
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, Told, telling
from ztunnel.explain.connection_views import ConnectionView, Selection
from ztunnel.explain.text import span
from ztunnel.messages import Asked, Topic
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.observe.task_tree import TaskAges, task_nodes
from ztunnel.proxy.connection_table import ConnectionEntry
from ztunnel.proxy.history import ClosedConnection
from ztunnel.proxy.open_descriptors import descriptors
from ztunnel.proxy.pod import PodProxy
from ztunnel.proxy.pod_views import (
    closed_view,
    idle_seconds,
    open_entries,
    open_view,
    pool_tunnels,
    tunnels,
)
from ztunnel.proxy.podcontext import Shared
from ztunnel.proxy.waits import WORDS
from ztunnel.slices import Slices

ANSWER_SLICE = 50
"""Connections, tasks or descriptors that are shown between two checkpoints: about a millisecond."""

GLANCED = 500
"""Connections whose destination alone is read between two checkpoints."""

_TUNNELS = 5
"""Tunnels that are shown between two checkpoints, each with all of its streams."""


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """What answers are made from. ``ages``: of the tasks of a process of its own."""

    config: Config
    shared: Shared
    pods: list[PodProxy]
    ages: TaskAges | None = None


def answer(asked: Asked, here: AnswerContext) -> Iterator[Any]:
    """Returns the items of an answer, and None where other tasks may run."""
    match asked.topic:
        case Topic.EXPLAIN:
            return _explain(asked.parameters, here)
        case Topic.CONNECTIONS:
            return _connections(Selection.parse(asked.parameters), here)
        case Topic.TASKS:
            return _tasks(asked.parameters, here.ages)
        case Topic.SOCKETS:
            return descriptors(here.pods, here.config.dns_proxy_addr.port)
        case Topic.POOL:
            return _sliced((one for pod in here.pods for one in tunnels(pod)), _TUNNELS)


def setting_of(config: Config, bounds: ExplainBounds = DEFAULTS.explain) -> Setting:
    """Returns the settings that explanations need, from the configuration, and their bounds."""
    return Setting(
        network=config.network,
        illegal_ports=config.illegal_ports,
        localhost_app_tunnel=config.localhost_app_tunnel,
        cluster_domain=config.cluster_domain,
        bounds=bounds,
    )


def _sliced(items: Iterator[Any], size: int = ANSWER_SLICE) -> Iterator[Any]:
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            yield None


# -- connections -----------------------------------------------------------------------------------------


def _connections(selection: Selection, here: AnswerContext) -> Iterator[ConnectionView | None]:
    """Returns the selected connections, at most as many as wanted.

    The order is made where all answers are merged.

    Making a view takes about twenty times as long as checking whether it is selected, so few are made.
    """
    now = here.shared.wall_clock()
    found: list[tuple[float, int, PodProxy | None, ConnectionEntry | ClosedConnection]] = []
    for looked, (pod, entry) in enumerate(_candidates(selection, here), 1):
        rank = _rank(selection, pod, entry, now)
        if rank is not None:
            found.append((rank, looked, pod, entry))
        if len(found) >= selection.limit + GLANCED:
            found = nlargest(selection.limit, found)
        if looked % GLANCED == 0 or (selection.peer and looked % ANSWER_SLICE == 0):
            yield None
    if len(found) > selection.limit:
        found = nlargest(selection.limit, found)
    for number, (_, _, pod, entry) in enumerate(found, 1):
        view = _view(pod, entry, now)
        if view is not None:
            yield view
        if number % ANSWER_SLICE == 0:
            yield None


def _candidates(
    selection: Selection, here: AnswerContext
) -> Iterator[tuple[PodProxy | None, ConnectionEntry | ClosedConnection]]:
    """Returns the open connections with their pods, then the closed ones.

    Only those with a wanted state and pod.
    """
    if selection.state != "closed" and not (selection.failed or selection.code):
        for pod in here.pods:
            if selection.pod in ("", pod.context.name):
                for entry in open_entries(pod):
                    yield pod, entry
    if selection.state != "open":
        for was in here.shared.history.latest():
            yield None, was


def _rank(
    selection: Selection, pod: PodProxy | None, entry: ConnectionEntry | ClosedConnection, now: float
) -> float | None:
    """Returns the sort key of a connection, None if it is not selected."""
    if isinstance(entry, ClosedConnection):
        if not selection.takes_closed(entry.id, entry.pod, entry.code, failed=bool(entry.error)):
            return None
        age, idle, count = now - entry.began, 0.0, entry.received + entry.sent
    else:
        report = entry.report
        if report is None or selection.id not in ("", report.id):
            return None
        age, count = trio.current_time() - entry.opened, sum(report.counted)
        idle = idle_seconds(entry) if selection.sort == "idle" else 0.0
    if selection.peer:
        view = _view(pod, entry, now)
        if view is None or not selection.takes(view):
            return None
    return selection.rank(age=age, idle=idle, count=count)


def _view(
    pod: PodProxy | None, entry: ConnectionEntry | ClosedConnection, now: float
) -> ConnectionView | None:
    if isinstance(entry, ClosedConnection):
        return closed_view(entry, now)
    assert pod is not None
    return open_view(pod, entry)


def _tasks(parameters: dict[str, str], ages: TaskAges | None) -> Iterator[Any]:
    pid = os.getpid()
    if parameters.get("pid") == str(pid):
        return
    yield {"pid": pid}
    yield from _sliced(task_nodes(ages, words=WORDS))


# -- explanations ----------------------------------------------------------------------------------------


def _explain(parameters: dict[str, str], here: AnswerContext) -> Iterator[Any]:
    catalogue = StoreCatalogue(here.shared.store)
    setting = setting_of(here.config, here.shared.bounds.explain)
    question = Question(parameters.get("from", ""), parameters.get("to", ""))

    def avoided_by(source: Workload) -> Collection[str]:
        pod = _pod_of(source, here.pods)
        return () if pod is None or pod.outbound is None else pod.outbound.ejection.current()

    told = yield from telling(catalogue, question, setting, avoided_by)
    if told.source is not None:
        told.explanation.live = yield from _live(told, told.source, here)
    yield told.explanation


def _pod_of(workload: Workload, pods: list[PodProxy]) -> PodProxy | None:
    for pod in pods:
        info = pod.context.info
        if (info.namespace, info.name) == (workload.namespace, workload.name):
            return pod
    return None


def _live(told: Told, source: Workload, here: AnswerContext) -> Slices[dict[str, Any]]:
    """Returns the state at this moment: tunnels, ejected endpoints, the certificate, the last connections."""
    pod, plan = _pod_of(source, here.pods), told.plan
    if pod is None or pod.outbound is None:
        where = f"on node {source.node}" if source.node else "elsewhere"
        elsewhere = (
            f"{source.namespace}/{source.name} is not served by this ztunnel ({where}): tunnels, "
            "certificates and past connections have to be asked for there."
        )
        return {"sentences": [elsewhere]}
    certificate, trouble = _certificate(source, here)
    sentences = [certificate, *_avoided(pod)]
    live: dict[str, Any] = {"certificateTrouble": certificate} if trouble else {}
    if isinstance(plan, OutboundPlan) and plan.authority is not None:
        live["tunnels"] = list(pool_tunnels(pod, plan.next_hop))
        if not live["tunnels"]:
            live["noTunnel"] = f"no tunnel to {plan.next_hop} stands; the next connection makes one."
    assert told.destination is not None
    live["connections"] = yield from _latest(pod, told.destination, here)
    live["sentences"] = sentences
    return live


def _certificate(source: Workload, here: AnswerContext) -> tuple[str, bool]:
    """Returns a text about the client's certificate, and whether it is the reason why connections fail."""
    held, identity = here.shared.certificates.state(source.identity), source.identity
    if held is None:
        return f"no certificate of {identity} has been asked for yet; the first connection does.", False
    if isinstance(held, str):
        return f"there is no certificate of {identity}: {held}", True
    left = held - here.shared.wall_clock()
    if left > 0:
        return f"the certificate of {identity} is valid for another {span(left)}.", False
    return f"the certificate of {identity} expired {span(-left)} ago and was not renewed.", True


def _avoided(pod: PodProxy) -> Iterator[str]:
    if pod.outbound is not None:
        for uid, seconds in sorted(pod.outbound.ejection.since().items()):
            yield f"endpoint {uid} failed {span(seconds)} ago and is avoided while there are others."


def _latest(pod: PodProxy, address: SocketAddress, here: AnswerContext) -> Slices[list[ConnectionView]]:
    """Returns the last connections of a pod to a destination, open ones first."""
    found: list[ConnectionView] = []
    most = here.shared.bounds.explain.connections
    for number, entry in enumerate(list(pod.context.connections.outbound), 1):
        if entry.report is not None and entry.report.destination == address:
            view = open_view(pod, entry)
            found += () if view is None else (view,)
        if len(found) >= most:
            return found
        if number % GLANCED == 0:
            yield
    now, name = here.shared.wall_clock(), pod.context.name
    for number, was in enumerate(here.shared.history.latest(), 1):
        if was.destination == address and was.pod == name and was.direction == "outbound":
            found.append(closed_view(was, now))
        if len(found) >= most:
            return found
        if number % GLANCED == 0:
            yield
    return found
