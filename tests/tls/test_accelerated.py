"""The compiled part of TLS: that it fits, that it does as Python does, and what it does with nonsense."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from importlib import import_module

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tls_peers import CLIENT_CONTEXT, DEADLINE, SERVER, SERVER_CONTEXT, Pair
from tests.tls.conftest import require_accelerator
from ztunnel.tls.accelerated import SIGNATURES, AcceleratedRecords, records_kind
from ztunnel.tls.openssl import function_address, lib
from ztunnel.tls.records import REFUSED, Records
from ztunnel.tls.scratch import CHUNK
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import TlsError


@pytest.fixture(autouse=True, scope="module")
def records() -> None:
    """Instead of running each test twice: these choose themselves."""
    require_accelerator()


def test_it_is_used_where_it_is_wanted_and_there():
    assert records_kind(accelerated=True) is AcceleratedRecords
    assert records_kind(accelerated=False) is Records


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_without_it_python_does_its_work():
    said = run(
        "import sys; sys.modules['ztunnel.tls._accelerator'] = None\n"
        "from ztunnel.tls.accelerated import records_kind, unavailable\n"
        "print(records_kind(accelerated=True).__name__, unavailable())"
    )
    assert said.strip() == "Records the compiled part was not built"


def test_one_that_does_not_load_is_left_to_python(tmp_path):
    (tmp_path / "_accelerator.abi3.so").write_bytes(b"no library")
    said = run(
        "import ztunnel.tls\n"
        f"ztunnel.tls.__path__.insert(0, {str(tmp_path)!r})\n"
        "from ztunnel.tls.accelerated import records_kind, unavailable\n"
        "print(records_kind(accelerated=True).__name__, unavailable())"
    )
    assert said.startswith("Records the compiled part does not load (")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("openssl.ffi = object()", "cryptography gives no address of ERR_clear_error"),
        (
            "a.SIGNATURES['SSL_read'] = 'int(*)(SSL *)'",
            "cryptography's SSL_read is int(*)(SSL *, void *, int), not int(*)(SSL *)",
        ),
        (
            "a.lib = SimpleNamespace(OpenSSL_version_num=lambda: 1)",
            "the functions that were found are of another OpenSSL",
        ),
    ],
)
def test_another_cryptography_than_it_knows_is_left_to_python(fault, reason):
    said = run(
        "from types import SimpleNamespace\n"
        "from ztunnel.tls import accelerated as a, openssl\n"
        f"{fault}\n"
        "print(a._bind())"
    )
    assert said.strip() == reason


def test_functions_are_taken_only_with_the_type_that_is_declared():
    for name, signature in SIGNATURES.items():
        assert function_address(name, signature) > 0
    with pytest.raises(LookupError, match="no address of SSL_fly"):
        function_address("SSL_fly", "int(*)()")
    with pytest.raises(LookupError, match="SSL_pending is"):
        function_address("SSL_pending", "void(*)()")


@pytest.mark.parametrize("addresses", ["{}", "{**S, 'SSL_read': 0}", "{**S, 'SSL_read': 'x'}"])
def test_it_is_not_bound_to_half_of_the_functions(addresses):
    said = run(
        "from ztunnel.tls import accelerated as a, _accelerator as c\n"
        "S = {n: a.function_address(n, k) for n, k in a.SIGNATURES.items()}\n"
        f"try: c.bind({addresses})\n"
        "except (KeyError, ValueError, TypeError) as error: print(type(error).__name__)\n"
        "print(c.bind(S) == a.lib.OpenSSL_version_num())"
    )
    assert said.splitlines()[0] in {"KeyError", "ValueError", "TypeError"}
    assert said.splitlines()[1] == "True"


def test_nothing_can_be_called_before_it_is_bound():
    said = run(
        "import sys, importlib.util, ztunnel.tls\n"
        "from importlib.machinery import PathFinder\n"
        "spec = PathFinder.find_spec('ztunnel.tls._accelerator', ztunnel.tls.__path__)\n"
        "c = importlib.util.module_from_spec(spec)\n"
        "try: c.flush(1, 1, 1)\n"
        "except TypeError as error: print(error)"
    )
    assert "not bound" in said


async def connected() -> Pair:
    pair = Pair()
    assert await pair.handshake() == (None, None)
    return pair


async def test_nonsense_is_refused():
    compiled = import_module("ztunnel.tls._accelerator")
    with await connected() as pair:
        records = pair.client._records
        assert isinstance(records, AcceleratedRecords)
        good = (records._ssl_address, records._outgoing_address, pair.client.socket.fileno())
        for limit in (0, -1, CHUNK + 1):
            with pytest.raises(ValueError, match="out of range"):
                compiled.receive(*good, limit)
        for data in (b"", bytes(CHUNK + 1)):
            with pytest.raises(ValueError, match="empty or too long"):
                compiled.transmit(*good, data)
        with pytest.raises(ValueError, match="null"):
            compiled.flush(0, *good[1:])
        with pytest.raises(ValueError, match="null"):
            compiled.flush(good[0], 0, good[2])
        with pytest.raises(TypeError):
            compiled.flush(*good, 1)
        with pytest.raises(TypeError):
            compiled.transmit(*good, "text")
        with pytest.raises(TypeError):
            compiled.flush("x", *good[1:])
        with pytest.raises(OverflowError):
            compiled.receive(*good, 2**70)
        for call in (
            lambda: compiled.receive(*good[:2], -1, 10),
            lambda: compiled.transmit(*good[:2], -1, b"x"),
        ):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()
        # The record that no descriptor took is still there, in order, and so is the connection.
        assert pair.client.unsent > 0
        assert pair.client.try_send(b"yz") == 2
        await pair.server.wait_receivable()
        assert pair.server.try_receive() == b"xyz"


async def test_what_it_points_to_outlives_the_connection():
    pair = await connected()
    left, right = socket.socketpair()
    with left, right:
        kept = pair.client._records
        pair.__exit__()
        del pair
        gc.collect()
        left.setblocking(False)
        assert kept.receive(left, CHUNK) is None
        assert kept.send(left, b"still there") == 0
        assert len(right.recv(100)) > len(b"still there")
        kept.slim()
        assert kept.flush(left) == 0


async def test_a_new_outgoing_bio_is_used_and_the_old_one_never():
    with await connected() as pair:
        records = pair.client._records
        assert isinstance(records, AcceleratedRecords)
        for size in (CHUNK, 10, CHUNK):
            data, got = bytes(size), b""
            sent = 0
            while len(got) < size:
                sent += pair.client.try_send(memoryview(data)[sent:]) if sent < size else 0
                got += pair.server.try_receive() or b""
            before = records._outgoing_address
            records.slim()
            assert (records._outgoing_address != before) == (size == CHUNK)


async def test_it_refuses_to_send_after_the_end_as_python_does():
    for kind in (Records, AcceleratedRecords):
        with await connected() as pair:
            pair.client.close_notify()
            assert kind.send(pair.client._records, pair.client.socket, b"x") == REFUSED


async def test_it_keeps_nothing():
    compiled = import_module("ztunnel.tls._accelerator")
    with await connected() as pair:

        def exchange() -> None:
            for size in (1, 5000, 60_000):
                data, sent, got = bytes(size), 0, 0
                while got < size:
                    sent += pair.client.try_send(memoryview(data)[sent:]) if sent < size else 0
                    got += len(pair.server.try_receive() or b"")
            with pytest.raises(OSError, match="descriptor"):
                compiled.receive(1, 1, -1, 10)

        exchange()
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(500):
            exchange()
        gc.collect()
        assert sys.getallocatedblocks() - before < 250


class Outcome(list[object]):
    """What a receiver said, in order."""


async def outcome(kind: type[Records], cuts: list[int], flip: tuple[int, int] | None, end: str) -> Outcome:
    """What comes of records that arrive in pieces, damaged or not, and then an end."""
    ours, theirs = socket.socketpair()  # what is sent is there at once
    for one in (ours, theirs):
        one.setblocking(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SERVER_CONTEXT, "records", kind)
        patch.setattr(CLIENT_CONTEXT, "records", kind)
        client, server = SocketTls(CLIENT_CONTEXT, ours, [str(SERVER)]), SocketTls(SERVER_CONTEXT, theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake, DEADLINE)
        nursery.start_soon(server.handshake, DEADLINE)
    said = Outcome()
    plain = b""
    try:
        for number in range(3):
            assert client._records.encrypt(b"%d" % number * 700)
        if end == "close_notify":
            lib.SSL_shutdown(client._ssl)
        stream = bytearray(client._records.waiting)
        if flip is not None:
            stream[flip[0] % len(stream)] ^= flip[1]
        for cut in [*cuts, len(stream)]:
            ours.send(stream[:cut])
            del stream[:cut]
            for _ in range(2):  # after a short read the next one is left out
                while data := server.try_receive():
                    plain += data
        if end == "shutdown":
            ours.shutdown(socket.SHUT_WR)
        said += [server.try_receive(), server.try_receive()]
    except (TlsError, OSError) as error:
        said += [type(error), str(error)]
    finally:
        said.append(plain)
        client.close()
        server.close()
    return said


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 900), max_size=4),
    flip=st.none() | st.tuples(st.integers(0, 3000), st.integers(1, 255)),
    end=st.sampled_from(["close_notify", "shutdown"]),
)
def test_both_say_the_same_of_any_stream(cuts, flip, end):
    assert trio.run(outcome, Records, cuts, flip, end) == trio.run(
        outcome, AcceleratedRecords, cuts, flip, end
    )
