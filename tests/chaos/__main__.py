"""Faults under traffic, one after another and in pairs: ``python -m tests.chaos --seed 7 --seconds 300``.

The seed decides which faults come in which order, for how long, on which node, and what the traffic is. What
a round does depends on the seed and its own faults alone, so a round that fails is run again by itself: the
last line says how. ``--pairs`` leaves the rounds of single faults out. Exit status 0:
nothing that may never happen has happened, and after each fault everything worked again by itself.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from itertools import combinations
from random import Random

import trio

from tests.chaos.catalogue import ABSENT, CATALOGUE, mesh_ready
from tests.chaos.scene import LIFETIME, Names, Scene
from tests.support.conversations import DENIED_PORT, OPEN_PORT, Applications
from tests.support.pod import MeshPod
from tests.support.whole_mesh import WholeMesh
from ztunnel.xds.xds_session import AUTHORIZATION_TYPE

RECOVERY = 60.0
"""Seconds after the end of a fault in which everything has to work again."""

CLIENTS = 6
QUESTIONS = 2


class Run:
    """One run of a seed."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.mesh = scene.mesh
        self.applications = scene.applications
        self.seed = seed

    async def traffic(self, number: int) -> None:
        """Conversations until cancelled: over HBONE, from outside in plaintext, and such as policy denies."""
        random = Random(self.seed * 1000 + number)
        mesh = self.mesh
        while True:
            pod, port = random.choice(
                [(mesh.client, OPEN_PORT), (mesh.outside, OPEN_PORT), (mesh.neighbour, DENIED_PORT)]
            )
            how = await self.applications.converse(pod, mesh.server.ipv4, port, random)
            self.applications.outcomes[f"{pod.name} {how}"] += 1
            await trio.sleep(random.uniform(0, 0.05))

    async def questions(self, number: int) -> None:
        """Names that pods ask for, until cancelled."""
        random = Random(self.seed * 2000 + number)
        while True:
            pod = random.choice([self.mesh.client, self.mesh.neighbour, self.mesh.server])
            how = await self.scene.names.ask(pod, random)
            self.applications.outcomes[f"name {how}"] += 1
            await trio.sleep(random.uniform(0, 0.1))

    async def recovered(self, random: Random) -> str:
        """Empty once conversations over every path were complete, three times; else what does not work."""
        wrong = "nothing was looked at"
        paths: list[MeshPod] = [self.mesh.client, self.mesh.neighbour, self.mesh.outside]
        with trio.move_on_after(RECOVERY):
            while wrong := await trio.to_thread.run_sync(mesh_ready, self.mesh):  # noqa: ASYNC110  # processes
                await trio.sleep(0.1)
            for pod in paths * 3:
                wrong = pod.name
                while True:
                    how = await self.applications.converse(
                        pod, self.mesh.server.ipv4, OPEN_PORT, random, timeout=15
                    )
                    if how == "complete":
                        break
                    wrong = f"{pod.name}: {how}"
                    await trio.sleep(0.1)
            for pod in [self.mesh.client, self.mesh.server] * 3:
                while (how := await self.scene.names.ask(pod, random)) != "answered":
                    wrong = f"a name that {pod.name} asks for: {how}"
                    await trio.sleep(0.1)
            for node in self.mesh.deployment.nodes.values():
                wrong = f"the log of {node.node.name} has ended"
                size = len(node.current.process.output())
                while len(node.current.process.output()) == size:
                    await self.applications.converse(
                        self.mesh.client, self.mesh.server.ipv4, OPEN_PORT, random, timeout=15
                    )
            return ""
        return wrong

    def problems(self) -> list[str]:
        """What may never happen, and has."""
        found = [*self.applications.violations, *self.scene.names.violations]
        principals = {pod.ipv4: pod.principal for pod in (self.mesh.client, self.mesh.neighbour)}
        for node in self.mesh.deployment.nodes.values():
            for ztunnel in node.ztunnels:
                output = ztunnel.process.output()
                found += [f"in the log of {node.node.name}: {text}" for text in tracebacks(output)]
                for line in _inbound(output):
                    identity = line.get("src.identity")
                    address = str(line.get("src.addr", "")).rpartition(":")[0]
                    if identity and address in principals and principals[address] not in identity:
                        found.append(f"{address} was taken for {identity}")
        return found


def last_words(mesh: WholeMesh) -> list[str]:
    """What each ztunnel had to complain of last, for whoever looks into a failure."""
    found = []
    for name, node in mesh.deployment.nodes.items():
        for number, ztunnel in enumerate(node.ztunnels, 1):
            lines = ztunnel.process.output().splitlines()
            complaints = [line for line in lines if '"level":"warn"' in line or '"level":"error"' in line]
            # That policy refuses the neighbour is no news.
            others = [line for line in complaints if "only-the-client" not in line and " 401 " not in line]
            unread = [line for line in lines if not line.startswith("{")]
            status = ztunnel.process.returncode
            found += [f"{name} {number} ({status}): {line}" for line in [*others[-30:], *unread[-30:]]]
    return found


def _inbound(output: str) -> Iterator[dict[str, str]]:
    """The access log lines of incoming connections. The last line may be just being written."""
    for text in output.rpartition("\n")[0].splitlines():
        if text.startswith("{") and '"inbound"' in text and '"src.identity"' in text:
            with suppress(json.JSONDecodeError):  # a full disk takes a part of a line
                yield json.loads(text)


def tracebacks(output: str) -> list[str]:
    """Those of a log, but for lack of memory that this program itself has caused."""
    lines = output.splitlines(keepends=True)
    # A line of the log has the whole of one. What Python writes by itself has many lines, and the lines of
    # other processes may come between them.
    logged = [line for line in lines if line.startswith("{")]
    written = _split_tracebacks("".join(line for line in lines if not line.startswith("{")))
    lack = ("MemoryError", "Cannot allocate memory")
    found = [part for part in (*logged, *written) if "Traceback" in part]
    return [part[-2500:] for part in found if not any(text in part for text in lack)]


def _split_tracebacks(text: str) -> list[str]:
    """Returns one text for each traceback; exceptions that one has caused in turn are part of it."""
    parts: list[str] = []
    for part in re.split(r"(?m)^(?=Traceback |  \+ Exception Group Traceback )", text):
        if parts and parts[-1].rstrip().endswith(("exception occurred:", "following exception:")):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def plan(seed: int, only: list[str], *, pairs_only: bool = False) -> list[tuple[str, ...]]:
    """Each fault alone, in a random order, and then pairs; or nothing but the pairs."""
    random = Random(seed)
    names = only or list(CATALOGUE)
    alone: list[tuple[str, ...]] = [(name,) for name in names]
    pairs: list[tuple[str, ...]] = list(combinations(names, 2))
    random.shuffle(alone)
    random.shuffle(pairs)
    return pairs if pairs_only else alone + pairs


def again(seed: int, names: tuple[str, ...]) -> str:
    """The command that runs one round of a seed by itself."""
    words = ["python", "-m", "tests.chaos", "--seed", str(seed), *(["--pairs"] if len(names) > 1 else [])]
    return shlex.join(words + [word for name in names for word in ("--only", name)])


def random_of(seed: int, names: tuple[str, ...]) -> Random:
    """What decides a round: neither the rounds before it nor the speed of the machine take part."""
    return Random(f"{seed}: {' + '.join(names)}")


async def run(seed: int, seconds: float, only: list[str], pairs_only: bool) -> int:
    """Returns the exit status."""
    for reason in ABSENT:
        print(f"left out: {reason}", flush=True)
    with WholeMesh.open(lifetime=LIFETIME) as mesh:
        applications, names_of_all = Applications(mesh.server, mesh.neighbour), Names(mesh)
        status = 0
        async with trio.open_nursery() as nursery:
            scene = Scene(mesh, applications, names_of_all, nursery)
            this = Run(scene, seed)
            scene.tell_truth()
            await trio.to_thread.run_sync(mesh.istiod.wait_settled, AUTHORIZATION_TYPE)
            nursery.start_soon(applications.run)
            nursery.start_soon(names_of_all.run)
            for number in range(CLIENTS):
                nursery.start_soon(this.traffic, number)
            for number in range(QUESTIONS):
                nursery.start_soon(this.questions, number)
            wrong = await this.recovered(Random(seed))
            until = trio.current_time() + seconds
            done = 0
            names: tuple[str, ...] = ()
            for coming in plan(seed, only, pairs_only=pairs_only):
                if wrong or trio.current_time() > until:
                    break
                names = coming
                random = random_of(seed, names)
                lasts = random.uniform(1, 5)
                before = applications.outcomes.copy()
                try:
                    async with AsyncExitStack() as faults:
                        for name in names:
                            await faults.enter_async_context(CATALOGUE[name](scene, random))
                        await trio.sleep(lasts)
                except Exception:
                    print(f"{' + '.join(names)} BROKE OFF. Again: {again(seed, names)}", flush=True)
                    raise
                began = trio.current_time()
                wrong = await this.recovered(random)
                took = trio.current_time() - began
                outcomes = sorted((applications.outcomes - before).items())
                what = ", ".join(f"{how} {count}" for how, count in outcomes)
                title = " + ".join(names)
                print(f"{title:45} {lasts:3.1f} s, well again after {took:4.1f} s: {what}", flush=True)
                done += 1
                for problem in this.problems():
                    print(f"VIOLATION: {problem}", flush=True)
                    wrong = wrong or "a violation"
            if wrong:
                for text in last_words(mesh):
                    print(text, flush=True)
                print(f"seed {seed} FAILED: {wrong}. Again: {again(seed, names)}", flush=True)
                status = 1
            else:
                total = applications.outcomes.total()
                print(f"seed {seed}: {done} rounds, {total} conversations, no violation", flush=True)
            nursery.cancel_scope.cancel()
    return status


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0, help="no round begins after that")
    parser.add_argument("--only", action="append", default=[], choices=list(CATALOGUE))
    parser.add_argument("--pairs", action="store_true", help="no single faults")
    arguments = parser.parse_args()
    status: int = trio.run(run, arguments.seed, arguments.seconds, arguments.only, arguments.pairs)
    return status


if __name__ == "__main__":
    sys.exit(main())
