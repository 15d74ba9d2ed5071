"""Ten broken meshes, each diagnosed with the one command that docs/observability.md names for its symptom.

The rows of the page's table are the parameters: the command is run as it stands there, and what the page says
to look for has to be in what it prints.
"""

from __future__ import annotations

import datetime as dt
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.support.local_file import Exact
from tests.support.mesh import Mesh, waypoint
from tests.support.pod import MeshPod, eventually
from tests.support.raw_hbone import raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import echo, refused_by, serve

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "observability.md"
ZTUNNEL = str(Path(sys.executable).parent / "ztunnel")


def rows() -> list[tuple[str, str, str]]:
    """Symptom, command and what to look for, of each row of the page's first table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| symptom |")) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        symptom, command, wanted = (part.strip().strip("`") for part in line.strip("|").split("|"))
        found.append((symptom.partition(":")[0], command, wanted))
    return found


@dataclass
class Broken:
    """A mesh to be broken: a client, a server behind ``web``, one that the test plays, one outside."""

    mesh: Mesh
    client: MeshPod
    server: MeshPod
    played: MeshPod
    web: str
    played_vip: str

    async def fails(self, vip: str) -> None:
        assert await refused_by(self.client, vip, 80, say=b"hello", timeout=30) == "reset"

    async def is_whole(self) -> None:
        """Wait until ``web`` echoes: what the test before had broken may take a moment to be whole."""
        with trio.fail_after(30):
            while not await self._echoes():  # noqa: ASYNC110 - nothing tells when a mesh is whole
                await trio.sleep(0.1)

    async def _echoes(self) -> bool:
        try:
            async with await self.client.connect(self.web, 80) as stream:
                await stream.send_all(b"hello")
                return await stream.receive_some(5) == b"hello"
        except (OSError, trio.BrokenResourceError):
            return False


@pytest.fixture(scope="module")
def broken_mesh() -> Iterator[Broken]:
    with Mesh.open() as mesh:
        client = mesh.node("a").pod("client")
        server = mesh.node("b").pod("server")
        played = mesh.node("b").pod("played", captured=False)
        mesh.node("b").pod("legacy", captured=False, protocol="TCP")
        web = mesh.service("web", ports={80: 8080}, endpoints=[server])
        vip = mesh.service("played", ports={80: 8080}, endpoints=[played])
        mesh.start()
        yield Broken(mesh, client, server, played, web, vip)


@asynccontextmanager
async def workload(broken: Broken, **fields: object) -> AsyncIterator[None]:
    """The server's workload with other fields."""
    before = dict(broken.server.workload)
    broken.server.workload.update(fields)
    await broken.mesh.update()
    yield
    broken.server.workload = before
    await broken.mesh.update()


@asynccontextmanager
async def impostor(broken: Broken, uri: str | None = None, *, expired: bool = False) -> AsyncIterator[None]:
    valid = (dt.timedelta(hours=-2), dt.timedelta(hours=-1 if expired else 1))
    own = KeyPair.load(broken.mesh.root).issue(uri or broken.played.identity, valid=valid)
    async with raw_server(broken.played, TlsChoices(own)):
        await broken.fails(broken.played_vip)
        yield


def wrong_identity(broken: Broken) -> AbstractAsyncContextManager[None]:
    return impostor(broken, "spiffe://cluster.local/ns/default/sa/impostor")


def expired_certificate(broken: Broken) -> AbstractAsyncContextManager[None]:
    return impostor(broken, expired=True)


@asynccontextmanager
async def missing_waypoint(broken: Broken) -> AsyncIterator[None]:
    service = broken.mesh.services[0]
    service["waypoint"] = waypoint("default/waypont.default.svc.cluster.local")

    def known() -> bool:
        return any(one.get("waypoint") for one in broken.client.config_dump()["services"])

    broken.mesh.write_file()
    await eventually(known, "told of the waypoint")
    yield
    del service["waypoint"]
    broken.mesh.write_file()
    await eventually(lambda: not known(), "rid of the waypoint")


@asynccontextmanager
async def policy_typo(broken: Broken) -> AsyncIterator[None]:
    rules = [[[{"principals": [Exact(broken.client.principal.replace("client", "cleint"))]}]]]
    key = broken.mesh.policy("only-client", rules=rules)
    await broken.mesh.update()
    async with serve(broken.server, 8080, echo):
        await broken.fails(broken.web)
    yield
    broken.mesh.remove_policy(key)
    await broken.mesh.update()


@asynccontextmanager
async def blocked_15008(broken: Broken) -> AsyncIterator[None]:
    rule = ("INPUT", "-p", "tcp", "--dport", "15008", "-j", "DROP")
    assert broken.server.run("iptables", "-I", *rule).returncode == 0
    yield
    assert broken.server.run("iptables", "-D", *rule).returncode == 0


@asynccontextmanager
async def stalled_reader(broken: Broken) -> AsyncIterator[None]:
    async def never_reads(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with serve(broken.server, 8080, never_reads), await broken.client.connect(broken.web, 80) as stream:
        # Until every buffer on the way is full: only then does nothing move any more.
        stuck = False
        while not stuck:
            with trio.move_on_after(3) as patience:
                await stream.send_all(b"x" * 65536)
            stuck = patience.cancelled_caught
        yield


@asynccontextmanager
async def port_mismatch(broken: Broken) -> AsyncIterator[None]:
    """The service says 8080, and the application listens on 9090."""
    async with serve(broken.server, 9090, echo):
        await broken.fails(broken.web)
        yield


@asynccontextmanager
async def unlabelled_namespace(broken: Broken) -> AsyncIterator[None]:
    assert broken.mesh.pods[-1].name == "legacy"
    yield


def dead_endpoint(broken: Broken) -> AbstractAsyncContextManager[None]:
    return workload(broken, status="Unhealthy")


def wrong_network(broken: Broken) -> AbstractAsyncContextManager[None]:
    return workload(broken, network="elsewhere")


BREAK: dict[str, Callable[[Broken], AbstractAsyncContextManager[None]]] = {
    "wrong identity": wrong_identity,
    "expired certificate of a peer": expired_certificate,
    "missing waypoint": missing_waypoint,
    "policy typo": policy_typo,
    "blocked 15008": blocked_15008,
    "stalled reader": stalled_reader,
    "port mismatch": port_mismatch,
    "unlabelled namespace": unlabelled_namespace,
    "dead endpoint": dead_endpoint,
    "wrong network": wrong_network,
}


ELSEWHERE = {"blocked 15008", "unlabelled namespace"}
"""Symptoms whose answer is not in the last line: the doctor has one line for each check, and a client outside
the mesh is a note beside what its connections are.
"""


def test_the_page_has_a_row_for_each_of_the_ten():
    assert [symptom for symptom, _, _ in rows()] == list(BREAK)


@pytest.mark.parametrize(("symptom", "command", "wanted"), rows(), ids=[symptom for symptom, _, _ in rows()])
async def test_one_command_diagnoses_it(broken_mesh: Broken, symptom: str, command: str, wanted: str) -> None:
    program, *arguments = shlex.split(command.replace("POD-IP", broken_mesh.server.ipv4))
    assert program == "ztunnel"
    async with serve(broken_mesh.server, 8080, echo):
        await broken_mesh.is_whole()
    async with BREAK[symptom](broken_mesh):
        done = await trio.to_thread.run_sync(lambda: broken_mesh.client.run(ZTUNNEL, *arguments, timeout=60))
    assert wanted in done.stdout, done.stdout + done.stderr
    last = done.stdout.rstrip().rpartition("\n")[2]
    assert last.startswith("=> "), "a person reads the last line first"
    assert wanted in last or symptom in ELSEWHERE, last
    assert done.returncode == (0 if symptom in ("stalled reader", "unlabelled namespace") else 1), done.stdout


async def test_a_mesh_that_is_whole_is_told_to_be(broken_mesh: Broken) -> None:
    arguments = ("explain", "default/client", "default/web:80")
    async with serve(broken_mesh.server, 8080, echo):
        await broken_mesh.is_whole()
        done = await trio.to_thread.run_sync(lambda: broken_mesh.client.run(ZTUNNEL, *arguments))
    assert done.stdout.rstrip().endswith("and no policy forbids it."), done.stdout
    assert done.returncode == 0
