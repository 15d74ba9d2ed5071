"""Short questions to the cluster that many scenarios ask."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.cluster import nodes
from tests.cluster.mesh import NAMESPACE, Tools
from tests.cluster.shell import run
from tests.cluster.topology import NODES, Node


@dataclass(frozen=True)
class Answer:
    """What curl saw: the status (0 for none), the body, its own words for a failure, and seconds."""

    status: int
    body: str
    error: str
    seconds: float


_ASK = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(count):
    try:
        with socket.create_connection((host, port), 15) as sock:
            sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            print("answer" if sock.recv(100) else "end")
    except ConnectionResetError:
        print("reset")
    except BrokenPipeError:
        print("reset")
    except OSError as error:
        print(type(error).__name__)
"""


def endings(
    tools: Tools,
    host: str,
    port: int = 80,
    *,
    count: int = 12,
    namespace: str = "demo",
    pod: str = "deploy/sleep",
) -> list[str]:
    """How connections of a pod end: "answer", "end", "reset", or an exception's name.

    A reset may come so early that connecting tells of it, which curl does not tell from a refusal.
    """
    said = tools.kubectl(
        "-n", namespace, "exec", pod, "--", "python3", "-c", _ASK, host, str(port), str(count)
    )
    return said.split()


def curl(
    tools: Tools, url: str, *, namespace: str = "demo", pod: str = "deploy/sleep", seconds: int = 15
) -> Answer:
    """One request from a pod."""
    form = "\\n%{http_code}\\n%{time_total}\\n%{errormsg}"
    said = tools.kubectl(
        "-n", namespace, "exec", pod, "--", "curl", "-s", "-m", str(seconds), "-w", form, url, check=False
    )  # fmt: skip
    body, status, took, error = said.rsplit("\n", 3)
    return Answer(int(status), body, error, float(took))


def pods(tools: Tools, namespace: str, label: str) -> list[dict[str, Any]]:
    """Pods that are not being deleted."""
    found = json.loads(tools.kubectl("-n", namespace, "get", "pod", "-l", label, "-o", "json"))
    return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether its condition Ready is true."""
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", [])
    )


def ztunnel_of(tools: Tools, node: Node) -> str:
    """The name of the node's ztunnel pod. Raises LookupError."""
    for pod in pods(tools, NAMESPACE, "app=ztunnel"):
        if pod["spec"].get("nodeName") == node.name:
            return str(pod["metadata"]["name"])
    raise LookupError(f"no ztunnel on {node.name}")


def process(tools: Tools, node: Node, namespace: str, label: str) -> str:
    """The number, in the node, of the first container's process 1 of a pod on that node."""
    [pod] = [one for one in pods(tools, namespace, label) if one["spec"].get("nodeName") == node.name]
    identity = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    tasks = run(*nodes.inside(node, tools.places, "ctr", "-n", "k8s.io", "task", "ls"))
    [pid] = [line.split()[1] for line in tasks.splitlines() if line.startswith(identity)]
    return pid


def kill(tools: Tools, node: Node, namespace: str, label: str) -> None:
    """kill -9 of the first container's process 1 of a pod on that node, from the node."""
    run(*nodes.inside(node, tools.places, "kill", "-9", process(tools, node, namespace, label)))


_WATCH = """
import os, sys, time
while os.path.exists(f"/proc/{sys.argv[1]}"):
    time.sleep(0.002)
print(time.time())
"""


@contextmanager
def end_of(tools: Tools, node: Node, namespace: str, label: str) -> Iterator[Callable[[], float]]:
    """Watches the process that `process` finds, while the block runs.

    Gives a function that waits for its end, a minute at most, and returns when that was (Unix time).
    """
    pid = process(tools, node, namespace, label)
    command = nodes.inside(node, tools.places, sys.executable, "-c", _WATCH, pid)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        try:
            yield lambda: float(watching.communicate(timeout=60)[0])
        finally:
            watching.kill()


def logs(tools: Tools, pod: str, *, since: str = "60s") -> list[str]:
    """Lines of a ztunnel's log."""
    return tools.kubectl("-n", NAMESPACE, "logs", pod, f"--since={since}").splitlines()


def warnings(tools: Tools, pod: str) -> list[str]:
    """The warning events of a ztunnel pod."""
    found = json.loads(tools.kubectl("-n", NAMESPACE, "get", "events", "-o", "json"))
    return [
        event["message"]
        for event in found["items"]
        if event["type"] == "Warning" and event["involvedObject"]["name"] == pod
    ]


NODE1, NODE2 = NODES
