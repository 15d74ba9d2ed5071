"""Waits until ztunnels have logged all past connections."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial

from tests.support.pod import MeshPod


def quiet(pods: Iterable[MeshPod]) -> None:
    """Wait until no connection is open and each that was open has its access log line.

    After that the next line belongs to the next connection. It blocks, for fixtures with ``autouse``:
    pytest-trio runs an asynchronous one only if the test asks for it by name. Raises NotReadyError after
    20 seconds.
    """
    for pod in pods:
        pod.ztunnel.process.wait_until(partial(_said_all, pod), what="done with all connections", timeout=20)


def _said_all(pod: MeshPod) -> bool:
    status, body = pod.ztunnel.http("GET", 15000, "/connections?limit=20000")
    assert status == 200, body
    connections = json.loads(body)
    told = {entry.get("connection") for entry in pod.access_log()}
    return all(one["state"] == "closed" and one["id"] in told for one in connections)
