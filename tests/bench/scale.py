"""What the mesh cache costs as the mesh grows: ``python -m tests.bench.scale [workloads ...]``.

Each size is measured in a process of its own, which gets the mesh as a worker process gets it: as a message
of MessagePack. So the memory is what that size takes in one process, and nothing else.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from tests.support import big_meshes as meshes
from ztunnel.dataplane.mesh_dump import dump_services, dump_workloads
from ztunnel.messages import MeshDelta, Resource, ResourceKind
from ztunnel.state.store import MeshStore

SIZES = (1_000, 10_000, 100_000, 300_000)
SLICE = 64
LOOKUPS = 2_000


class Row(msgspec.Struct):
    """One column of the table, in the order in which it is measured."""

    workloads: int
    bytes_mb: float
    memory_mb: float
    first_cpu_s: float
    same_cpu_s: float
    changed_cpu_s: float
    longest_slice_ms: float
    one_change_ms: float
    cold_lookup_us: float
    warm_lookup_us: float
    vip_lookup_us: float
    dump_cpu_s: float
    dump_longest_ms: float


LABELS = {
    "workloads": "workloads (and a tenth of services)",
    "bytes_mb": "protobuf bytes, MB",
    "memory_mb": "memory of the store, MB",
    "first_cpu_s": "first sync, CPU s",
    "same_cpu_s": "full push of the same, CPU s",
    "changed_cpu_s": "full push, all changed, CPU s",
    "longest_slice_ms": f"longest step({SLICE}) of these, CPU ms",
    "one_change_ms": "one workload changed, ms",
    "cold_lookup_us": "workload by address, not decoded yet, us",
    "warm_lookup_us": "workload by address, decoded, us",
    "vip_lookup_us": "service by VIP with endpoints, us",
    "dump_cpu_s": "dump, CPU s",
    "dump_longest_ms": "longest step of it, CPU ms",
}


def private_mb() -> float:
    """The memory of this process that is its own, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def load(path: Path) -> MeshDelta:
    return msgspec.msgpack.decode(path.read_bytes(), type=MeshDelta)


def apply(store: MeshStore, delta: MeshDelta) -> tuple[float, float]:
    """Returns CPU seconds, and those of the longest step.

    The wall clock would show what else the machine does: others' processes run for milliseconds in between.
    """
    application = store.begin(delta)
    started, longest, done = time.process_time(), 0.0, False
    while not done:
        before = time.thread_time()
        done = application.step(SLICE)
        longest = max(longest, time.thread_time() - before)
    assert not application.rejected
    return time.process_time() - started, longest


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def changed(delta: MeshDelta, text: bytes) -> MeshDelta:
    """The same mesh with another revision of all workloads, and of services nothing."""
    resources = tuple(
        Resource(resource.name, resource.body.replace(b"latest", text)) for resource in delta.resources
    )
    return MeshDelta(number=0, kind=ResourceKind.ADDRESS, resources=resources)


def measure(size: int, path: Path) -> Row:
    """Measure one size. ``path`` holds the mesh."""
    store = MeshStore(meshes.NODE)
    gc.collect()
    # ztunnel freezes what is there and spares the mesh the collector; else its work would be in the steps.
    gc.disable()
    empty = private_mb()
    delta = load(path)
    total = sum(len(resource.body) for resource in delta.resources)
    first_cpu, first_longest = apply(store, delta)
    del delta
    memory = private_mb() - empty
    same_cpu, same_longest = apply(store, load(path))
    changed_cpu, changed_longest = apply(store, changed(load(path), b"newest"))
    last = meshes.workload(size - 1)
    one = [MeshDelta(number=0, kind=ResourceKind.ADDRESS, resources=(last,)), changed_one(last)]
    one_change = min(seconds(partial(store.apply, one[turn % 2])) for turn in range(10))

    pods = [IPv4Address(meshes.pod_address(number)) for number in range(0, size, max(1, size // LOOKUPS))]
    vips = [
        IPv4Address(meshes.service_address(number))
        for number in range(0, size // 10, max(1, size // 10 // LOOKUPS))
    ]

    def find_pods() -> None:
        for ip in pods:
            assert store.workload_by_address(meshes.NETWORK, ip) is not None

    def find_services() -> None:
        for ip in vips:
            (service,) = store.services_by_vip(meshes.NETWORK, ip)
            assert store.endpoints(service)

    cold, warm = seconds(find_pods) / len(pods), seconds(find_pods) / len(pods)
    find_services()
    vip = seconds(find_services) / len(vips)
    dump_cpu = time.process_time()
    dump_longest = max(longest_wait(dump_workloads(store)), longest_wait(dump_services(store)))
    return Row(
        size,
        total / 1e6,
        memory,
        first_cpu,
        same_cpu,
        changed_cpu,
        max(first_longest, same_longest, changed_longest) * 1e3,
        one_change * 1e3,
        cold * 1e6,
        warm * 1e6,
        vip * 1e6,
        time.process_time() - dump_cpu,
        dump_longest * 1e3,
    )


def changed_one(resource: Resource) -> MeshDelta:
    edited = Resource(resource.name, resource.body.replace(b"latest", b"newest"))
    return MeshDelta(number=0, kind=ResourceKind.ADDRESS, resources=(edited,))


def longest_wait(objects: Iterator[object]) -> float:
    longest, before = 0.0, time.thread_time()
    for _ in objects:
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    return longest


def run(size: int) -> Row:
    """Measure one size in processes of its own."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "mesh")
        for stage in ("generate", "measure"):
            arguments = [sys.executable, "-m", "tests.bench.scale", stage, str(size), str(path)]
            output = subprocess.run(arguments, check=True, capture_output=True).stdout
    return msgspec.json.decode(output, type=Row)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["generate", size, path]:
            Path(path).write_bytes(msgspec.msgpack.encode(meshes.sync(int(size))))
        case ["measure", size, path]:
            sys.stdout.buffer.write(msgspec.json.encode(measure(int(size), Path(path))))
        case _:
            rows = [run(size) for size in map(int, arguments or map(str, SIZES))]
            for name, label in LABELS.items():
                values = (getattr(row, name) for row in rows)
                cells = (f"{value:>10,}" if isinstance(value, int) else f"{value:>10.3g}" for value in values)
                print(f"{label:<44}{''.join(cells)}")


if __name__ == "__main__":
    main(sys.argv[1:])
