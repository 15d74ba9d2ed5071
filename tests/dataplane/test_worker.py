"""A data plane in a child process over a socketpair: the boundary is real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import trio

from tests.support.data_plane import deny_port, echo, is_closed, read_all, server, via_socks, worker_process
from ztunnel.messages import Drain, PodAdded, PodInfo, PodRemoved, ReportWanted
from ztunnel.sockets.message_socket import FrameError, control_end, worker_end


async def test_traffic_passes_through_a_data_plane_in_a_child_process():
    async with worker_process() as (control, process), server(echo) as port:
        async with await via_socks(port) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await read_all(stream) == b"hello"
        await control.policies(deny_port(port))
        async with await via_socks(port) as stream:
            assert await is_closed(stream)
        report = await control.report()
        opened = [s for s in report.samples if s.family == "istio_tcp_connections_opened_total"]
        assert sum(sample.value for sample in opened) == 4
        with open(f"/proc/{process.pid}/maps") as maps:
            assert "grpc" not in maps.read()


async def test_the_child_ends_when_its_drain_is_over():
    async with worker_process() as (control, process):
        await control.to_plane.send(Drain(1.0))
        await control.drained()
        with trio.fail_after(60):
            assert await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True) == 0


async def test_the_child_ends_when_the_control_side_goes():
    async with worker_process() as (control, process):
        await control.to_plane.aclose()
        with trio.fail_after(60):
            assert await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True) == 0


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_descriptor_arrives_with_its_message_and_none_is_left():
    before = descriptors()
    left, right = socket.socketpair()
    control, plane = control_end(left), worker_end(right)
    reader, writer = os.pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.send, ReportWanted(1))
        nursery.start_soon(control.send, PodAdded("uid", PodInfo("a", "b", "c"), writer))
        nursery.start_soon(control.send, PodRemoved("uid"))
        came = [await plane.receive() for _ in range(3)]
    [added] = [message for message in came if isinstance(message, PodAdded)]
    assert added.netns is not None
    os.write(added.netns, b"x")
    os.close(added.netns)
    assert os.read(reader, 2) == b"x"
    os.close(reader)
    await control.aclose()
    await plane.aclose()
    assert descriptors() == before


async def test_a_descriptor_that_nobody_took_is_closed():
    before = descriptors()
    left, right = socket.socketpair()
    control, plane = control_end(left), worker_end(right)
    reader, writer = os.pipe()
    await control.send(PodRemoved("first"))
    await control.send(PodAdded("uid", PodInfo("a", "b", "c"), writer))
    assert await plane.receive() == PodRemoved("first")
    os.close(reader)
    await plane.aclose()
    await control.aclose()
    assert descriptors() == before


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc"], ids=["length", "body"])
async def test_bytes_that_are_no_frame_are_an_error(data):
    left, right = socket.socketpair()
    plane = worker_end(right)
    left.sendall(data)
    with pytest.raises(FrameError):
        await plane.receive()
    left.close()
    await plane.aclose()


async def test_the_worker_module_says_what_is_wrong_with_its_environment():
    done = subprocess.run(
        [sys.executable, "-m", "ztunnel.dataplane.worker", "0"],
        env={**os.environ, "PROXY_MODE": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "PROXY_MODE" in done.stderr
