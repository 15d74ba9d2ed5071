"""The task that keeps a delta xDS stream to the control plane open, as long as the process runs.

    client = XdsClient(session, connect, apply, address=..., metrics=...)
    nursery.start_soon(client.run, name="xds")
    await client.ready.wait()

It opens one stream after the other. Each stream has three tasks: one reads and applies, one writes (ACKs and
demands share it, so their order is kept), one watches for silence. `xds_session` decides what a response
means, `stream_ends` what the end of a stream means; this module does the I/O and the waiting. The mesh is
never cleared: without a control plane, traffic continues with what is known.

Silence. istiod answers the first requests even if it has nothing to send. A server that accepts the stream
and does not answer (it hangs, or waits for its own caches) would be waited for without end. So a warning is
logged after `xds_silence_warning`, and after `xds_silence_limit` the stream is ended; the next one may reach
another replica. The HTTP/2 pings of the bridge find dead connections.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from itertools import count
from typing import Protocol

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.errors import ZtunnelError
from ztunnel.messages import MeshDelta, Rejected
from ztunnel.observe.logging import Logger, get_logger
from ztunnel.system.memory import GrowthWatch, release_unused_memory
from ztunnel.xds.delta import MalformedResponseError
from ztunnel.xds.stream_ends import (
    Closed,
    Failed,
    StreamEnd,
    StreamPhase,
    StreamRefused,
    after,
    status_text,
)
from ztunnel.xds.xds_session import ADDRESS_TYPE, Reading, XdsOutcome, XdsSession

BIG = 2 * 1024 * 1024
"""Bytes of payload. After a larger response, free memory is given back to the kernel."""

SMALL_MESH = 5_000
"""The number of objects up to which the garbage collector may traverse them all: it takes 2 ms."""

log = get_logger("xds::client")


class StatusError(Exception):
    """An `XdsStream` raises it when the call has ended with a gRPC status that is not OK.

    status: the status code's name in CamelCase. source: the cause, if the transport knows it.
    """

    def __init__(self, status: str, message: str, *, details: str = "", source: str = "") -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.details = details
        self.source = source


class XdsStream(Protocol):
    """An open bidirectional call, as the gRPC bridge provides it.

    The context manager that opened it closes it.
    """

    @property
    def established(self) -> bool:
        """Whether response headers came. A refusal has none."""

    async def wait_established(self) -> None:
        """Wait for response headers. Does not return if the call ends without them."""

    async def send(self, message: bytes) -> None:
        """Write one message. Raises `StatusError` if the call has ended."""

    async def receive(self) -> bytes:
        """Wait for the next message and return it.

        Raises `StatusError` when the call has ended, trio.EndOfChannel if its status is OK.
        """


Connect = Callable[[], AbstractAsyncContextManager[XdsStream]]
"""Opens a new connection and a stream on it. Entering may raise `StatusError` or a `ZtunnelError`."""

Apply = Callable[[MeshDelta], Awaitable[Sequence[Rejected]]]
"""Applies a delta. Returns, in order, the resources of it that were rejected."""


class XdsMetrics(Protocol):
    """The three counters of this client."""

    def terminated(self, reason: str) -> None:
        """Count the end of a stream: ``istio_xds_connection_terminations_total``."""

    def message(self, url: str, size: int) -> None:
        """Count a response (``istio_xds_message_total``) and the bytes of its payloads."""


class XdsNoAnswerError(ZtunnelError):
    """The control plane has not answered a request."""

    code = "ZT-XDS-002"

    def __init__(self, address: str, seconds: float) -> None:
        super().__init__(
            f"{address} has sent no response within {seconds:.0f}s; "
            "its name does not resolve, or it is hung, overloaded or not yet synced"
        )


class _Answer(Enum):
    """The answer to a response, as the log shows it."""

    ACK = "Ack"
    NACK = "Nack"

    def __str__(self) -> str:
        return self.value


class XdsClient:
    """Keeps a stream open (see the module). All methods must be called on Trio's thread.

    apply: called for one delta at a time; what it raises ends `run`. address: the control plane's, for log
        lines.
    connected: whether there is a stream. answered: whether a valid response came on it.
    """

    def __init__(
        self,
        session: XdsSession,
        connect: Connect,
        apply: Apply,
        *,
        address: str,
        metrics: XdsMetrics,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        self._session = session
        self._connect = connect
        self._apply = apply
        self._address = address
        self._metrics = metrics
        self._outbox: trio.MemorySendChannel[bytes] | None = None
        self._waiting: dict[str, list[trio.Event]] = {}
        self._growth = GrowthWatch(SMALL_MESH)
        self.ready = trio.Event()
        self.connected = False
        self.answered = False
        self.last_error: str | None = None

    @property
    def address(self) -> str:
        """The address of the control plane, for log lines."""
        return self._address

    @property
    def waiting_for(self) -> str | None:
        """Why the first sync is not complete, for the readiness page; None when it is."""
        if self._session.ready:
            return None
        missing = " and ".join(url.rpartition("/")[2] for url in self._session.awaiting)
        if self.connected:
            return f"connected to {self._address}, waiting for {missing}"
        if self.last_error is not None:
            return self.last_error
        return f"connecting to {self._address}"

    async def run(self) -> None:
        """Keep a stream open, until cancelled."""
        backoff = self._bounds.xds_first_backoff
        for attempt in count(1):
            stream_log = log.bind_span("xds", id=attempt)
            end = await self._one_stream(stream_log)
            retry = after(end, backoff, self._address, self._bounds)
            backoff = retry.backoff
            self.last_error = retry.message
            self._metrics.terminated(retry.reason.value)
            if retry.level == "debug":
                stream_log.debug(retry.message)
            else:
                stream_log.warn(retry.message)
            await trio.sleep(retry.wait)

    async def demand(self, key: str) -> bool:
        """Ask for an address on demand, and wait for the answer at most `ControlBounds.xds_demand`.

        Returns True when the control plane has answered; the mesh then says whether the key is known. Returns
        False when it has not, or when too many keys are waited for. Several callers may wait for one key; it
        is asked for once.
        """
        request = self._session.demand(key)
        if request is None:
            return False
        waiting = self._waiting.setdefault(key, [])
        if not waiting:
            message = f"received on demand request {ADDRESS_TYPE}/{key}"
            log.info(message)
        if request and self._outbox is not None:
            self._outbox.send_nowait(request)
        answered = trio.Event()
        waiting.append(answered)
        try:
            with trio.move_on_after(self._bounds.xds_demand):
                await answered.wait()
        finally:
            waiting.remove(answered)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]
                self._session.abandon(key)
        return answered.is_set()

    async def _one_stream(self, stream_log: Logger) -> StreamEnd:
        """Open one stream and serve it until it ends. Returns how it ended."""
        phase = StreamPhase.CONNECTING
        try:
            async with self._connect() as stream:
                try:
                    return await self._converse(stream, stream_log)
                except StatusError:
                    if stream.established:
                        phase = StreamPhase.ESTABLISHED
                    raise
        except StatusError as error:
            text = status_text(error.status, error.message, details=error.details, source=error.source)
            return StreamRefused(phase, error.status, error.message, text)
        except ZtunnelError as error:
            return Failed(str(error))
        finally:
            self.connected = self.answered = False
            self._session.close()

    async def _converse(self, stream: XdsStream, stream_log: Logger) -> StreamEnd:
        # Unbounded, but its content is bounded: one answer for each response, and the open demands.
        sender, receiver = trio.open_memory_channel[bytes](math.inf)
        heard = trio.Event()
        # The value if silence has cancelled the reading; every other end replaces it.
        end: StreamEnd = Failed(str(XdsNoAnswerError(self._address, self._bounds.xds_silence_limit)))
        failure: StatusError | None = None
        async with sender, receiver, trio.open_nursery() as nursery:
            for request in self._session.open():
                sender.send_nowait(request)
            self._outbox = sender
            nursery.start_soon(self._write, stream, receiver, name="xds writes requests")
            nursery.start_soon(self._greet, stream, stream_log, name="xds awaits headers")
            nursery.start_soon(
                self._watch_silence, heard, nursery.cancel_scope, stream_log, name="xds silence"
            )
            try:
                await self._read(stream, sender, heard, stream_log)
            except trio.EndOfChannel:
                end = Closed(spoke=heard.is_set())
            except StatusError as error:
                failure = error
            except MalformedResponseError as error:
                text = status_text("Internal", str(error))
                end = StreamRefused(StreamPhase.ESTABLISHED, "Internal", str(error), text)
            finally:
                self._outbox = None
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return end

    async def _write(self, stream: XdsStream, requests: trio.MemoryReceiveChannel[bytes]) -> None:
        """Write requests in order. If the call has ended, the reader reports it."""
        try:
            async for request in requests:
                await stream.send(request)
        except StatusError:
            return

    async def _greet(self, stream: XdsStream, stream_log: Logger) -> None:
        await stream.wait_established()
        self.connected = True
        stream_log.info("Stream established")

    async def _watch_silence(self, heard: trio.Event, stream: trio.CancelScope, stream_log: Logger) -> None:
        """Log a warning about a stream without a first response, and later end the stream."""
        with trio.move_on_after(self._bounds.xds_silence_warning):
            await heard.wait()
            return
        waited = f"{self._bounds.xds_silence_warning:.0f}s"
        self.last_error = f"{self._address} has sent no response within {waited}"
        stream_log.warn(
            "XDS client: no response from the control plane; "
            "its name does not resolve, or it is hung, overloaded or not yet synced",
            address=self._address,
            waited=waited,
            code=XdsNoAnswerError.code,
        )
        with trio.move_on_after(self._bounds.xds_silence_limit - self._bounds.xds_silence_warning):
            await heard.wait()
            return
        stream.cancel()

    async def _read(
        self,
        stream: XdsStream,
        answers: trio.MemorySendChannel[bytes],
        heard: trio.Event,
        stream_log: Logger,
    ) -> None:
        """Read and apply one response after the other, until the end of the stream raises an exception."""
        while True:
            message = await stream.receive()
            heard.set()
            reading = self._session.receive(message)
            del message  # tens of megabytes; the reading releases them when it is complete
            while not reading.scan():
                await trio.lowlevel.checkpoint()
            self._metrics.message(reading.type_url, reading.value_bytes)
            is_big = reading.value_bytes > BIG
            if is_big:
                release_unused_memory()  # the message's own, before the store needs memory for its content
            outcome = await self._take(reading, stream_log)
            answers.send_nowait(outcome.request)
            del reading
            if is_big:
                release_unused_memory()
                self._growth.grown(self._session.size)
            self._tell(outcome, stream_log)

    async def _take(self, reading: Reading, stream_log: Logger) -> XdsOutcome:
        """Apply a response that was read."""
        stream_log.info(
            "received response",
            type_url=reading.type_url,
            size=reading.envelope.resources.total,
            removes=len(reading.envelope.removed),
        )
        self.answered = True
        delta = reading.delta()
        if delta is None:
            stream_log.error("unknown type", type_url=reading.type_url)
            return self._session.complete(reading)
        rejected = await self._apply(delta)
        while not reading.record(rejected):
            await trio.lowlevel.checkpoint()
        return self._session.complete(reading, rejected)

    def _tell(self, outcome: XdsOutcome, stream_log: Logger) -> None:
        """Log the answer, and wake the tasks that wait for what has become true."""
        if outcome.nack is None:
            stream_log.debug(
                "sending response", type_url=outcome.type_url, nonce=outcome.nonce, type=_Answer.ACK
            )
        else:
            stream_log.error(
                "sending response",
                type_url=outcome.type_url,
                nonce=outcome.nonce,
                type=_Answer.NACK,
                error=outcome.nack,
            )
        for key in outcome.answered:
            for waiting in self._waiting.pop(key, ()):
                waiting.set()
        if outcome.became_ready:
            self.ready.set()
