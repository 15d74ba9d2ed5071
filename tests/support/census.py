"""What a test mesh leaves on the system (nothing, in the end), and what its processes have used."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.pod import MeshPod
from ztunnel.demo.machine import PREFIX
from ztunnel.demo.namespaces import PUBLISHED


@dataclass(frozen=True, slots=True)
class Census:
    """What belongs to one test mesh, by its name."""

    namespaces: frozenset[str]
    processes: frozenset[str]
    directories: frozenset[str]

    @property
    def empty(self) -> bool:
        return not (self.namespaces or self.processes or self.directories)


def take_census(machine: str) -> Census:
    """Returns everything on this system that belongs to a test mesh, whoever started it."""
    assert machine.startswith(PREFIX)
    processes = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if machine.encode() in environment or machine.encode() in command:
            processes.add(f"{entry.name} {command.decode(errors='replace')}")
    return Census(
        namespaces=frozenset(path.name for path in PUBLISHED.glob(f"{machine}-*")),
        processes=frozenset(processes),
        directories=frozenset(path.name for path in Path(tempfile.gettempdir()).glob(f"{machine}*")),
    )


def open_descriptors(pid: int) -> list[str]:
    """Returns what the descriptors of a process refer to, sockets as ``socket:[inode]``."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return sorted(found)


def cpu_seconds(*pods: MeshPod) -> float:
    """Returns the CPU time of these pods' ztunnels so far."""
    ticks = 0
    for pod in pods:
        stat = Path(f"/proc/{pod.ztunnel.process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
