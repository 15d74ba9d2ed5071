"""What reading a workload costs with each reader of protobuf that there is. Numbers for docs/dependencies.md.

usage: python -m tests.bench.protobuf_readers [--count N]

The workload is one of `tests.bench.meshes`. ``upb`` is the runtime of the protobuf package, with message
classes made from a descriptor set. Our own readers are those that were there before upb, taken from git.
Times are CPU time, the best of several runs; memory is what N parsed messages keep; import cost is that of a
fresh interpreter. Strictness is shown, not judged.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from tests.support import big_meshes as meshes
from ztunnel.pb.envoy.service.discovery import v3
from ztunnel.pb.google import protobuf
from ztunnel.pb.istio import workload as pb

PROTOS = Path(__file__).parents[2] / "protos"
OWN_READERS_REVISION = "efbec78"
REPEAT = 20_000


def upb_classes() -> dict[str, Any]:
    """Message classes of the protobuf package for all of protos/."""
    with tempfile.NamedTemporaryFile() as file:
        names = sorted(path.name for path in PROTOS.glob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), "--include_imports"]
        subprocess.run([*command, f"--descriptor_set_out={file.name}", *names], check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(file.name).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for one in files.file:
        pool.Add(one)
    classes: dict[str, Any] = message_factory.GetMessageClassesForFiles(
        [one.name for one in files.file], pool
    )
    return classes


def best(call: Callable[[], object], count: int = REPEAT, rounds: int = 5) -> float:
    """Microseconds a call, of CPU time."""
    fastest = float("inf")
    for _ in range(rounds):
        started = time.thread_time()
        for _ in range(count):
            call()
        fastest = min(fastest, time.thread_time() - started)
    return fastest / count * 1e6


def resident() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def kept(read: Callable[[bytes], object], bodies: list[bytes]) -> float:
    """MB that the read messages keep. Run in a process of its own for each reader."""
    before = resident()
    values = [read(body) for body in bodies]
    grown = resident() - before
    assert len(values) == len(bodies)
    return grown


def keys_of(workload: Any) -> tuple[object, ...]:
    """What an index needs, read out of a upb message."""
    services = [
        (key, [(port.service_port, port.target_port) for port in ports.ports])
        for key, ports in workload.services.items()
    ]
    return (
        workload.uid, workload.network, list(workload.addresses), workload.tunnel_protocol,
        workload.native_tunnel, services, workload.node, workload.name, workload.namespace,
        workload.service_account, workload.hostname, workload.status, workload.network_mode,
    )  # fmt: skip


def import_cost(module: str) -> tuple[float, float]:
    """CPU milliseconds and MB of anonymous memory that an import adds to a bare interpreter."""
    code = (
        "import time; from pathlib import Path\n"
        "status = Path('/proc/self/status')\n"
        "def mb(): return int(status.read_text().partition('RssAnon:')[2].split()[0]) / 1024\n"
        f"a = mb(); t = time.process_time()\nimport {module}\nprint(time.process_time() - t, mb() - a)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(5)
    ]
    return min(float(cpu) for cpu, _ in runs) * 1e3, min(float(mb) for _, mb in runs)


def varied(name: str) -> bytes:
    """Workloads that are wrong, or strange, in one way."""
    plain = pb.Workload(uid="u", name="n")
    match name:
        case "a number where a text belongs":
            return bytes(plain) + bytes((1 << 3, 5))
        case "a text that is not UTF-8":
            return bytes(plain) + bytes((2 << 3 | 2, 1, 0xFF))
        case "an unknown enumeration number":
            return bytes(plain) + bytes((17 << 3 & 0x7F | 0x80, 1, 77))
        case "an unknown field":
            return bytes(plain) + b"\xfa\x07\x01a"
        case "a text cut off":
            return bytes(plain) + bytes((2 << 3 | 2, 9, 65))
    raise AssertionError(name)


STRANGE = (
    "a number where a text belongs", "a text that is not UTF-8", "an unknown enumeration number",
    "an unknown field", "a text cut off",
)  # fmt: skip


def outcome(read: Callable[[bytes], object], body: bytes) -> str:
    try:
        if read(body) is None:
            return "left to wire.decode"
    except (ValueError, message.DecodeError, KeyError, IndexError, EOFError) as error:
        return f"refused: {' '.join(str(error).split())[:70]}"
    return "taken"


def own_readers(directory: str) -> dict[str, Callable[[bytes], object]]:
    """The readers of our own, as they were before upb, put into a directory as a package of another name."""
    root = Path(__file__).parents[2]
    archive = subprocess.run(
        ["git", "-C", str(root), "archive", OWN_READERS_REVISION, "ztunnel/state"],
        check=True,
        capture_output=True,
    ).stdout
    subprocess.run(["tar", "-xC", directory], input=archive, check=True)
    package = Path(directory, "ztunnel", "state").rename(Path(directory, "former_state"))
    for path in package.glob("*.py"):
        path.write_text(path.read_text().replace("ztunnel.state", "former_state"))
    sys.path.append(directory)
    scan, schema, wire = (
        importlib.import_module(f"former_state.{name}") for name in ("scan", "schema", "wire")
    )
    return {
        "Scanner.fast": scan.Scanner(meshes.NODE).fast,
        "wire.decode": lambda body: wire.decode(schema.ADDRESS, body),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        own = own_readers(directory)
        address = upb_classes()["istio.workload.Address"]
        readers: dict[str, Callable[[bytes], object]] = {
            **own,
            "upb: parse": address.FromString,
            "upb: parse, keys read": lambda body: keys_of(address.FromString(body).workload),
            "upb: parse, all fields listed": lambda body: address.FromString(body).workload.ListFields(),
            "upb: parse, unknown fields ruled out": partial(strict, address),
            "betterproto2": pb.Address.parse,
        }
        if options.memory:
            bodies = [meshes.workload(number).body for number in range(options.count)]
            print(kept(readers[options.memory], bodies))
            return
        times(readers, options.count)
        for name in STRANGE:
            wrapped = b"\x0a" + bytes((len(varied(name)),)) + varied(name)
            for reader in (*own, "upb: parse", "betterproto2"):
                print(f"{name:<32}{reader:<16}{outcome(readers[reader], wrapped)}")
    whole(options.count)
    for module in ("google.protobuf.message_factory", "betterproto2", "ztunnel.pb.istio.workload"):
        cpu, megabytes = import_cost(module)
        print(f"import {module:<36}{cpu:>6.0f} ms{megabytes:>6.1f} MB")


def times(readers: dict[str, Callable[[bytes], object]], count: int) -> None:
    """Print what a workload costs with each reader."""
    body = meshes.workload(1234).body
    print(f"Python {sys.version.split()[0]} ({sys.executable}), a workload of {len(body)} bytes")
    for name, read in readers.items():
        few = REPEAT // 10 if name == "betterproto2" else REPEAT
        command = [sys.executable, "-m", __spec__.name, "--count", str(count), "--memory", name]
        memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        took = best(partial(read, body), few)
        print(f"{name:<40}{took:>8.2f} us{memory:>8.0f} MB for {count:,}")


def whole(count: int) -> None:
    """Print how long upb takes for a whole response, which it cannot do in slices."""
    resources = [meshes.workload(number) for number in range(count)]
    response = v3.DeltaDiscoveryResponse(
        resources=[v3.Resource(name=one.name, resource=protobuf.Any(value=one.body)) for one in resources]
    )
    body = bytes(response)
    discovery = upb_classes()["envoy.service.discovery.v3.DeltaDiscoveryResponse"]
    took = best(partial(discovery.FromString, body), 1) / 1e3
    print(f"a response of {len(body) / 1e6:.0f} MB, upb in one step: {took:.0f} ms")


def strict(address: Any, body: bytes) -> bool:
    """Parse, and tell whether nothing is in the bytes but known fields, each written in the usual way."""
    parsed = address.FromString(body)
    parsed.DiscardUnknownFields()
    return bool(parsed.ByteSize() == len(body))


if __name__ == "__main__":
    main()
