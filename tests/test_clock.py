"""The tests' own clock: it waits for what is real."""

from __future__ import annotations

import threading
import time

import trio

from tests.clock import make_patient_clock


def test_time_jumps_while_nothing_real_happens():
    async def main() -> None:
        before = trio.current_time()
        await trio.sleep(3600)
        assert trio.current_time() == before + 3600

    trio.run(main, clock=make_patient_clock())


def test_it_waits_for_a_thread_however_long_that_takes():
    started = threading.Event()

    def slow() -> None:
        started.set()
        time.sleep(0.2)

    async def main() -> None:
        with trio.fail_after(1):
            await trio.to_thread.run_sync(slow)
        assert started.is_set()
        before = trio.current_time()
        await trio.sleep(60)
        assert trio.current_time() == before + 60

    trio.run(main, clock=make_patient_clock())


def test_a_deadline_still_passes_for_who_waits_for_a_socket():
    async def main() -> None:
        near, far = trio.socket.socketpair()
        with near, far, trio.move_on_after(60) as scope:
            await near.recv(1)
        assert scope.cancelled_caught

    trio.run(main, clock=make_patient_clock())


def test_what_another_thread_sends_arrives_before_time_jumps():
    async def main() -> None:
        near, far = trio.socket.socketpair()
        with near, far, trio.fail_after(60):
            for number in range(20):
                await trio.to_thread.run_sync(far.fileno)
                await far.send(bytes([number]))
                assert await near.recv(1) == bytes([number])

    trio.run(main, clock=make_patient_clock())
