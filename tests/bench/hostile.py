"""What attacks on one tunnel do to the round trips of a neighbour: ``python -m tests.bench.hostile``.

A data plane in a process of its own serves two tunnels: an honest one, whose stream carries 64 bytes there
and back as fast as it can, and a hostile one, driven by a third process, on which an attack of
`tests.support.attacks` is carried out again and again. Round trips are measured by turns, before an attack
and under it, so that both have the same machine. Meanwhile the three are real-time processes, the attacker
last: so other work on the machine is kept out, and the attacker gets what CPU the other two leave, which with
two cores is nearly one. Prints for each attack (or those named): the p99 of the neighbour's round trips
before it, their p50 and p99 under it, and the ratio of both p99; then the p99 and p99.9 of what the data
plane's loop does at a time during the attack, in CPU time (`watched_worker`). Wants root, for that and for a
network namespace of its own. Nothing is asserted, since machines differ. Figures:
docs/measurements/hostile.md.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import msgspec
import trio

from tests.bench.watched_worker import VARIABLE
from tests.support.attacker import attacked
from tests.support.attacks import ATTACKS, Attack
from tests.support.data_plane import Control, echo, server, worker_process
from tests.support.hostile_peer import PEER
from tests.support.neighbour import Neighbour
from tests.support.own_namespace import enter_network_namespace
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.tls.tls_errors import TlsHandshakeError

SECONDS = 1.5
"""How long round trips are measured at a time."""

TIMES = 2
"""How often, before an attack and under it."""


class OneCertificate:
    """Stands in for the control side and its CA in the attacking process."""

    def __init__(self, certificate: Certificate) -> None:
        self.ca = self
        self._certificate = certificate

    async def issue(self, _: Identity) -> Certificate:
        return self._certificate


async def round_trips(neighbour: Neighbour) -> list[float]:
    """Milliseconds of each."""
    times = []
    end = perf_counter() + SECONDS
    while (began := perf_counter()) < end:
        await neighbour.exchange(bytes(64))
        times.append((perf_counter() - began) * 1e3)
    return times


@contextmanager
def attacking(attack: Attack, certificate: Certificate):
    """Another process attacks until the end of the block; it attacks already when the block begins."""
    command = [sys.executable, "-m", "tests.bench.hostile", "--attack", attack.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(certificate))
        process.stdin.close()
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def ahead_of_others(*processes: int) -> Iterator[None]:
    """The block has the machine for these processes, the first of them before the last."""
    for number, process in enumerate(processes):
        os.sched_setscheduler(process, os.SCHED_FIFO, os.sched_param(10 - number))
    try:
        yield
    finally:
        for process in processes:
            os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))


async def forever(control: Control, attack: Attack, port: int) -> None:
    while True:
        with suppress(TlsHandshakeError):
            await attacked(control, attack, port)


async def again_and_again(name: str, certificate: Certificate) -> None:
    """The attacking process."""
    [attack] = [attack for attack in ATTACKS if attack.name == name]
    control: Control = OneCertificate(certificate)  # type: ignore[assignment]  # all that is asked of it
    print("attacking", flush=True)
    # The neighbour's process must not have to serve what it asks for.
    async with server(echo) as port, trio.open_nursery() as nursery:
        for _ in range(attack.at_once):
            nursery.start_soon(forever, control, attack, port)


async def passes(process: subprocess.Popen[bytes], path: Path) -> list[float]:
    """p99 and p99.9 of the loop's passes in milliseconds, since the last time."""
    file = trio.Path(path)
    await file.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    with trio.fail_after(30):
        while not await file.exists():  # noqa: ASYNC110 - a signal has no answer
            await trio.sleep(0.05)
    found: list[float] = msgspec.json.decode(await file.read_bytes())
    return found


class Measured(NamedTuple):
    """Round trips in milliseconds, sorted; and the worst p99 and p99.9 of the loop's passes."""

    quiet: list[float]
    attacked: list[float]
    passes: list[float]


async def measure(attack: Attack, file: Path) -> Measured:
    """Measure by turns, before an attack and under it, each time with a new data plane."""
    quiet: list[float] = []
    hurt: list[float] = []
    loop = [0.0, 0.0]
    for _ in range(TIMES):
        async with (
            worker_process("tests.bench.watched_worker") as (control, process),
            server(echo) as port,
            Neighbour(control, f"127.0.0.1:{port}") as neighbour,
        ):
            certificate = await control.ca.issue(PEER)
            with ahead_of_others(process.pid, os.getpid()):
                quiet += await round_trips(neighbour)
            with attacking(attack, certificate) as attacker:
                await trio.sleep(0.5)
                await passes(process, file)
                with ahead_of_others(process.pid, os.getpid(), attacker.pid):
                    hurt += await round_trips(neighbour)
                loop = [max(pair) for pair in zip(loop, await passes(process, file), strict=True)]
    return Measured(sorted(quiet), sorted(hurt), loop)


def main() -> None:
    if sys.argv[1:2] == ["--attack"]:
        certificate = pickle.loads(sys.stdin.buffer.read())
        trio.run(again_and_again, sys.argv[2], certificate)
    wanted = sys.argv[1:]
    print(
        f"{'':<36} {'quiet':>8} {'p50':>8} {'p99':>8} {'ratio':>6}   {'p99':>8} {'p99.9':>8} ms of the loop"
    )
    for attack in ATTACKS:
        if wanted and attack.name not in wanted:
            continue
        with TemporaryDirectory() as directory:
            file = Path(directory, "passes")
            os.environ[VARIABLE] = str(file)
            quiet, hurt, loop = trio.run(measure, attack, file)
        before, p50, p99 = (
            times[len(times) * part // 100] for times, part in ((quiet, 99), (hurt, 50), (hurt, 99))
        )
        print(
            f"{attack.name:<36} {before:8.2f} {p50:8.2f} {p99:8.2f} {p99 / before:6.1f}   "
            f"{loop[0]:8.2f} {loop[1]:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack"]:
        main()
    with enter_network_namespace():
        main()
