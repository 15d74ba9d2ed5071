from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.support.logs import capture_logs
from tests.support.serving import exchange, serving
from ztunnel.admin.http import Request, Response


async def echo(request: Request) -> Response:
    query = ",".join(f"{key}={value}" for key, value in request.query.items())
    return Response(200, f"{request.method} {request.path} {query}".encode(), "text/plain")


async def until_closed(stream: trio.SocketStream) -> bytes:
    got = b""
    with trio.fail_after(10):
        while piece := await stream.receive_some(65536):
            got += piece
    return got


async def test_a_request_reaches_the_handler_and_the_answer_the_client():
    async with serving(echo) as served:
        answer = await served.ask("GET", "/a%20b?verbose&level=x&level=y")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain"
    assert answer.body == b"GET /a b verbose=,level=y"


async def test_a_connection_is_kept_for_further_requests():
    async with serving(echo) as served, await served.connect() as stream:
        client = h11.Connection(h11.CLIENT)
        for number in range(3):
            answer = await exchange(stream, "GET", f"/{number}", connection=client)
            assert answer.body == f"GET /{number} ".encode()
            client.start_next_cycle()


async def test_head_gets_headers_only():
    async with serving(echo) as served:
        answer = await served.ask("HEAD", "/x")
    assert answer.status == 200
    assert answer.body == b""
    assert answer.headers["content-length"] == str(len("HEAD /x "))


async def test_an_answer_without_content_type_has_none():
    async def nothing(_request: Request) -> Response:
        return Response(404)

    async with serving(nothing) as served:
        answer = await served.ask("GET", "/")
    assert answer.status == 404
    assert "content-type" not in answer.headers
    assert answer.headers["content-length"] == "0"


@pytest.mark.parametrize("as_async", [False, True])
async def test_a_body_in_pieces_is_streamed(as_async):
    async def pieces() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            yield f"{number}\n".encode()
            yield b""

    def plain() -> Iterator[bytes]:
        for number in range(3):
            yield f"{number}\n".encode()

    async def handler(_request: Request) -> Response:
        return Response(200, pieces() if as_async else plain(), "text/plain")

    async with serving(handler) as served:
        answer = await served.ask("GET", "/")
        assert answer.body == b"0\n1\n2\n"
        assert answer.headers["transfer-encoding"] == "chunked"
        async with await served.connect() as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert (await until_closed(stream)).endswith(b"\r\n\r\n0\n1\n2\n")


async def test_a_handler_that_fails_gives_500_with_the_text():
    async def handler(request: Request) -> Response:
        if request.path == "/late":
            return Response(200, late(), "text/plain")
        raise ValueError("no such thing")

    async def late() -> AsyncGenerator[bytes, None]:
        pieces: dict[str, bytes] = {}
        yield pieces["before the first piece"]

    async with serving(handler) as served:
        with capture_logs() as records:
            answer = await served.ask("GET", "/")
            assert (answer.status, answer.body) == (500, b"no such thing")
            answer = await served.ask("GET", "/late")
            assert (answer.status, answer.body) == (500, b"'before the first piece'")
    assert [record.message for record in records] == ["request failed"] * 2


async def test_a_body_that_breaks_off_is_not_ended_as_if_complete():
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise RuntimeError

    async def handler(_request: Request) -> Response:
        return Response(200, broken(), "text/plain")

    async with serving(handler) as served:
        with pytest.raises(h11.RemoteProtocolError, match="without sending complete message body"):
            await served.ask("GET", "/")
        with pytest.raises(h11.RemoteProtocolError):
            await served.ask("GET", "/")


async def test_a_generator_is_closed_when_the_client_goes_away():
    closed = trio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    async def handler(_request: Request) -> Response:
        return Response(200, endless(), "text/plain")

    async with serving(handler) as served:
        async with await served.connect() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.receive_some(1000)
        with trio.fail_after(5):
            await closed.wait()


async def test_a_half_closed_client_still_gets_its_answer():
    async with serving(echo) as served, await served.connect() as stream:
        await stream.send_all(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        assert b"GET /half" in await until_closed(stream)


async def test_a_head_over_8_kib_gets_431():
    async with serving(echo) as served, await served.connect() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000)
        assert (await until_closed(stream)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\r\n\r\n"]
)
async def test_what_is_not_http_1_is_refused(garbage):
    async with serving(echo) as served, await served.connect() as stream:
        await stream.send_all(garbage)
        await stream.send_eof()
        got = await until_closed(stream)
    assert got == b"" or got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 "))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://localhost:15000/x?y=http://z", "/x"),
        ("//[x", "//[x"),
        ("/a?b=://c", "/a"),
        ("/%ff%00", "/\ufffd\0"),
    ],
)
async def test_targets_in_all_forms(target, path):
    async def handler(request: Request) -> Response:
        return Response(200, request.path.encode(), "text/plain")

    async with serving(handler) as served:
        assert (await served.ask("GET", target)).body == path.encode()


async def test_too_many_parameters_are_refused():
    async with serving(echo) as served:
        assert (await served.ask("GET", "/?" + "a=1&" * 200)).status == 400


LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /x HTTP/1.1",
        b"Host: x",
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"a b: c",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Connection: close",
        b"",
        b"hello",
        b"5",
        b"0",
    ]
)


@given(st.lists(LINES | st.binary(max_size=20), max_size=12))
def test_no_input_makes_the_server_fail(lines):
    async def main() -> None:
        async with serving(echo) as served:
            async with await served.connect() as stream:
                await stream.send_all(b"\r\n".join(lines) + b"\r\n\r\n")
                await stream.send_eof()
                try:
                    await until_closed(stream)
                except trio.BrokenResourceError:
                    pass  # reset, as what it sent was not read to the end
            assert (await served.ask("GET", "/")).status == 200

    with capture_logs() as records:
        trio.run(main)
    assert records == []


async def test_a_small_body_is_skipped_and_the_connection_kept():
    async with serving(echo) as served, await served.connect() as stream:
        client = h11.Connection(h11.CLIENT)
        await exchange(stream, "POST", "/1", body=b"x" * 1000, connection=client)
        client.start_next_cycle()
        assert (await exchange(stream, "GET", "/2", connection=client)).body == b"GET /2 "


async def test_a_large_body_ends_the_connection_after_the_answer():
    async with serving(echo) as served, await served.connect() as stream:
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 200_000
        )
        with trio.fail_after(5):
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200 ")


async def test_a_head_that_does_not_come_ends_the_connection(autojump_clock):
    async with serving(echo, head_timeout=0.05) as served:
        async with await served.connect() as stream:
            assert await until_closed(stream) == b""
        async with await served.connect() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHo")
            assert await until_closed(stream) == b""


async def test_a_second_head_has_its_own_time(autojump_clock):
    async with serving(echo, head_timeout=0.05) as served, await served.connect() as stream:
        client = h11.Connection(h11.CLIENT)
        await exchange(stream, "GET", "/1", connection=client)
        await trio.sleep(0.15)  # idle, longer than a head may take
        client.start_next_cycle()
        await exchange(stream, "GET", "/2", connection=client)
        await stream.send_all(b"GET / HT")
        assert await until_closed(stream) == b""


async def test_an_idle_connection_is_closed_after_a_while(autojump_clock):
    async with serving(echo, idle_timeout=0.05) as served, await served.connect() as stream:
        await exchange(stream, "GET", "/1")
        assert await until_closed(stream) == b""


async def test_a_client_that_takes_nothing_is_given_up(autojump_clock):
    closed = trio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x" * 1_000_000
        finally:
            closed.set()

    async def handler(_request: Request) -> Response:
        return Response(200, endless(), "text/plain")

    async with serving(handler, write_timeout=0.05) as served, await served.connect() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(5):
            await closed.wait()


async def test_idle_connections_make_room_for_new_ones():
    async with serving(echo, connections=3) as served:
        streams = [await served.connect() for _ in range(3)]
        for number, stream in enumerate(streams):
            await exchange(stream, "GET", f"/{number}")
        answer = await served.ask("GET", "/new")
        assert answer.body == b"GET /new "
        assert await until_closed(streams[0]) == b""
        for stream in streams:
            await stream.aclose()


async def test_busy_connections_are_not_closed_for_new_ones():
    go = trio.Event()

    async def slow(request: Request) -> Response:
        if request.path == "/slow":
            await go.wait()
        return await echo(request)

    async with serving(slow, connections=1) as served, trio.open_nursery() as nursery:
        answers = []

        async def ask(path: str) -> None:
            answers.append((await served.ask("GET", path)).body)

        nursery.start_soon(ask, "/slow")
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(ask, "/next")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert answers == []
        go.set()
    assert answers == [b"GET /slow ", b"GET /next "]


async def test_stopping_refuses_new_connections_at_once_and_finishes_what_is_under_way():
    go, started = trio.Event(), trio.Event()

    async def slow(request: Request) -> Response:
        started.set()
        await go.wait()
        return await echo(request)

    async with serving(slow) as served:
        idle = await served.connect()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answer = await served.ask("GET", "/slow")
                assert answer.body == b"GET /slow "
                assert answer.headers["connection"] == "close"

            nursery.start_soon(ask)
            await started.wait()
            served.stop.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(OSError, match="all attempts"):
                await served.connect()
            go.set()
        await idle.aclose()


async def test_stopping_closes_idle_connections():
    async with serving(echo) as served, await served.connect() as stream:
        await exchange(stream, "GET", "/")
        await trio.testing.wait_all_tasks_blocked(0.01)
        served.stop.set()
        assert await until_closed(stream) == b""
