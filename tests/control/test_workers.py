"""Several data planes behind one face: here they are tasks at the other ends of real socketpairs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import Config
from ztunnel.control.mesh_cache import CACHE_PART
from ztunnel.control.workers import Workers
from ztunnel.messages import (
    Asked,
    AtWork,
    DeltaApplied,
    Drain,
    Drained,
    DumpChunk,
    DumpSection,
    DumpWanted,
    FromDataPlane,
    LogLevels,
    MeshDelta,
    PodAdded,
    PodConnections,
    PodFailed,
    PodInfo,
    PodRemoved,
    PodStarted,
    Rejected,
    Report,
    ReportWanted,
    Resource,
    ResourceKind,
    RevocationsChanged,
    ToDataPlane,
    Topic,
)
from ztunnel.model.address import SocketAddress
from ztunnel.sockets.message_socket import MessageSocket, worker_end

INFO = PodInfo("name", "namespace", "account")


class FakeWorker:
    """Keeps what it was told, and answers as a data plane does."""

    def __init__(self, line: MessageSocket[ToDataPlane]) -> None:
        self.line = line
        self.told: list[ToDataPlane] = []
        self.silent = False
        self.slow: trio.Event | None = None
        self.scope = trio.CancelScope()

    async def run(self, *, pid: int) -> None:
        try:
            with self.scope:
                await self.line.send(AtWork(pid))
                async for message in self.line:
                    await self._take(message)
        finally:
            with trio.CancelScope(shield=True):
                await self.line.aclose()

    async def _take(self, message: ToDataPlane) -> None:
        self.told.append(message)
        answer = self._answer(message)
        if isinstance(message, PodAdded):
            for descriptor in message.descriptors():
                os.close(descriptor)
        if self.slow is not None:
            await self.slow.wait()
        if answer is not None and not self.silent:
            await self.line.send(answer)

    def _answer(self, message: ToDataPlane) -> FromDataPlane | None:
        match message:
            case MeshDelta():
                bad = tuple(Rejected(one.name, "bad") for one in message.resources if one.body == b"bad")
                return DeltaApplied(message.number, bad)
            case PodAdded():
                return PodStarted(message.uid, message.attempt)
            case ReportWanted():
                return Report(message.number, (), (PodConnections("uid", (), ()),))
            case DumpWanted():
                return DumpChunk(message.number, (b'"item"',), last=True)
            case Asked():
                return DumpChunk(message.number, (f'"{message.topic.name}"'.encode(),), last=True)
            case Drain():
                return Drained()
        return None

    @property
    def mesh(self) -> set[str]:
        return {one.name for delta in self.told if isinstance(delta, MeshDelta) for one in delta.resources}


class Fakes:
    """A fork server whose workers are tasks."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.sock, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.all: list[FakeWorker] = []
        self.slow: trio.Event | None = None
        self.more = trio.lowlevel.ParkingLot()

    def order(self, worker: socket.socket) -> None:
        fake = FakeWorker(worker_end(worker.dup()))
        fake.slow = self.slow
        self.all.append(fake)
        self._nursery.start_soon(lambda: fake.run(pid=1000 + len(self.all)))

    def told(self) -> list[tuple[int, int]]:
        data = self.sock.recv(100)
        if not data:
            raise EOFError
        return [msgspec.msgpack.decode(data, type=tuple[int, int])]


class Control:
    def __init__(self) -> None:
        self.came: list[FromDataPlane] = []
        self.ended: list[int] = []


def config(count: int) -> Config:
    def local(port: int) -> SocketAddress:
        return SocketAddress.parse(f"127.0.0.1:{port}")

    return replace(
        Config(),
        num_worker_threads=count,
        packet_mark=None,
        dns_proxy=False,
        inpod_port_reuse=False,
        inbound_addr=local(0),
        inbound_plaintext_addr=local(0),
        outbound_addr=local(0),
        socks5_addr=None,
    )


@asynccontextmanager
async def running(
    count: int = 2, bounds: ControlBounds = DEFAULTS.control
) -> AsyncIterator[tuple[Workers, Fakes, Control]]:
    control = Control()
    async with trio.open_nursery() as nursery:
        fakes = Fakes(nursery)
        workers = Workers(config(count), fakes, control.came.append, control.ended.append, bounds)
        nursery.start_soon(workers.run)
        with fakes.sock, fakes.far:
            yield workers, fakes, control
            nursery.cancel_scope.cancel()


def delta(*names: str, body: bytes = b"x", removed: tuple[str, ...] = ()) -> MeshDelta:
    return MeshDelta(1, ResourceKind.ADDRESS, tuple(Resource(name, body) for name in names), removed)


async def until(condition: Any) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # it is many things that come about
            await trio.sleep(0.005)


async def test_a_delta_is_in_force_when_all_have_it():
    async with running() as (workers, fakes, _):
        assert await workers.apply(delta("a", "b")) == ()
        assert [fake.mesh for fake in fakes.all] == [{"a", "b"}] * 2
        assert await workers.apply(delta("c", body=b"bad")) == (Rejected("c", "bad"),)


async def test_a_big_delta_travels_in_parts_and_removals_come_last():
    async with running(1) as (workers, fakes, _):
        names = [str(number) for number in range(CACHE_PART + 5)]
        await workers.apply(delta(*names, removed=("gone",)))
        first, second = [one for one in fakes.all[0].told if isinstance(one, MeshDelta)]
        assert (len(first.resources), first.removed) == (CACHE_PART, ())
        assert (len(second.resources), second.removed) == (5, ("gone",))


async def test_a_new_worker_is_told_all_that_is_in_force_and_the_pods_last():
    async with running() as (workers, fakes, control):
        await workers.send(LogLevels("debug"))
        await workers.apply(delta("a", "b"))
        await workers.apply(delta("refused", body=b"bad", removed=("b",)))
        await workers.send(PodAdded("uid", INFO, attempt=7))
        await until(lambda: PodStarted("uid", 7) in control.came)
        fakes.all[0].scope.cancel()
        await until(lambda: len(fakes.all) == 3 and any(isinstance(m, PodAdded) for m in fakes.all[2].told))
        new = fakes.all[2].told
        assert new[0] == LogLevels("debug")
        assert fakes.all[2].mesh == {"a"}
        assert isinstance(new[-1], PodAdded)
        assert len(control.ended) == 1
        assert control.came.count(PodStarted("uid", 7)) == 1


async def test_a_change_that_waits_while_a_new_worker_is_told_the_rest_reaches_it_too():
    """It waits for its turn behind the new worker's first messages; by then that one counts."""
    async with running() as (workers, fakes, _), trio.open_nursery() as nursery:
        await workers.apply(delta("a"))
        fakes.slow = trio.Event()
        fakes.all[0].scope.cancel()
        await until(lambda: len(fakes.all) == 3 and fakes.all[2].mesh == {"a"})
        nursery.start_soon(workers.apply, delta("b"))
        await trio.testing.wait_all_tasks_blocked()
        assert fakes.all[2].mesh == {"a"}
        fakes.slow.set()
        await until(lambda: fakes.all[2].mesh == {"a", "b"})
        assert fakes.all[1].mesh == {"a", "b"}


async def test_a_first_message_of_its_kind_may_come_while_a_new_worker_is_told_those_of_before():
    async with running() as (workers, fakes, _):
        await workers.apply(delta("a"))
        await workers.send(LogLevels("debug"))
        fakes.slow = trio.Event()
        fakes.all[0].scope.cancel()
        await until(lambda: len(fakes.all) == 3)
        await workers.send(RevocationsChanged((b"list",)))
        fakes.slow.set()
        await until(lambda: RevocationsChanged((b"list",)) in fakes.all[2].told)
        await until(lambda: fakes.all[2].mesh == {"a"})


async def test_a_pod_has_started_when_all_serve_it():
    async with running() as (workers, fakes, control):
        await workers.apply(delta("a"))
        fakes.all[1].silent = True
        await workers.send(PodAdded("uid", INFO, attempt=1))
        await until(lambda: any(isinstance(message, PodAdded) for message in fakes.all[1].told))
        assert control.came == []
        await fakes.all[1].line.send(PodStarted("uid", 1))
        await until(lambda: control.came == [PodStarted("uid", 1)])


async def test_the_listeners_are_the_same_sockets_everywhere_and_go_with_the_pod():
    async with running() as (workers, fakes, control):
        await workers.apply(delta("a"))
        await workers.send(PodAdded("uid", INFO, attempt=1))
        await until(lambda: PodStarted("uid", 1) in control.came)
        first, second = (next(m for m in fake.told if isinstance(m, PodAdded)) for fake in fakes.all)
        assert first.listeners is not None
        assert second.listeners is not None
        assert [one.address for one in first.listeners] == [one.address for one in second.listeners]
        address = SocketAddress.parse(first.listeners[0].address)
        await (await trio.open_tcp_stream(str(address.ip), address.port)).aclose()
        await workers.send(PodRemoved("uid"))
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(str(address.ip), address.port)


async def test_a_pod_that_cannot_be_bound_is_said_to_fail():
    async with running() as (workers, _, control):
        await workers.apply(delta("a"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            workers._config = replace(workers._config, inbound_addr=SocketAddress.parse(f"127.0.0.1:{port}"))
            await workers.send(PodAdded("uid", INFO, attempt=1))
        [failed] = control.came
        assert isinstance(failed, PodFailed)
        assert failed.error == f"Bind(127.0.0.1:{port}, Address already in use (os error 98))"


async def test_reports_and_trees_are_of_all_and_the_mesh_of_one():
    async with running() as (workers, _, _):
        await workers.apply(delta("a"))
        assert list(await workers.reports()) == [1, 2]
        assert await workers.ask(Topic.TASKS, {"pid": "1"}) == [msgspec.Raw(b'"TASKS"')] * 2
        assert [items async for items in workers.dump(DumpSection.WORKLOADS)] == [(msgspec.Raw(b'"item"'),)]


async def test_a_worker_that_hangs_is_killed_and_the_mesh_goes_on(monkeypatch):
    killed = []

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        fakes.all[0].scope.cancel()

    async with running(bounds=ControlBounds(worker_hung=0.05)) as (workers, fakes, _):
        await workers.apply(delta("a"))
        monkeypatch.setattr(os, "kill", kill)
        fakes.all[0].silent = True
        with trio.fail_after(30):
            await workers.apply(delta("b"))
        assert killed == [(1001, signal.SIGKILL)]
        await until(lambda: len(fakes.all) == 3 and fakes.all[2].mesh == {"a", "b"})


async def test_a_drain_is_over_when_all_have_drained_and_nobody_is_replaced():
    async with running() as (workers, fakes, _):
        await workers.apply(delta("a"))
        with trio.fail_after(30):
            await workers.drain(1.0)
        for fake in fakes.all:
            fake.scope.cancel()
        await until(lambda: not workers._workers)
        assert len(fakes.all) == 2
