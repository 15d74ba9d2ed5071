"""What a start costs, from exec to ready, in seconds of CPU time; checkouts are compared in turn.

usage: python -m tests.bench.start_cpu [--uncompiled-library] [--times N] CHECKOUT [CHECKOUT ...]

Each start is a ztunnel for one workload in a network namespace of its own (as root), with a local mesh file,
by the interpreter that runs this. All modules are compiled beforehand; with --uncompiled-library those of
Python's own library are not, as in the official image of Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

_READY = "marking server ready"
_PATIENCE = 60.0
# Older checkouts have no ztunnel.start.
_RUN = """
import importlib.util, sys
name = "ztunnel.start" if importlib.util.find_spec("ztunnel.start") else "ztunnel.cli"
sys.exit(importlib.import_module(name).main())
"""


def start(checkout: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of CPU and of wall time until one is ready. Raises RuntimeError with what it said instead."""
    command = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$0" -c "$1"', sys.executable, _RUN]
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        impatience = threading.Timer(_PATIENCE, process.kill)
        impatience.start()
        said: list[str] = []
        try:
            for line in process.stdout:
                said.append(line)
                if _READY in line:
                    wall = time.monotonic() - began
                    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), wall
            raise RuntimeError(f"{checkout} did not get ready:\n{''.join(said[-5:])}")
        finally:
            impatience.cancel()
            process.send_signal(signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Prints a line for each checkout."""
    parser = argparse.ArgumentParser(prog="tests.bench.start_cpu")
    parser.add_argument("--uncompiled-library", action="store_true")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("checkout", nargs="+", type=lambda text: Path(text).resolve())
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        mesh = Path(directory, "mesh.yaml")
        mesh.write_text("workloads: []\nservices: []\npolicies: []\n")
        compiled = Path(directory, "bytecode")
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPYCACHEPREFIX": str(compiled),
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": "demo/sleep/sleep",
            "LOCAL_XDS_PATH": str(mesh),
            "XDS_ADDRESS": "",
            "FAKE_CA": "true",
            "ISTIO_META_DNS_CAPTURE": "false",
            "ZTUNNEL_WORKER_THREADS": "1",
        }

        def once(checkout: Path) -> tuple[float, float]:
            return start(checkout, environment | {"PYTHONPATH": str(checkout)})

        for checkout in asked.checkout:
            once(checkout)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if asked.uncompiled_library:
            library = Path(sysconfig.get_path("stdlib"))
            shutil.rmtree(compiled / library.relative_to("/"))
            packages = Path(sysconfig.get_path("purelib"))
            if packages.is_relative_to(library):
                raise SystemExit(
                    "Run it from a virtual environment: packages are compiled, the library is not."
                )
        figures: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in asked.checkout}
        for _ in range(asked.times):
            for checkout in asked.checkout:
                figures[checkout].append(once(checkout))
    for checkout, starts in figures.items():
        cpu, wall = zip(*starts, strict=True)
        print(f"{checkout}: CPU {statistics.median(cpu):.2f} s (median), wall {min(wall):.2f} s (least)")


if __name__ == "__main__":
    main(sys.argv[1:])
