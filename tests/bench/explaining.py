"""What explaining costs a node whose mesh is big: the longest slice between two pauses, and all of them.

usage: python -m tests.bench.explaining [WORKLOADS ...]    CPU time, the best of three for each
"""

from __future__ import annotations

import gc
import sys
from time import thread_time

from tests.support import big_meshes
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, telling
from ztunnel.messages import MeshDelta, ResourceKind
from ztunnel.state.store import MeshStore

POD = "ns-1/app-1-7d4b9c6f5-0000a"
QUESTIONS = {
    "a service": Question(POD, "app-201.ns-1:80"),
    "an address": Question(POD, "172.16.0.9:80"),
    "a mistyped pod": Question("ns-1/app-1-7d4b9c6f5-0000q", "app-201.ns-1:80"),
    "a mistyped service": Question(POD, "app-2010.ns-1:80"),
    "nothing alike": Question("nowhere", "app-201.ns-1:80"),
}


def filled(workloads: int) -> MeshStore:
    """A store with a mesh of this size, out of sight of the garbage collector, as in a running ztunnel."""
    store = MeshStore(big_meshes.NODE)
    store.apply(MeshDelta(1, ResourceKind.ADDRESS, tuple(big_meshes.resources(workloads))))
    gc.collect()
    gc.freeze()
    return store


def measured(store: MeshStore, question: Question) -> tuple[float, float, int]:
    """The longest slice and all slices, in seconds, and how many there were."""
    longest = total = 0.0
    number = 0
    steps = telling(StoreCatalogue(store), question, Setting(network=big_meshes.NETWORK))
    while True:
        began = thread_time()
        ended = next(steps, steps) is steps
        took = thread_time() - began
        longest, total, number = max(longest, took), total + took, number + 1
        if ended:
            return longest, total, number


def main() -> None:
    print(f"{'workloads':>10}  {'question':<20} {'longest ms':>10} {'all ms':>8} {'slices':>7}")
    for size in [int(one) for one in sys.argv[1:]] or [50_000, 100_000]:
        store = filled(size)
        for name, question in QUESTIONS.items():
            runs = [measured(store, question) for _ in range(3)]
            longest, total = min(one[0] for one in runs), min(one[1] for one in runs)
            print(f"{size:>10,}  {name:<20} {longest * 1000:>10.2f} {total * 1000:>8.1f} {runs[0][2]:>7}")


if __name__ == "__main__":
    main()
