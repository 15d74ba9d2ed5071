"""gRPC calls for Trio tasks. It is the only module of our own code that imports grpcio.

The program has threads only here and in `ztunnel.netns.namespace_thread`. The generated stubs in ztunnel/pb
import grpcio too, but the program does not use those.

How it works. grpcio has threads of its own and calls back from them. A unary call is a grpcio future: when it
is done, grpcio's thread informs the Trio loop (`TrioToken.run_sync_soon`), where the waiting task takes the
result. A bidirectional stream has one thread that blocks in grpcio's iterator and hands each message to the
task with `trio.from_thread.run`, which returns only when the task has taken it: that is the back-pressure.
The thread is a `trio.to_thread` one inside the stream's own nursery. Leaving the context manager cancels the
call, which wakes the thread, and waits for it. So no thread lives longer than its stream, and no stream
longer than its channel.

Closing a channel blocks until grpcio's threads have let go of it, up to 0.2 s, so a thread does it. A channel
that is not closed can hang the program's end, until `ztunnel.start` ends it: the interpreter stops those
threads, and then waits for them.

grpcio is imported when the first channel is made: the control process needs it, but a worker process must not
    load it (it takes about 15 MB, and it does not work with fork).

Messages are raw bytes; the caller knows their types.

    async with GrpcChannel("istiod.istio-system.svc:15012", roots=pem) as channel:
        answer = await channel.unary("/package.Service/Method", request, deadline_seconds=10)
        async with channel.open_stream("/package.Service/Method", metadata=[("key", "value")]) as stream:
            await stream.send(b"...")
            await stream.headers_received.wait()  # a trio.Event, never set if the call fails before
            message = await stream.receive()  # raises GrpcStatusError at the call's end, "OK" included
            # stream.ended is a trio.Event too, for a task that waits for both.
"""

from __future__ import annotations

import os
import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import ModuleType, TracebackType
from typing import Any, Final, Self

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.grpc.status import GrpcChannelError, GrpcStatusError, Metadata, check_metadata
from ztunnel.observe.logging import get_logger

log = get_logger("grpc")

# grpcio cannot set the lowest version of TLS, but the suites up to TLS 1.2; those of 1.3 are always on. A
# pre-shared-key suite, for which we have no key, is never offered. So only TLS 1.3 is left.
_SUITES_OF_TLS13_ONLY: Final = "ECDHE-PSK-CHACHA20-POLY1305"
_SUITES_WITH_TLS12: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
)


def _grpc() -> ModuleType:
    """Import grpcio, without its log lines and its fork handlers."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import grpc  # noqa: PLC0415  # see the module's text

    return grpc


class GrpcChannel:
    """A connection to one server. It is made when the first call needs it, and made again when it broke.

    target: ``host:port`` (``[v6]:port``). The host is also the name that is sent and verified.
    roots: PEM text of the CAs that may have signed the server's certificate. None uses plaintext, for tests
        on loopback only.
    alternative_hostname: verified instead if the real name fails. tls12: allow TLS 1.2 in addition to 1.3.
        The first channel of a process decides it for all.

    `aclose`, or leaving ``async with``, ends all calls. Channels share nothing else. Raises GrpcChannelError
    if ``roots`` has no certificate, since grpcio would then trust public CAs.
    """

    def __init__(
        self,
        target: str,
        *,
        roots: bytes | None,
        alternative_hostname: str | None = None,
        tls12: bool = False,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        if roots is not None and b"-----BEGIN CERTIFICATE-----" not in roots:
            raise GrpcChannelError(f"there is no root certificate to verify {target} with")
        self.target = target
        self._roots = roots
        self._bounds = bounds
        self._suites = _SUITES_WITH_TLS12 if tls12 else _SUITES_OF_TLS13_ONLY
        # The names that are still to try, the one in use first.
        self._names: list[str | None] = [None]
        if alternative_hostname is not None and roots is not None:
            self._names.append(alternative_hostname)
        self._channel: Any = self._make(None)
        self._closed = False
        self._settling = trio.Lock()

    def _make(self, verified_name: str | None) -> Any:
        os.environ["GRPC_SSL_CIPHER_SUITES"] = self._suites
        grpc = _grpc()
        bounds = self._bounds
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", bounds.grpc_message),
            ("grpc.max_send_message_length", bounds.grpc_message),
            ("grpc.keepalive_time_ms", int(bounds.grpc_ping_interval * 1000)),
            ("grpc.keepalive_timeout_ms", int(bounds.grpc_ping_timeout * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            # The minimum time for an attempt to connect before it counts as failed.
            ("grpc.min_reconnect_backoff_ms", int(bounds.xds_connect * 1000)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A new channel makes a new connection and has no backoff of an earlier channel.
            ("grpc.use_local_subchannel_pool", 1),
            # The control plane is inside the cluster, so proxies in the environment are ignored.
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
        ]
        if verified_name is not None:
            options.append(("grpc.ssl_target_name_override", verified_name))
        if self._roots is None:
            return grpc.insecure_channel(self.target, options=options)
        return grpc.secure_channel(
            self.target, grpc.ssl_channel_credentials(root_certificates=self._roots), options=options
        )

    async def unary(
        self, method: str, request: bytes, *, metadata: Metadata = (), deadline_seconds: float
    ) -> bytes:
        """Send one request and wait for its answer, at most ``deadline_seconds``. Returns the answer.

        Raises GrpcStatusError (``DEADLINE_EXCEEDED`` when the time is over), GrpcChannelError for metadata
        that cannot be sent. Cancelling the task cancels the call.
        """
        check_metadata(metadata)
        await self._settle_name()
        start = self._channel.unary_unary(method)
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        future = start.future(request, timeout=deadline_seconds, metadata=tuple(metadata))
        future.add_done_callback(lambda _: _tell(token, done))
        try:
            await done.wait()
        finally:
            future.cancel()
        status = future.code().name
        if status != "OK":
            raise GrpcStatusError(status, future.details() or "")
        return bytes(future.result())

    @asynccontextmanager
    async def open_stream(self, method: str, metadata: Metadata = ()) -> AsyncIterator[GrpcStream]:
        """A bidirectional stream. Leaving the block cancels the call if it has not ended.

        Raises GrpcChannelError for metadata that cannot be sent. `GrpcStream.receive` and `GrpcStream.send`
        raise every end of the call, also when the server cannot be reached.
        """
        check_metadata(metadata)
        await self._settle_name()
        requests = _Requests(trio.lowlevel.current_trio_token(), self._bounds.grpc_requests)
        call = self._channel.stream_stream(method)(requests, metadata=tuple(metadata))
        stream = GrpcStream(call, requests)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream._run, name=f"gRPC stream {self.target}{method}")  # noqa: SLF001  # ours
            try:
                yield stream
            except Exception as error:  # noqa: BLE001  # raised again below, where no group is made of it
                failure = error
            finally:
                requests.end()
                call.cancel()
                # The thread may be waiting until a message is taken, and nobody will take it.
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _settle_name(self) -> None:
        """With an alternative name: find out once which of the two names the server's certificate has."""
        await trio.lowlevel.checkpoint()
        if len(self._names) > 1:
            # Calls that begin at the same time wait for one of them, because only one may replace the
            # channel.
            async with self._settling:
                await self._choose_name()
        if self._closed:
            raise GrpcChannelError(f"the channel to {self.target} was closed")

    async def _choose_name(self) -> None:
        if len(self._names) > 1 and not self._closed:
            if await self._connects(self._channel):
                del self._names[1:]
                return
            other = self._make(self._names[1])
            settled = False
            try:
                # Otherwise the server cannot be reached or is not trusted: the call itself will report that.
                settled = await self._connects(other)
            finally:
                if not settled or self._closed:
                    await self._end(other)
            if settled and not self._closed:
                before, self._channel = self._channel, other
                self._names = [self._names[1]]
                await self._end(before)

    async def _connects(self, channel: Any) -> bool:
        """Returns whether a channel becomes ready, that is, reaches the server and trusts it."""
        grpc = _grpc()
        settled = trio.Event()
        ready = False
        token = trio.lowlevel.current_trio_token()

        def changed(state: Any) -> None:
            nonlocal ready
            if state is grpc.ChannelConnectivity.READY:
                ready = True
            if ready or state in {
                grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                grpc.ChannelConnectivity.SHUTDOWN,
            }:
                _tell(token, settled)

        channel.subscribe(changed, try_to_connect=True)
        try:
            with trio.move_on_after(self._bounds.xds_connect + 1):
                await settled.wait()
        finally:
            channel.unsubscribe(changed)
        return ready

    async def aclose(self) -> None:
        """End all calls and the connection, also when cancelled. It may be called twice."""
        if not self._closed:
            self._closed = True
            await self._end(self._channel)

    async def _end(self, channel: Any) -> None:
        with trio.move_on_after(self._bounds.grpc_close, shield=True) as closing:
            await trio.to_thread.run_sync(channel.close, abandon_on_cancel=True, limiter=_threads())
        if closing.cancelled_caught:
            log.warning(f"the connection to {self.target} does not close, and is left to its thread")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class GrpcStream:
    """An open bidirectional call. `GrpcChannel.open_stream` makes and ends it.

    headers_received: set when the server has accepted the call. Many servers do that only with their first
        message, so send something before waiting for it.
    """

    def __init__(self, call: Any, requests: _Requests) -> None:
        self._call = call
        self._requests = requests
        self._ended: GrpcStatusError | None = None
        # Nothing is buffered: a message counts as delivered when the task takes it.
        self._arrivals, self._messages = trio.open_memory_channel[bytes](0)
        self.headers_received = trio.Event()
        self.ended = trio.Event()

    async def send(self, message: bytes) -> None:
        """Send one message. Waits while too many messages are not written yet.

        Raises GrpcStatusError if the call has ended. When it returns, the server need not have the message
        yet.
        """
        await trio.lowlevel.checkpoint()
        if self._ended is not None:
            raise self._ended
        if self._requests.put_nowait(message):
            return
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self.ended.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up, name="watch for the end of the gRPC stream")
            await self._requests.put(message)
            nursery.cancel_scope.cancel()
        if self._ended is not None:
            raise self._ended

    async def receive(self) -> bytes:
        """Wait for the next message and return it.

        Raises GrpcStatusError when the call has ended, also with OK.
        """
        try:
            return await self._messages.receive()
        except trio.EndOfChannel:
            raise self._ended or GrpcStatusError("CANCELLED", "the call was cancelled") from None

    async def _run(self) -> None:
        """Run the reading thread until the call has ended."""
        try:
            self._ended = await trio.to_thread.run_sync(self._read, limiter=_threads())
        finally:
            self._arrivals.close()
            self.ended.set()

    def _read(self) -> GrpcStatusError:
        """In a thread: pass headers and messages to the task as they come, and the status at the end."""
        call = self._call
        try:
            call.initial_metadata()
            if call.is_active():
                trio.from_thread.run_sync(self.headers_received.set)
            for message in call:
                trio.from_thread.run(self._deliver, message)
                del message  # the next may take long, and this one may have tens of megabytes
        except _grpc().RpcError:
            pass
        return GrpcStatusError(call.code().name, call.details() or "")

    async def _deliver(self, message: bytes) -> None:
        self.headers_received.set()
        await self._arrivals.send(message)


class _Requests(Iterator[bytes]):
    """The source of messages for grpcio's writing thread, which blocks in ``next`` until there is one."""

    def __init__(self, token: trio.lowlevel.TrioToken, most: int) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._free = trio.Semaphore(most)
        self._token = token
        self._over = False

    def put_nowait(self, message: bytes) -> bool:
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            return False
        self._queue.put(message)
        return True

    async def put(self, message: bytes) -> None:
        await self._free.acquire()
        self._queue.put(message)

    def end(self) -> None:
        """Let the thread end."""
        if not self._over:
            self._over = True
            self._queue.put(None)

    def __next__(self) -> bytes:
        message = self._queue.get()
        if message is None:
            # For the caller again.
            self._queue.put(None)
            raise StopIteration
        try:
            self._token.run_sync_soon(self._free.release)
        except trio.RunFinishedError:
            raise StopIteration from None
        return message


def _tell(token: trio.lowlevel.TrioToken, event: trio.Event) -> None:
    """From any thread: set an event of a Trio loop, if that loop still runs."""
    try:
        token.run_sync_soon(event.set)
    except trio.RunFinishedError:
        return


_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("ztunnel gRPC threads")


def _threads() -> trio.CapacityLimiter:
    """The limiter of streams' threads. They live as long as their streams, so they get their own limit."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(64)
        _limiter.set(limiter)
        return limiter
