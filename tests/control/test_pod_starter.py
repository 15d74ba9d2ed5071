"""Starts of a pod are told apart, whatever order the data plane's answers come in."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from ztunnel.control.link import DataPlaneLink
from ztunnel.control.pod_starter import PodStarter
from ztunnel.inpod.zds_errors import PodStartError
from ztunnel.messages import (
    FromDataPlane,
    PodAdded,
    PodFailed,
    PodInfo,
    PodRemoved,
    PodStarted,
    PodStopped,
    ToDataPlane,
)

INFO = PodInfo("pod", "default", "account")


class Plane:
    """A data plane that says only what the test has it say."""

    def __init__(self) -> None:
        send, self.inbox = trio.open_memory_channel[ToDataPlane](10)
        _, nothing = trio.open_memory_channel[FromDataPlane](0)
        self.ended: list[str] = []
        self.pods = PodStarter(DataPlaneLink(send, nothing, lambda _: None), self.ended.append)

    async def added(self) -> int:
        """The number of the start that is asked for."""
        message = await self.inbox.receive()
        assert isinstance(message, PodAdded)
        return message.attempt

    async def start(self, uid: str = "uid") -> int:
        """A start that succeeds; gives its number."""
        attempt = 0

        async def answer() -> None:
            nonlocal attempt
            attempt = await self.added()
            self.pods.on_message(PodStarted(uid, attempt))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await self.pods.start(uid, INFO, None)
        return attempt


async def test_a_pod_that_ends_by_itself_is_told_of_once():
    plane = Plane()
    attempt = await plane.start()
    plane.pods.on_message(PodStopped("uid", attempt))
    plane.pods.on_message(PodStopped("uid", attempt))
    assert plane.ended == ["uid"]


async def test_a_pod_that_was_stopped_is_not():
    plane = Plane()
    attempt = await plane.start()
    await plane.pods.stop("uid")
    plane.pods.on_message(PodStopped("uid", attempt))
    assert plane.ended == []


async def test_the_end_of_what_was_replaced_is_not_the_end_of_its_successor():
    plane = Plane()
    before = await plane.start()
    await plane.pods.stop("uid")
    assert isinstance(await plane.inbox.receive(), PodRemoved)
    after = await plane.start()
    plane.pods.on_message(PodStopped("uid", before))
    assert plane.ended == []
    plane.pods.on_message(PodStopped("uid", after))
    assert plane.ended == ["uid"]


async def test_a_late_answer_to_a_start_that_was_given_up_answers_no_other(autojump_clock):
    plane = Plane()
    with trio.move_on_after(1) as waiting:
        await plane.pods.start("uid", INFO, None)
    assert waiting.cancelled_caught
    given_up = await plane.added()
    assert isinstance(await plane.inbox.receive(), PodRemoved)
    outcome = []

    async def start() -> None:
        await plane.pods.start("uid", INFO, None)
        outcome.append("started")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        attempt = await plane.added()
        plane.pods.on_message(PodStarted("uid", given_up))
        plane.pods.on_message(PodFailed("uid", "too late", given_up))
        await trio.testing.wait_all_tasks_blocked()
        assert outcome == []
        plane.pods.on_message(PodStarted("uid", attempt))
    assert outcome == ["started"]
    # What had started after all and was stopped is none that ended by itself.
    plane.pods.on_message(PodStopped("uid", given_up))
    assert plane.ended == []


async def test_a_failed_start_says_why_and_leaves_nothing():
    plane = Plane()
    read, write = os.pipe()
    try:

        async def answer() -> None:
            message = await plane.inbox.receive()
            assert isinstance(message, PodAdded)
            assert message.netns not in {None, read}
            assert message.netns is not None
            os.close(message.netns)
            plane.pods.on_message(PodFailed("uid", "Bind([::]:15008, in use)", message.attempt))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(PodStartError, match="failure to start proxy : Bind"):
                await plane.pods.start("uid", INFO, read)
        assert isinstance(await plane.inbox.receive(), PodRemoved)
    finally:
        os.close(read)
        os.close(write)


async def test_a_namespace_that_cannot_be_kept_open_fails_the_start():
    plane = Plane()
    with pytest.raises(PodStartError, match=r"Bad file descriptor \(os error 9\)"):
        await plane.pods.start("uid", INFO, 1_000_000)
