"""The control side's connection to one data plane: numbered questions, and their answers."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Protocol

import msgspec
import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.errors import ZtunnelError
from ztunnel.messages import (
    Asked,
    DeltaApplied,
    Drain,
    Drained,
    DumpChunk,
    DumpSection,
    DumpTaken,
    DumpWanted,
    FromDataPlane,
    MeshDelta,
    PodAdded,
    Rejected,
    Report,
    ReportWanted,
    ToDataPlane,
    Topic,
)
from ztunnel.sockets.message_socket import MessageSocket


class DataPlaneGoneError(ZtunnelError):
    """A data plane ended while its answer was awaited."""

    code = "ZT-INT-003"

    def __init__(self) -> None:
        super().__init__("The data plane process ended before it answered.")


class QuestionFailedError(ZtunnelError):
    """A data plane raised an unexpected exception for a person's question. Traffic is not affected."""

    code = "ZT-INT-006"

    def __init__(self, error: str) -> None:
        super().__init__(f"The question could not be answered: {error}")


class DataPlanes(Protocol):
    """One data plane, or several that act as one: `DataPlaneLink`, `ztunnel.control.workers.Workers`."""

    async def run(self) -> None:
        """Process their messages until all have ended."""

    async def send(self, message: ToDataPlane) -> None:
        """Send a message without an answer. They own the descriptors of a PodAdded from then on."""

    async def apply(self, delta: MeshDelta) -> tuple[Rejected, ...]:
        """Apply a change of the mesh. Returns what was rejected."""

    async def drain(self, deadline: float) -> None:
        """Stop accepting, and close what is open after ``deadline`` seconds. Returns when all is closed."""

    async def reports(self) -> dict[int, Report]:
        """Returns the report of each, by its number. Raises trio.TooSlowError."""

    def dump(self, section: DumpSection) -> AsyncGenerator[tuple[msgspec.Raw, ...], None]:
        """Returns a section of the admin dump, which is the same in each. Raises trio.TooSlowError."""

    async def ask(self, topic: Topic, parameters: Mapping[str, str]) -> list[msgspec.Raw]:
        """Returns the items of the answers to a question. Raises trio.TooSlowError, QuestionFailedError."""


class DataPlaneLink:
    """Communicates with one data plane.

    send: sends a message, and waits if the data plane is far behind.
    inbox: the messages from it.
    on_message: called with every message that is not an answer to one of our questions.
    """

    def __init__(
        self,
        send: trio.abc.SendChannel[ToDataPlane],
        inbox: trio.abc.ReceiveChannel[FromDataPlane],
        on_message: Callable[[FromDataPlane], None],
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._timeout = bounds.data_plane_answer
        self._outbox = send
        self._sender_closes = isinstance(send, MessageSocket)
        self._inbox = inbox
        self._on_message = on_message
        self._numbers = count(1)
        self._answers: dict[int, trio.MemorySendChannel[DeltaApplied | Report | DumpChunk]] = {}
        self.drained = trio.Event()

    async def run(self) -> None:
        """Process the data plane's messages until it has ended."""
        async with self._inbox:
            async for message in self._inbox:
                match message:
                    case DeltaApplied() | Report() | DumpChunk():
                        waiting = self._answers.get(message.number)
                        if waiting is not None:
                            waiting.send_nowait(message)
                    case Drained():
                        self.drained.set()
                    case _:
                        self._on_message(message)
        self.drained.set()
        for waiting in self._answers.values():
            waiting.close()

    async def send(self, message: ToDataPlane) -> None:
        """Send a message without an answer. A message to an ended data plane is dropped.

        The receiver owns the descriptors of a PodAdded; they are closed here if there is no receiver.
        """
        sent = False
        try:
            await self._outbox.send(message)
            sent = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.drained.set()
        finally:
            if not sent and isinstance(message, PodAdded) and not self._sender_closes:
                for descriptor in message.descriptors():
                    os.close(descriptor)

    async def apply(self, delta: MeshDelta) -> tuple[Rejected, ...]:
        """Send a change of the mesh and wait until it is applied. Returns what was rejected.

        The number in the delta is replaced by one of this link.
        """
        async with self._question() as (number, answers):
            await self.send(msgspec.structs.replace(delta, number=number))
            answer = await answers.receive()
        assert isinstance(answer, DeltaApplied)
        return answer.rejected

    async def drain(self, deadline: float) -> None:
        """Drain it: it closes what is open after ``deadline`` seconds. Returns when all is closed."""
        await self.send(Drain(deadline))
        await self.drained.wait()

    async def report(self) -> Report:
        """Returns its report. Raises trio.TooSlowError."""
        async with self._question() as (number, answers):
            with trio.fail_after(self._timeout):
                await self.send(ReportWanted(number))
                answer = await answers.receive()
        assert isinstance(answer, Report)
        return answer

    async def reports(self) -> dict[int, Report]:
        """Returns the same, by the number of the data plane."""
        return {0: await self.report()}

    async def dump(self, section: DumpSection) -> AsyncGenerator[tuple[msgspec.Raw, ...], None]:
        """Returns a part of the admin dump, in pieces.

        Raises trio.TooSlowError when a piece does not come.
        """
        async with self._question() as (number, answers):
            await self.send(DumpWanted(number, section))
            last = False
            try:
                while not last:
                    with trio.fail_after(self._timeout):
                        answer = await answers.receive()
                    assert isinstance(answer, DumpChunk)
                    last = answer.last
                    yield tuple(map(msgspec.Raw, answer.items))
                    if answer.items:
                        await self.send(DumpTaken(number))
            finally:
                if not last:
                    with trio.move_on_after(self._timeout, shield=True):
                        await self.send(DumpTaken(number, more=False))

    async def ask(self, topic: Topic, parameters: Mapping[str, str]) -> list[msgspec.Raw]:
        """Returns the items of the answer to a question.

        Raises trio.TooSlowError when a piece does not come.
        """
        items: list[msgspec.Raw] = []
        error = ""
        async with self._question() as (number, answers):
            await self.send(Asked(number, topic, dict(parameters)))
            last = False
            while not last:
                with trio.fail_after(self._timeout):
                    answer = await answers.receive()
                assert isinstance(answer, DumpChunk)
                last = answer.last
                items += map(msgspec.Raw, answer.items)
                error = answer.error
        if error:
            raise QuestionFailedError(error)
        return items

    @asynccontextmanager
    async def _question(
        self,
    ) -> AsyncIterator[tuple[int, trio.MemoryReceiveChannel[DeltaApplied | Report | DumpChunk]]]:
        number = next(self._numbers)
        # The data plane limits what it sends for one question, and the channel itself must never make `run`
        # wait.
        sender, receiver = trio.open_memory_channel[DeltaApplied | Report | DumpChunk](float("inf"))
        self._answers[number] = sender
        try:
            if self.drained.is_set():
                raise DataPlaneGoneError
            yield number, receiver
        except trio.EndOfChannel:
            raise DataPlaneGoneError from None
        finally:
            del self._answers[number]
            sender.close()
            receiver.close()
