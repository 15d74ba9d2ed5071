"""Frames and header blocks, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.hbone_conversation import split
from ztunnel.hbone import frames as wire


def decoded(block: bytes) -> Any:
    return Decoder().decode(block)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=400)


@hypothesis_settings(deadline=None, max_examples=60)
@given(TEXT, st.lists(st.tuples(st.sampled_from(["baggage", "forwarded", "x-a"]), TEXT), max_size=4))
def test_a_connect_block_reads_back_in_its_order(authority, fields):
    assert decoded(wire.connect_block(authority, fields)) == [
        (":method", "CONNECT"),
        (":authority", authority),
        *fields,
    ]


@pytest.mark.parametrize("size", [0, 126, 127, 128, 254, 255, 127 + 127, 127 + 128, 5_000, 20_000])
def test_lengths_around_the_steps_of_the_integer_coding_read_back(size):
    *_, last = decoded(wire.connect_block("h:1", [("baggage", b"x" * size)]))
    assert last == ("baggage", "x" * size)


@pytest.mark.parametrize("status", [200, 204, 206, 304, 400, 401, 404, 500, 503])
def test_a_status_reads_back(status):
    assert decoded(wire.response_block(status)) == [(":status", str(status))]


def test_blocks_leave_the_peers_table_empty():
    decoder = Decoder()
    decoder.decode(wire.connect_block("h:1", [("baggage", "x")]))
    decoder.decode(wire.response_block(503, [("baggage", "x")]))
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize(("size", "frames"), [(1, 1), (16_384, 1), (16_385, 2), (40_000, 3)])
def test_a_block_larger_than_a_frame_is_continued(size, frames):
    block = bytes(range(256)) * 200
    made = split(wire.header_frames(5, block[:size], 16_384, wire.END_STREAM))
    assert len(made) == frames
    assert b"".join(body for _, body in made) == block[:size]
    assert all(parsed.stream_id == 5 for parsed, _ in made)
    assert ["END_HEADERS" in parsed.flags for parsed, _ in made] == [False] * (frames - 1) + [True]
    assert ["END_STREAM" in parsed.flags for parsed, _ in made] == [True] + [False] * (frames - 1)


def test_goaway_carries_debug_data():
    [(parsed, _)] = split(wire.goaway(7, 11, b"calm"))
    assert (parsed.last_stream_id, parsed.error_code, parsed.additional_data) == (7, 11, b"calm")


def test_settings_keep_their_order():
    values = [(3, 200), (4, 1 << 22), (5, 1 << 20), (6, 65_536), (4, 7)]
    assert wire.read_settings(wire.settings(values)[9:]) == values
