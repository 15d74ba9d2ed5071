"""What attacks on one tunnel do to the round trips of a neighbour: ``python -m tests.bench.hostile``.

A data plane in a process of its own serves two tunnels: an honest one, whose stream carries 64 bytes there
and back as fast as it can, and a hostile one, driven by a third process, on which an attack of
`tests.support.attacks` is carried out again and again. Prints the neighbour's p50 and p99 in milliseconds,
quiet and under each attack (or those named), and the ratio of the p99s. Wants root, for a network namespace
of its own. Nothing is asserted, since machines differ. Figures: docs/measurements/hostile.md.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import contextmanager
from time import perf_counter

import trio

from tests.support.attacker import attacked
from tests.support.attacks import ATTACKS, Attack
from tests.support.data_plane import Control, echo, server, worker_process
from tests.support.hostile_peer import PEER
from tests.support.neighbour import Neighbour
from tests.support.own_namespace import enter_network_namespace
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity

SECONDS = 3.0
"""How long round trips are measured, for each attack."""


class OneCertificate:
    """Stands in for the control side and its CA in the attacking process."""

    def __init__(self, certificate: Certificate) -> None:
        self.ca = self
        self._certificate = certificate

    async def issue(self, _: Identity) -> Certificate:
        return self._certificate


async def round_trips(neighbour: Neighbour) -> list[float]:
    """Milliseconds of each, in order of size."""
    times = []
    end = perf_counter() + SECONDS
    while (began := perf_counter()) < end:
        await neighbour.exchange(bytes(64))
        times.append((perf_counter() - began) * 1e3)
    return sorted(times)


@contextmanager
def attacking(attack: Attack | None, certificate: Certificate, port: int):
    """Another process attacks until the end of the block; it attacks already when the block begins."""
    if attack is None:
        yield
        return
    command = [sys.executable, "-m", "tests.bench.hostile", "--attack", attack.name, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(certificate))
        process.stdin.close()
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


async def again_and_again(name: str, port: int, certificate: Certificate) -> None:
    """The attacking process."""
    [attack] = [attack for attack in ATTACKS if attack.name == name]
    control: Control = OneCertificate(certificate)  # type: ignore[assignment]  # all that is asked of it
    print("attacking", flush=True)
    while True:
        await attacked(control, attack, port)


async def measure(attack: Attack | None) -> list[float]:
    async with (
        worker_process() as (control, _),
        server(echo) as port,
        Neighbour(control, f"127.0.0.1:{port}") as neighbour,
    ):
        certificate = await control.ca.issue(PEER)
        with attacking(attack, certificate, port):
            await trio.sleep(0.5)
            return await round_trips(neighbour)


def main() -> None:
    if sys.argv[1:2] == ["--attack"]:
        certificate = pickle.loads(sys.stdin.buffer.read())
        trio.run(again_and_again, sys.argv[2], int(sys.argv[3]), certificate)
    wanted = sys.argv[1:]
    print(f"{'':<36} {'p50':>8} {'p99':>8}  ms, and the ratio of the p99s")
    quiet = 0.0
    for attack in (None, *ATTACKS, None):
        name = attack.name if attack is not None else "quiet"
        if attack is not None and wanted and name not in wanted:
            continue
        times = trio.run(measure, attack)
        p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
        quiet = quiet or p99
        print(f"{name:<36} {p50:8.2f} {p99:8.2f}  {p99 / quiet:6.1f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack"]:
        main()
    with enter_network_namespace():
        main()
