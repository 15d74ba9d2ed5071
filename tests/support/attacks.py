"""Attacks over HTTP/2 by a peer whose TLS handshake was correct. Each is an endless stream of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from hpack import Encoder

from tests.support.hbone_conversation import (
    PREFACE,
    data,
    frame,
    goaway,
    ping,
    reset,
    settings,
    window_update,
)
from ztunnel.hbone import ErrorCode

HELLO = PREFACE + settings() + settings(ack=True)
CALM = frozenset({ErrorCode.ENHANCE_YOUR_CALM})
TURN = 200
"""Frames in one piece."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    wire: yields the bytes piece by piece, given an authority that would be served.
    codes: the error codes of the GOAWAY that may end it; empty if it is allowed, and only has to cost little.
    pieces: how many pieces are sent of an attack that is allowed.
    reads: whether the attacker reads our answers.
    at_once: how many tunnels the attacker has at a time in the benchmark.
    """

    name: str
    wire: Callable[[str], Iterator[bytes]]
    codes: frozenset[ErrorCode] = CALM
    pieces: int = 300
    reads: bool = True
    at_once: int = 1


def block(authority: str, *more: tuple[str, str]) -> bytes:
    """Returns the header block of a CONNECT that does not use the dynamic table."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode([(":method", "CONNECT"), (":authority", authority), *more])


def headers(stream_id: int, fields: bytes, *, end: bool = False) -> bytes:
    return frame(1, stream_id, fields, 4 | end)


def odd() -> Iterator[int]:
    return count(1, 2)


def rapid_reset(authority: str) -> Iterator[bytes]:
    fields, ids = block(authority), odd()
    while True:
        numbers = [next(ids) for _ in range(TURN)]
        yield b"".join(headers(number, fields) + reset(number, 8) for number in numbers)


def patient_reset(authority: str) -> Iterator[bytes]:
    """Opens and resets at most twenty streams at a time: too few to count as an attack in one read."""
    fields, ids = block(authority), odd()
    while True:
        numbers = [next(ids) for _ in range(20)]
        yield b"".join(headers(number, fields) + reset(number, 8) for number in numbers)


def provoked_resets(authority: str) -> Iterator[bytes]:
    """Sends malformed requests. We have to reset each of them (CVE-2025-8671)."""
    fields, ids = Encoder().encode([(":path", "/")]), odd()
    while True:
        yield b"".join(headers(next(ids), fields) for _ in range(TURN))


def window_resets(authority: str) -> Iterator[bytes]:
    """Sends valid requests and then opens their windows too far, so that we have to reset them."""
    fields, ids = block(authority), odd()
    while True:
        numbers = [next(ids) for _ in range(20)]
        yield b"".join(headers(n, fields) + window_update(n, (1 << 31) - 1) for n in numbers)


def streams_without_end(authority: str) -> Iterator[bytes]:
    fields, ids = block(authority), odd()
    while True:
        yield b"".join(headers(next(ids), fields) for _ in range(TURN))


def same(piece: bytes) -> Callable[[str], Iterator[bytes]]:
    def wire(authority: str) -> Iterator[bytes]:
        while True:
            yield piece

    return wire


def on_a_stream(piece: bytes) -> Callable[[str], Iterator[bytes]]:
    def wire(authority: str) -> Iterator[bytes]:
        yield headers(1, block(authority))
        while True:
            yield piece

    return wire


def continuation(authority: str) -> Iterator[bytes]:
    yield frame(1, 1, block(authority), 0)
    while True:
        yield frame(9, 1, b"\0\1a\1b" * 3_000, 0)


def empty_continuation(authority: str) -> Iterator[bytes]:
    yield frame(1, 1, block(authority), 0)
    while True:
        yield frame(9, 1, b"", 0) * TURN


def header_bomb(authority: str) -> Iterator[bytes]:
    """Puts a field of 4 kB into the dynamic table, and then refers to it with one byte each time."""
    encoder = Encoder()
    encoder.encode([("a", "x" * 4_000)])
    first = Encoder().encode([(":method", "CONNECT"), (":authority", authority), ("a", "x" * 4_000)])
    yield headers(1, first)
    for number in count(3, 2):
        yield headers(number, b"\xbe" * 60_000)


def large_requests(authority: str) -> Iterator[bytes]:
    """Sends header lists over our limit, but too few for a flood. Each is answered with 431."""
    fields = block(authority, ("baggage", "x" * 100_000))
    for number in odd():
        yield headers(number, fields)


def toggled_window(authority: str) -> Iterator[bytes]:
    yield b"".join(headers(number, block(authority)) for number in range(1, 200, 2))
    while True:
        yield (settings({4: 0}) + settings({4: 1 << 30})) * 100


def data_past_the_end(authority: str) -> Iterator[bytes]:
    yield headers(1, block(authority), end=True)
    while True:
        yield data(1, b"more") * TURN


def goaways(authority: str) -> Iterator[bytes]:
    yield headers(1, block(authority))
    while True:
        yield goaway(0, 0, b"bye") * TURN


def overrun(authority: str) -> Iterator[bytes]:
    yield headers(1, block(authority))
    while True:
        yield data(1, bytes(16_384)) * 16


def garbage(authority: str) -> Iterator[bytes]:
    while True:
        yield bytes(range(256)) * 16


def nothing(_: str) -> Iterator[bytes]:
    yield from ()


ATTACKS = [
    Attack("handshakes, and no request", nothing, frozenset(), at_once=20),
    Attack("rapid reset", rapid_reset),
    Attack("patient reset", patient_reset),
    Attack("resets that we are made to send", provoked_resets),
    Attack("windows opened too far", window_resets),
    Attack("streams without end", streams_without_end),
    Attack("SETTINGS, answers unread", same(settings({3: 7}) * TURN), reads=False),
    Attack("PING, answers unread", same(ping(b"12345678") * TURN), reads=False),
    Attack("SETTINGS", same(settings({3: 7}) * TURN), frozenset()),
    Attack("PING", same(ping(b"12345678") * TURN), frozenset()),
    Attack("WINDOW_UPDATE", on_a_stream((window_update(0, 1) + window_update(1, 1)) * TURN), frozenset()),
    Attack("PRIORITY", same(frame(2, 1, b"\0\0\0\3\1") * TURN), frozenset()),
    Attack("unknown frames", same(frame(77, 1, bytes(100)) * TURN), frozenset()),
    Attack("SETTINGS of thousands of values", same(frame(4, 0, bytes(6 * 1_000)))),
    Attack("CONTINUATION", continuation),
    Attack("empty CONTINUATION", empty_continuation),
    Attack("header bomb", header_bomb),
    Attack("requests that are too large", large_requests),
    Attack("windows to and fro", toggled_window, frozenset(), pieces=60),
    Attack("empty DATA", on_a_stream(data(1) * TURN)),
    Attack("DATA, a byte at a time", on_a_stream(data(1, b"x") * TURN), frozenset(), pieces=60),
    Attack("padding only", on_a_stream(data(1, b"", padding=255) * TURN)),
    Attack("DATA past the end", data_past_the_end),
    Attack("DATA over the window", overrun, frozenset({ErrorCode.FLOW_CONTROL_ERROR})),
    Attack("GOAWAY", goaways, frozenset(), pieces=100),
    Attack("garbage", garbage, frozenset({ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR})),
]
