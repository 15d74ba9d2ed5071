"""Faults at every await and every system call of DNS, the admin server, ZDS, xDS and certificates."""

from __future__ import annotations

import errno
from pathlib import Path

import dns.message
import pytest
import trio

from tests.support.cni_agent import SNAPSHOT_SENT, add_packet
from tests.support.cni_node import INFO, Node, node, some_file
from tests.support.dns_pod import frame, read_frames, running_pod
from tests.support.fake_resolver import answer_with, fake_resolver
from tests.support.injection import Turn, at_call, at_step, settled, steady
from tests.support.serving import exchange, serving
from tests.support.traffic import reset
from ztunnel.admin.http import Response
from ztunnel.bounds import ControlBounds
from ztunnel.certs.certificate_errors import CaError
from ztunnel.certs.fake_ca import FakeCa
from ztunnel.certs.manager import SecretManager
from ztunnel.model.identity import Identity

MOST = 500
ELSEWHERE = "elsewhere.example."
ERRNOS = [errno.ECONNRESET, errno.ENOMEM]


@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("tcp", [False, True])
async def test_dns_survives_any_system_call(tcp: bool, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    places = 0
    answer = answer_with(f"{ELSEWHERE} 5 IN A 9.9.9.9")
    async with fake_resolver(answer) as resolver, running_pod(resolver.port, timeout=0.2) as pod:
        base = await steady()

        async def ask() -> bytes | None:
            query = dns.message.make_query(ELSEWHERE, "A").to_wire()
            if not tcp:
                return await pod.udp(query, timeout=2)
            try:
                with trio.move_on_after(2):
                    async with await pod.connect() as stream:
                        await stream.send_all(frame(query))
                        frames = await read_frames(stream, 1)
                        return frames[0] if frames else None
            except (OSError, trio.BrokenResourceError):
                pass
            return None

        for place in range(1, MOST):
            turn = Turn(place)
            with at_call(turn, number, monkeypatch, ("ztunnel.dns", "ztunnel.sockets")):
                await ask()
            assert await ask(), f"{turn.place}: the next query has no answer"
            left = await settled(base)
            assert left == base, f"{turn.place}: {left - base}"
            assert pod.resolver.upstream.under_way == 0, turn.place
            if not turn.reached:
                break
            places += 1
    assert places > 5


async def test_a_client_of_the_admin_server_goes_at_any_step() -> None:
    """Reset after each step of the tasks that serve it; the next one is served, and nothing is left."""

    async def handler(_: object) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(200, b"x" * 3_000_000, "text/plain")

    steps = 0
    async with serving(handler) as served:
        assert (await served.ask("GET", "/")).status == 200
        base = await steady()
        for number in range(1, MOST):
            turn = Turn(number)
            stream = await served.connect()

            def go(stream: trio.SocketStream = stream) -> None:
                if stream.socket.fileno() >= 0:
                    reset(stream)

            with at_step(turn, lambda name: name == "test connection", go):
                try:
                    with trio.fail_after(30):
                        await exchange(stream, "GET", "/")
                except (trio.BrokenResourceError, trio.ClosedResourceError, AssertionError):
                    pass
            await stream.aclose()
            with trio.fail_after(30):
                assert (await served.ask("GET", "/")).status == 200, turn.place
            left = await settled(base)
            assert left == base, f"{turn.place}: {left - base}"
            if not turn.reached:
                break
            steps += 1
    assert steps > 2


@pytest.mark.parametrize("number", ERRNOS)
async def test_the_cni_client_takes_its_pods_after_any_system_call(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`node` holds that no descriptor was leaked: the namespaces that came with the messages."""

    async def pods_taken(it: Node) -> None:
        """The agent's side: offer a pod and the snapshot's end, on each connection, until both are taken."""
        while True:
            connection = await it.agent.accept()
            with some_file() as file:
                try:
                    if not await connection.receive():
                        continue
                    if await connection.ask(add_packet("uid", INFO), file) != "":
                        continue
                    if await connection.ask(SNAPSHOT_SENT) == "":
                        return
                except (OSError, AssertionError):
                    continue

    places = 0
    for place in range(1, MOST):
        turn = Turn(place)
        directory = tmp_path / str(place)
        directory.mkdir()
        async with node(directory) as it:
            with at_call(turn, number, monkeypatch, ("ztunnel.inpod",)), trio.fail_after(120):
                await pods_taken(it)
        if not turn.reached:
            break
        places += 1
    assert places > 3


async def test_certificates_are_cancelled_at_any_step() -> None:
    """An identity is forgotten at each step of its fetch; its place among the fetches is free again."""
    who = Identity("cluster.local", "default", "sa")
    steps = 0
    for number in range(1, MOST):
        turn = Turn(number)
        manager = SecretManager(
            FakeCa(lambda: 1_700_000_000.0),
            clock=lambda: 1_700_000_000.0,
            random=lambda: 0.5,
            publish=lambda _: None,
            bounds=ControlBounds(ca_calls=1),
        )

        def forget(manager: SecretManager = manager) -> None:
            manager.forget(who)

        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            base = await steady()
            with at_step(turn, lambda name: name.startswith("certificate"), forget):
                try:
                    await manager.fetch(who)
                except CaError:
                    pass
            manager.forget(who)
            other = Identity("cluster.local", "default", "other")
            with trio.fail_after(30):
                assert (await manager.fetch(other)).identity == other, "its place is free"
            manager.forget(other)
            assert await settled(base) == base
            nursery.cancel_scope.cancel()
        if not turn.reached:
            break
        steps = number
    assert steps >= 1
