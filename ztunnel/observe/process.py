"""The open descriptors of a process, and the state of its Trio loop."""

from __future__ import annotations

import resource
from os import scandir

import trio

from ztunnel.messages import Sample
from ztunnel.observe import families


def process_samples() -> list[Sample]:
    """Returns the samples of our own process. Call it inside its loop."""
    statistics = trio.lowlevel.current_statistics()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with scandir("/proc/self/fd") as entries:
        open_fds = sum(1 for _ in entries) - 1  # one is the listing's own
    return [
        Sample(families.OPEN_FDS.name, (), open_fds),
        Sample(families.MAX_FDS.name, (), soft),
        Sample(families.QUEUE_DEPTH.name, (), statistics.tasks_runnable),
        Sample(families.ALIVE_TASKS.name, (), statistics.tasks_living),
    ]
