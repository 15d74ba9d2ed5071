"""Data over TLS connections: order, back-pressure, ends, failures, and what they cost in memory."""

from __future__ import annotations

import random
import socket
import struct
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tls_peers import CLIENT_CONTEXT, DEADLINE, SERVER, SERVER_CONTEXT, Pair, sockets
from ztunnel.tls.openssl import lib
from ztunnel.tls.scratch import CHUNK
from ztunnel.tls.socket_and_stream_tls import SocketTls, StreamTls
from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tls.tls_errors import TlsProtocolError, TlsTruncatedError


async def connected(buffer: int | None = None) -> Pair:
    pair = Pair(buffer=buffer)
    assert await pair.handshake() == (None, None)
    return pair


async def receive(connection: TlsConnection, max_bytes: int = CHUNK) -> bytes:
    """The next bytes, however long they take."""
    with trio.fail_after(DEADLINE):
        while (data := connection.try_receive(max_bytes)) is None:
            await connection.wait_receivable()
    return data


async def send(connection: TlsConnection, data: bytes) -> None:
    view = memoryview(data)
    with trio.fail_after(DEADLINE):
        while view:
            sent = connection.try_send(view)
            view = view[sent:]
            if not sent:
                await connection.wait_sendable()


async def receive_all(connection: TlsConnection, size: int, rng: random.Random) -> bytes:
    parts = []
    while size > 0:
        part = await receive(connection, min(size, rng.choice([1, 100, 20_000, CHUNK])))
        assert part
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


@pytest.mark.parametrize("buffer", [None, 4096])
async def test_bytes_arrive_in_order_both_ways_at_once(buffer):
    rng = random.Random(7)
    there, back = rng.randbytes(3_000_001), rng.randbytes(2_000_003)

    async def push(connection: TlsConnection, data: bytes) -> None:
        at = 0
        while at < len(data):
            step = rng.choice([1, 700, 16_384, 50_000, 400_000])
            await send(connection, data[at : at + step])
            at += step

    got: dict[str, bytes] = {}

    async def pull(name: str, connection: TlsConnection, size: int) -> None:
        got[name] = await receive_all(connection, size, random.Random(8))

    with await connected(buffer) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push, pair.client, there)
            nursery.start_soon(push, pair.server, back)
            nursery.start_soon(pull, "server", pair.server, len(there))
            nursery.start_soon(pull, "client", pair.client, len(back))
        assert got == {"server": there, "client": back}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_can_be_sent_and_a_bytearray_is_free_again(kind):
    with await connected() as pair:
        data = kind(b"hello")
        assert pair.client.try_send(data) == 5
        if isinstance(data, bytearray):
            data += b"!"  # BufferError if OpenSSL's view were still held
        assert await receive(pair.server) == b"hello"


async def test_a_call_sends_no_more_than_a_chunk():
    with await connected() as pair:
        assert pair.client.try_send(bytes(3 * CHUNK)) in {0, CHUNK}


async def test_sending_stalls_when_the_peer_does_not_read_and_goes_on_after():
    with await connected(buffer=4096) as pair:
        data = random.Random(1).randbytes(4_000_000)
        at = 0
        while (sent := pair.client.try_send(data[at:])) > 0:
            at += sent
        assert at < len(data)
        # What is held here of what the caller still owns is one chunk's records.
        assert 0 < pair.client.unsent <= CHUNK + 9 * 22
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, pair.client, data[at:])
            got = await receive_all(pair.server, len(data), random.Random(2))
        assert got == data


async def test_coming_back_with_less_than_was_refused_is_an_error():
    with await connected(buffer=4096) as pair:
        data = bytes(1_000_000)
        while pair.client.try_send(data) > 0:
            pass
        with trio.fail_after(DEADLINE):
            while not pair.client._flush():
                if pair.server.try_receive() is None:
                    await trio.sleep(0.001)
        with pytest.raises(ValueError, match="have to be given again"):
            pair.client.try_send(b"x")


async def test_no_more_is_given_than_was_asked_for():
    with await connected() as pair:
        await send(pair.client, b"x" * 40_000)
        assert len(await receive(pair.server, 7)) == 7
        assert len(await receive(pair.server, 1)) == 1
        # What is decrypted already needs no wait.
        with trio.fail_after(1):
            await pair.server.wait_receivable()
        total = 8
        while total < 40_000:
            total += len(await receive(pair.server, 10_000))
        assert total == 40_000
        assert pair.server.try_receive() is None


async def test_what_comes_with_the_last_handshake_message_is_not_lost(autojump_clock):
    ours, theirs = sockets()
    client = SocketTls(CLIENT_CONTEXT, ours, [str(SERVER)])
    server = SocketTls(SERVER_CONTEXT, theirs)
    async with trio.open_nursery() as nursery:

        async def speak_at_once() -> None:
            await client.handshake(DEADLINE)
            await send(client, b"early" * 10_000)

        nursery.start_soon(speak_at_once)
        await trio.sleep(0.05)
        await server.handshake(DEADLINE)
    assert await receive_all(server, 50_000, random.Random(3)) == b"early" * 10_000
    client.close()
    server.close()


async def test_an_end_in_order_leaves_the_other_direction_open():
    with await connected() as pair:
        await send(pair.client, b"request")
        assert pair.client.close_notify()
        assert await receive(pair.server) == b"request"
        assert await receive(pair.server) == b""
        assert await receive(pair.server) == b""
        await send(pair.server, b"answer")
        assert await receive(pair.client) == b"answer"
        with pytest.raises(BrokenPipeError):
            pair.client.try_send(b"more")


async def test_an_end_without_close_notify_is_told_apart():
    with await connected() as pair:
        await send(pair.client, b"last words")
        pair.client.close()
        assert await receive(pair.server) == b"last words"
        for _ in range(2):
            with pytest.raises(TlsTruncatedError, match="without sending TLS close_notify"):
                await receive(pair.server)


async def test_a_reset_is_an_os_error():
    with await connected() as pair:
        pair.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.client.close()
        with pytest.raises(ConnectionResetError):
            await receive(pair.server)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await send(pair.server, bytes(1_000_000))


async def test_bytes_that_are_no_record_end_the_connection():
    with await connected() as pair:
        await send(pair.client, b"good")
        pair.client.socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert await receive(pair.server) == b"good"
        with pytest.raises(TlsProtocolError, match="invalid TLS record"):
            await receive(pair.server)
        # The peer was told: a fatal bad_record_mac alert.
        with pytest.raises(Exception, match="BadRecordMac"):
            await receive(pair.client)


async def test_after_close_everything_says_so():
    with await connected() as pair:
        pair.client.close()
        pair.client.close()
        for call in (pair.client.try_receive, partial(pair.client.try_send, b"x")):
            with pytest.raises(trio.ClosedResourceError):
                call()
        for wait in (pair.client.wait_receivable, pair.client.wait_sendable):
            with pytest.raises(trio.ClosedResourceError):
                await wait()
        assert pair.client.close_notify()
        assert pair.client.unsent == 0


async def test_closing_wakes_a_waiting_task():
    with await connected() as pair:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await pair.server.wait_receivable()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            pair.server.close()


async def test_an_idle_connection_gives_its_buffers_back():
    with await connected(buffer=4096) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, pair.client, bytes(1_000_000))
            await receive_all(pair.server, 1_000_000, random.Random(4))
        assert pair.client._records.largest == CHUNK
        before = pair.client._records._outgoing
        with trio.move_on_after(0):
            await pair.client.wait_receivable()
        assert pair.client._records._outgoing != before
        assert pair.client._records.largest == 0
        # And works on.
        await send(pair.client, b"still here")
        assert await receive(pair.server) == b"still here"


async def test_connections_take_turns_on_the_shared_buffers():
    pairs = [await connected() for _ in range(5)]
    for round_ in range(20):
        for number, pair in enumerate(pairs):
            await send(pair.client, b"%d/%d" % (number, round_) * 3000)
        for number, pair in enumerate(pairs):
            expected = b"%d/%d" % (number, round_) * 3000
            assert await receive_all(pair.server, len(expected), random.Random(5)) == expected
    for pair in pairs:
        pair.__exit__()


async def test_leftover_errors_of_others_in_this_thread_do_no_harm():
    with await connected() as pair:
        lib.ERR_put_error(20, 0, 134, b"elsewhere", 1)
        assert pair.server.try_receive() is None
        lib.ERR_put_error(20, 0, 134, b"elsewhere", 1)
        await send(pair.client, b"x")
        assert await receive(pair.server) == b"x"


async def tunnelled() -> tuple[StreamTls, StreamTls]:
    left, right = trio.testing.lockstep_stream_pair()
    client = StreamTls(CLIENT_CONTEXT, left, [str(SERVER)])
    server = StreamTls(SERVER_CONTEXT, right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake, DEADLINE)
        nursery.start_soon(server.handshake, DEADLINE)
    return client, server


async def test_tls_runs_over_any_stream():
    client, server = await tunnelled()
    assert server.peer_identity.service_account == "client"
    data = random.Random(6).randbytes(500_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, client, data)
        assert await receive_all(server, len(data), random.Random(7)) == data
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, server, data)
        assert await receive_all(client, len(data), random.Random(7)) == data


class OverTls(trio.abc.Stream):
    """A TLS connection as a stream, for TLS inside TLS."""

    def __init__(self, connection: TlsConnection) -> None:
        self._connection = connection

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            sent = self._connection.try_send(view)
            view = view[sent:]
            if not sent:
                await self._connection.wait_sendable()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while (data := self._connection.try_receive(max_bytes or 65_536)) is None:
            await self._connection.wait_receivable()
        return data

    async def aclose(self) -> None:
        self._connection.close()


async def test_tls_runs_inside_tls():
    with await connected() as outer:
        client = StreamTls(CLIENT_CONTEXT, OverTls(outer.client), [str(SERVER)])
        server = StreamTls(SERVER_CONTEXT, OverTls(outer.server))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.handshake, DEADLINE)
            nursery.start_soon(server.handshake, DEADLINE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client, b"inner" * 20_000)
            assert await receive_all(server, 100_000, random.Random(1)) == b"inner" * 20_000


async def test_a_stream_that_ends_without_close_notify_is_told_apart():
    client, server = await tunnelled()
    await client.transport.aclose()
    with pytest.raises(TlsTruncatedError):
        await receive(server)


async def test_a_record_cut_off_by_a_cancellation_ends_sending():
    client, _ = await tunnelled()
    assert client.try_send(b"never read") == 0
    with trio.move_on_after(0.01):
        await client.wait_sendable()
    with pytest.raises(BrokenPipeError):
        client.try_send(b"never read")
    with pytest.raises(BrokenPipeError):
        await client.wait_sendable()


async def test_only_one_task_may_send_on_a_stream():
    client, _ = await tunnelled()
    client.try_send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait_sendable)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.wait_sendable()
        nursery.cancel_scope.cancel()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefix=st.integers(0, 3),
    junk=st.binary(min_size=1, max_size=600),
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=4),
)
def test_no_bytes_from_the_network_do_more_than_fail_the_handshake(prefix, junk, cut, flips):
    """Junk, cut and damaged hellos and flights: always one of our errors, never another, never success."""
    from ztunnel.tls.tls_errors import TlsError

    async def main() -> None:
        ours, theirs = sockets()
        try:
            first = b""
            if prefix:
                probe_ours, probe_theirs = sockets()
                probe = SocketTls(CLIENT_CONTEXT, probe_ours, [str(SERVER)])
                with trio.move_on_after(0.001):
                    await probe.handshake(DEADLINE)
                hello = bytearray(probe_theirs.recv(65536) if not probe.unsent else b"")
                probe.close()
                probe_theirs.close()
                for at, mask in flips:
                    if hello:
                        hello[at % len(hello)] ^= mask
                first = bytes(hello[: max(1, len(hello) - cut)] if prefix == 1 else hello)
            ours.send(first + junk)
            ours.shutdown(socket.SHUT_WR)
            server = SocketTls(SERVER_CONTEXT, theirs)
            with pytest.raises(TlsError):
                await server.handshake(DEADLINE)
            server.close()
        finally:
            ours.close()
            theirs.close()

    trio.run(main)


@settings(max_examples=40, deadline=None)
@given(junk=st.binary(min_size=1, max_size=300))
def test_no_bytes_after_the_handshake_are_taken_for_data(junk):
    from ztunnel.tls.tls_errors import TlsError

    async def main() -> None:
        with await connected() as pair:
            pair.client.socket.send(junk)
            pair.client.close()
            with pytest.raises(TlsError):
                await receive(pair.server)

    trio.run(main)
