"""Hostile HTTP/2 at 15008 of a real data plane in a process of its own.

Each attack goes on until it is answered as RFC 9113 says, or, where the protocol allows it, until it has had
its share. Meanwhile a neighbour's stream on another tunnel goes on, and the process grows by little. How long
the neighbour's round trips take under attack is no matter for a test: ``python -m tests.bench.hostile``.
"""

from __future__ import annotations

import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived

from tests.support.attacker import attacked
from tests.support.attacks import ATTACKS, HELLO, Attack, block, headers
from tests.support.data_plane import echo, running_plane, server, via_socks, worker_process
from tests.support.hbone_conversation import reset
from tests.support.hostile_peer import dial, receive, send_all
from tests.support.neighbour import Neighbour
from tests.support.own_namespace import small_send_buffers
from tests.support.played_endpoints import HERE, PORT, VIP, endpoint, play, service
from tests.support.raw_hbone import RawHbone
from ztunnel.bounds import DEFAULTS
from ztunnel.hbone import ErrorCode, work
from ztunnel.tls.socket_and_stream_tls import SocketTls

GROWTH = 64 << 20
"""Bytes by which a process may grow under an attack: one tunnel's windows, what may be lent, and buffers."""


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


class Foreign:
    """A client that is a stock h2."""

    def __init__(self, tls: SocketTls) -> None:
        self._tls = tls
        config = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        self._h2 = H2Connection(config)
        self._h2.initiate_connection()
        self.status: dict[int, str] = {}
        self._data: dict[int, bytes] = {}

    async def request(self, headers: list[tuple[str, str]]) -> int:
        """Send a request and wait for the status of its answer. Returns its stream id."""
        number = self._h2.get_next_available_stream_id()
        self._h2.send_headers(number, headers)
        while number not in self.status:
            await self._step()
        return number

    async def echo(self, number: int, data: bytes) -> bytes:
        self._data[number] = b""
        self._h2.send_data(number, data)
        while len(self._data[number]) < len(data):
            await self._step()
        return self._data[number]

    async def _step(self) -> None:
        await send_all(self._tls, self._h2.data_to_send())
        data = await receive(self._tls)
        assert data, "the tunnel has ended"
        for event in self._h2.receive_data(data):
            if isinstance(event, ResponseReceived):
                self.status[event.stream_id or 0] = str(dict(event.headers or ())[b":status"], "ascii")
            elif isinstance(event, DataReceived):
                self._data[event.stream_id or 0] += event.data or b""
            assert not isinstance(event, ConnectionTerminated)

    def close(self) -> None:
        self._tls.close()


async def converse(neighbour: Neighbour, over: trio.Event) -> None:
    """Say something every second, and answer PING on the way, which a busy machine needs time for."""
    while not over.is_set():
        await neighbour.exchange(b"meanwhile")
        with trio.move_on_after(1):
            await over.wait()


# The attackers that read no answers go on for over ten seconds.
CASES = [
    pytest.param(attack, id=attack.name, marks=() if attack.reads else pytest.mark.slow) for attack in ATTACKS
]


@pytest.mark.parametrize("attack", CASES)
async def test_an_attack_costs_little_and_hurts_nobody_else(
    attack: Attack, own_network_namespace: bool
) -> None:
    # Answers that nobody reads wait in the kernel first: megabytes, for which a PING is sooner unanswered.
    small = own_network_namespace and not attack.reads
    buffers = small_send_buffers() if small else nullcontext()
    with buffers:
        await _attack(attack)


async def _attack(attack: Attack) -> None:
    # Who reads answers PING; that its answer comes late on a busy machine is not what ends the attack.
    module = "tests.support.patient_worker" if attack.reads else "ztunnel.dataplane.worker"
    async with worker_process(module) as (control, process), server(echo) as port:
        async with Neighbour(control, f"127.0.0.1:{port}") as neighbour:
            await neighbour.exchange(b"before")
            before = resident(process.pid)
            over = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(converse, neighbour, over)
                answers = [await attacked(control, attack, port) for _ in range(2)]
                over.set()
            assert resident(process.pid) - before < GROWTH
            await neighbour.exchange(b"after")
            assert process.poll() is None
        for answer in answers:
            if not attack.codes:
                # Allowed, or so much at once that we have had enough.
                assert answer.code in {None, ErrorCode.ENHANCE_YOUR_CALM}
            elif attack.reads:
                assert answer.code in attack.codes, ErrorCode(answer.code or 0)


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_of_many_requests_that_are_given_up_at_once_few_reach_the_application(how: str) -> None:
    """Those of the first turn, at most; and the next request is served."""
    reached = 0

    async def application(stream: trio.SocketStream) -> None:
        nonlocal reached
        reached += 1
        await echo(stream)

    async with worker_process() as (control, _), server(application) as port:
        authority = f"127.0.0.1:{port}"
        with trio.fail_after(60):
            tls = await dial(control)
            fields = block(authority)
            wire = HELLO
            for number in range(1, 81, 2):
                wire += headers(number, fields) + (reset(number, 8) if how == "reset" else b"")
            if how == "closed":
                # The end travels in the segment of the requests.
                tls.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            await send_all(tls, wire)
            if how == "closed":
                tls.socket.shutdown(socket.SHUT_WR)
                while await receive(tls):
                    pass
            tls.close()
            async with Neighbour(control, authority) as neighbour:
                await neighbour.exchange(b"after that")
    most = DEFAULTS.tunnel.first_work // work.REQUEST + 1
    assert reached <= 1 + most


async def test_a_request_over_the_limit_is_refused_alone() -> None:
    """80 KB of baggage, and 120 KB out of 3 KB of HPACK, while stream 1 goes on beside them."""
    fields = [(":method", "CONNECT"), (":authority", "127.0.0.1:80")]
    large = [*fields, ("baggage", "x" * 80_000)]
    bomb = [*fields, *[("a", "x" * 4_000)] * 30]
    async with worker_process() as (control, _), server(echo) as port:
        client = Foreign(await dial(control))
        with trio.fail_after(60):
            first = await client.request([fields[0], (":authority", f"127.0.0.1:{port}")])
            assert await client.echo(first, b"one") == b"one"
            for headers in (large, bomb):
                refused = await client.request(headers)
                assert client.status[refused] == "431"
                assert await client.echo(first, b"two") == b"two"
            again = await client.request([fields[0], (":authority", f"127.0.0.1:{port}"), ("a", "b")])
            assert await client.echo(again, b"three") == b"three"
        client.close()


async def test_an_answer_over_the_limit_ends_its_own_connection_alone() -> None:
    """A peer that answers one of our CONNECTs with 30 KB of fields, while stream 1 goes on beside it."""

    async def serve(connection: RawHbone) -> None:
        answered: set[int] = set()
        echoed = 0
        while True:
            await connection.step()
            for number, stream in connection.streams.items():
                if stream.headers and number not in answered:
                    answered.add(number)
                    large = [("x-large", "x" * 10_000)] * 3 if number > 1 else []
                    connection.h2.send_headers(number, [(":status", "200"), *large])
            first = connection.streams.get(1)
            if first is not None and len(first.data) > echoed:
                connection.h2.send_data(1, bytes(first.data[echoed:]))
                echoed = len(first.data)
            await connection.flush()

    async with running_plane(HERE) as control, play(control, 1, serve) as played:
        await control.apply(service(), endpoint(1))
        with trio.fail_after(60):
            first = await via_socks(PORT, VIP)
            await first.send_all(b"one")
            assert await first.receive_some() == b"one"
            async with await via_socks(PORT, VIP) as second:
                with pytest.raises(trio.BrokenResourceError):
                    await second.receive_some()
            await first.send_all(b"two")
            assert await first.receive_some() == b"two"
            await first.aclose()
        assert played.accepted == 1
