"""Foreign bytes: nothing raises, nothing is kept without bound, and pieces do not matter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.hbone_conversation import (
    CONNECT,
    PREFACE,
    Peer,
    data,
    frame,
    goaway,
    ping,
    reset,
    settings,
    window_update,
)
from ztunnel.hbone import (
    ConnectionFailed,
    ConnectReceived,
    DataReceived,
    HboneClient,
    HboneConnection,
    HboneServer,
    Responded,
    StreamEnded,
    StreamReset,
)
from ztunnel.hbone.stream_registry import REMEMBERED

OPENING = PREFACE + settings()
IDS = st.sampled_from([0, 1, 2, 3, 5, 7, 1 << 30, (1 << 31) - 1])
FRAME = st.builds(frame, st.integers(0, 12), IDS, st.binary(max_size=60), st.integers(0, 255))
FIXED = st.builds(frame, st.sampled_from([3, 8]), IDS, st.binary(min_size=4, max_size=4), st.integers(0, 255))
PING = st.builds(frame, st.just(6), st.just(0), st.binary(min_size=8, max_size=8), st.integers(0, 255))
SETTING = st.tuples(st.integers(0, 9), st.integers(0, 1 << 32)).map(
    lambda pair: frame(4, 0, pair[0].to_bytes(2, "big") + (pair[1] % (1 << 32)).to_bytes(4, "big"))
)
FRAMES = st.lists(FRAME | FIXED | PING | SETTING, max_size=25).map(b"".join)


def valid_stream() -> bytes:
    """A peer's side of an ordinary conversation: two tunnels and what goes with them."""
    peer = Peer(HboneServer())
    return b"".join(
        [
            settings({3: 100, 4: 1 << 20, 5: 1 << 15}),
            window_update(0, 1 << 20),
            peer.headers(1, [*CONNECT, ("baggage", "a=b"), ("traceparent", "00-1")]),
            settings(ack=True),
            data(1, b"hello" * 30),
            peer.headers(3, CONNECT, cut=4),
            data(3, b"padded", padding=7),
            window_update(1, 5),
            ping(b"12345678"),
            data(3, b"end", end=True),
            reset(1, 8),
            goaway(0, 0, b"bye"),
        ]
    )


VALID = valid_stream()
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "double"]), st.integers(0, len(VALID)), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


def mutate(wire: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    for how, at, value in mutations:
        if how == "set":
            wire = wire[:at] + bytes([value]) + wire[at + 1 :]
        elif how == "cut":
            wire = wire[:at] + wire[at + value :]
        else:
            wire = wire[:at] + wire[at : at + value] * 2 + wire[at + value :]
    return wire


def drive(connection: HboneConnection, wire: bytes, step: int) -> list[str]:
    """Feed the bytes in pieces, and check what has to hold. Gives what happened, in texts."""
    story: list[str] = []
    for at in range(0, len(wire), step):
        for event in connection.receive(wire[at : at + step]):
            match event:
                case DataReceived(stream_id, payload):
                    assert payload
                    if story and story[-1].startswith(f"data {stream_id} "):
                        story[-1] += payload.hex()
                    else:
                        story.append(f"data {stream_id} {payload.hex()}")
                case ConnectReceived() | StreamReset() | StreamEnded() | Responded():
                    story.append(str(event))
                case ConnectionFailed():
                    assert connection.closed
                    story.append(str(event))
        assert connection._reader.held <= connection.settings.frame_size
        assert connection.open_streams <= connection.settings.max_concurrent_streams
        assert len(connection._streams._closed) <= REMEMBERED
        assert len(b"".join(connection.take_output())) <= 100 * (len(wire) + 100)
    if connection.closed:
        assert connection.receive(b"anything") == []
    connection.receive_eof()
    assert connection.closed
    return story


def server() -> HboneServer:
    return HboneServer()


def client() -> HboneClient:
    made = HboneClient()
    made.connect("h:1", [])
    made.connect("h:1", [])
    return made


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300), st.booleans(), st.integers(1, 50))
def test_arbitrary_bytes(wire, after_opening, step):
    drive(server(), (OPENING if after_opening else b"") + wire, step)
    drive(client(), (settings() if after_opening else b"") + wire, step)


@hypothesis_settings(deadline=None, max_examples=100)
@given(FRAMES, st.integers(1, 50))
def test_arbitrary_frames(wire, step):
    drive(server(), OPENING + wire, step)
    drive(client(), settings() + wire, step)


@hypothesis_settings(deadline=None, max_examples=100)
@given(MUTATIONS, st.integers(1, 700))
def test_mutated_conversations(mutations, step):
    wire = mutate(VALID, mutations)
    assert drive(server(), PREFACE + wire, step) == drive(server(), PREFACE + wire, len(PREFACE + wire))
    drive(client(), wire, step)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(1, 400))
def test_the_conversation_is_understood_in_any_pieces(step):
    story = drive(server(), PREFACE + VALID, step)
    assert story == drive(server(), PREFACE + VALID, 10_000)
    assert len(story) == 6
    assert not any("Failed" in line for line in story)
