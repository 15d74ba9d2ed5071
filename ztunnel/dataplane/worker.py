"""A data plane in a process of its own: ``python -m ztunnel.dataplane.worker DESCRIPTOR``.

The descriptor is one end of a socketpair; the control process has the other end. The configuration comes from
the environment, as in the control process. The process ends when the control process closes its end, or when
a drain is complete.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from random import SystemRandom

import trio

from ztunnel.bounds import DEFAULTS, Bounds
from ztunnel.config.load_from_machine import load_from_machine
from ztunnel.config.model import Config
from ztunnel.dataplane.data_plane import DataPlane
from ztunnel.messages import AtWork, FromDataPlane, ToDataPlane
from ztunnel.observe.logging import run_log_writer, setup_logging, shutdown_logging
from ztunnel.observe.task_tree import TaskAges
from ztunnel.sockets.descriptor_limit import raise_descriptor_limit
from ztunnel.sockets.message_socket import MessageSocket, worker_end
from ztunnel.system.memory import spare_collector


async def serve(
    config: Config,
    control: MessageSocket[ToDataPlane],
    bounds: Bounds = DEFAULTS,
    ages: TaskAges | None = None,
) -> None:
    """Run a data plane over a socketpair until either side ends. Closes the socket.

    ages: of the tasks of this process.
    """
    out_send, out_receive = trio.open_memory_channel[FromDataPlane](float("inf"))
    in_send, in_receive = trio.open_memory_channel[ToDataPlane](16)

    async def speak() -> None:
        async with out_receive:
            try:
                async for message in out_receive:
                    await control.send(message)
            except trio.BrokenResourceError:
                # Nobody is left to receive messages, and nobody can send any.
                return

    async def listen() -> None:
        async with in_send:
            try:
                while True:
                    await in_send.send(await control.receive())
            except (trio.EndOfChannel, trio.BrokenResourceError):
                return

    def tell(message: FromDataPlane) -> None:
        try:
            out_send.send_nowait(message)
        except trio.BrokenResourceError:
            return

    tell(AtWork(os.getpid()))
    plane = DataPlane(
        config,
        tell,
        own_process=True,
        random=SystemRandom(),
        wall_clock=time.time,
        bounds=bounds,
        ages=ages,
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, name="from control")
            async with trio.open_nursery() as speaking:
                speaking.start_soon(speak, name="to control")
                with out_send:
                    await plane.run(in_receive)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await control.aclose()


async def _main(config: Config, descriptor: int, bounds: Bounds = DEFAULTS) -> None:
    ages = TaskAges()
    trio.lowlevel.add_instrument(ages)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_log_writer, name="log writer")
        control = worker_end(socket.socket(fileno=descriptor), bounds.control.worker_message)
        await serve(config, control, bounds, ages)
        nursery.cancel_scope.cancel()


def run(config: Config, descriptor: int, bounds: Bounds = DEFAULTS) -> None:
    """Run a worker process. ``descriptor``: of the socketpair; closed at the end."""
    # The control process decides when to end. A signal to the whole process group must not end workers
    # earlier.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        raise_descriptor_limit()
    except (OSError, ValueError):
        pass  # the control process ended the worker
    try:
        trio.run(_main, config, descriptor, bounds)
    finally:
        shutdown_logging()


def main(bounds: Bounds = DEFAULTS) -> None:
    """The entry point of a worker that is started as a program."""
    setup_logging(os.environ)
    spare_collector()
    try:
        run(load_from_machine(os.environ), int(sys.argv[1]), bounds)
    finally:
        shutdown_logging()


if __name__ == "__main__":
    main()
