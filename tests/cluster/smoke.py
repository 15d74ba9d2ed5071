"""What CI runs of the cluster: a few scenarios, when their programs are in its cache and there is time.

It says which. Lack of time, or a cluster that does not come up on a busy machine, is said and is no failure.
A scenario that fails is one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.cluster import cluster, programs, requirements
from tests.cluster.places import CHECKOUT, Places

CACHE = Path.home() / ".cache" / "ztunnel-python" / "cluster"
LIMIT = 300.0
"""Seconds for all of it."""

_UP = 180.0
_RESERVE = 60.0
_SCENARIOS = (
    "test_rollouts.py::test_helm_upgrade_with_the_same_values_cuts_nothing",
    "test_policy.py::test_allow_lets_in_whom_it_names_and_resets_others",
    "test_services.py::test_services_of_every_kind",
    "test_tools.py::test_istioctl_ztunnel_config",
    "test_tools.py::test_what_kubectl_says",
)


def why_not(places: Places, left: float) -> str | None:
    """Why the cluster is not started here; None when it is."""
    if left < LIMIT + _RESERVE:
        return f"{left:.0f} s are left, and it takes up to {LIMIT + _RESERVE:.0f}"
    if places.state.exists() or cluster.is_on_this_machine():
        return "somebody's cluster is up on this machine"
    if requirements.missing():
        return "this machine lacks " + "; ".join(requirements.missing()).partition("\n")[0]
    absent = programs.missing(places)
    if absent:
        return (
            f"{len(absent)} of its programs are not in {places.cache}, and compiling them takes half an hour"
        )
    if not (places.images / "layout").exists():
        return f"its images are not in {places.cache}"
    return None


def smoke(left: float) -> int:
    """Runs it if it can be run in ``left`` seconds; the exit status."""
    places = Places(Path(os.environ.get("CLUSTER_CACHE") or CACHE).resolve())
    reason = why_not(places, left)
    if reason is not None:
        print(f"real cluster: not run here: {reason} (make cluster-test runs it)")
        return 0
    environment = {**os.environ, "CLUSTER_CACHE": str(places.cache)}
    print(f"real cluster: {len(_SCENARIOS)} scenarios, programs and images from {places.cache}")
    try:
        came_up = _run(["-m", "tests.cluster", "up"], environment, _UP)
        if came_up != 0:
            why = "it did not come up in time" if came_up is None else "it did not come up, as said above"
            print(f"real cluster: {why}; its scenarios are not run")
            return 0
        chosen = [str(CHECKOUT / "tests" / "cluster" / each) for each in _SCENARIOS]
        arguments = ["-m", "pytest", "-v", "-p", "no:randomly", "-p", "no:xdist", *chosen]
        status = _run(arguments, environment, LIMIT - _UP)
        if status is None:
            print("real cluster: its scenarios took too long; what they would have said is unknown")
        return status or 0
    finally:
        if places.state.exists():
            _run(["-m", "tests.cluster", "down"], environment, _RESERVE)


def _run(arguments: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """The exit status, or None when time was up: then it and what it started are ended."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=CHECKOUT, env=environment, start_new_session=True
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
