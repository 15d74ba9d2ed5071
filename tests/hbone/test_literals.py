"""The short way to read a header block says what hpack says, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ztunnel.hbone.frames import connect_block, response_block
from ztunnel.hbone.literals import plain_fields

LIMIT = 65_536
VALUES = st.binary(max_size=300) | st.integers(0, 3_000).map(bytes)
NAMES = st.sampled_from([b"baggage", b"forwarded", b""]) | st.binary(max_size=126)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
STRING = st.binary(max_size=20).map(lambda text: bytes([len(text)]) + text)
PLAIN = st.one_of(
    st.integers(0x80, 0xFF).map(lambda first: bytes([first])),
    st.tuples(st.integers(0, 0x2F).map(lambda first: bytes([first])), STRING).map(b"".join),
    st.tuples(st.sampled_from([b"\x00", b"\x10", b"\x40"]), STRING, STRING).map(b"".join),
    st.binary(min_size=1, max_size=4),
)


def by_hpack(block: bytes) -> Any:
    decoder = Decoder(max_header_list_size=LIMIT)
    fields = decoder.decode(block, raw=True)
    return fields, len(decoder.header_table.dynamic_entries)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60), FIELDS)
def test_our_own_blocks_are_read(authority, fields):
    block = connect_block(authority, fields)
    total = sum(len(name) + len(value) + 32 for name, value in fields) + 46 + 42 + len(authority)
    assert plain_fields(block, LIMIT) == by_hpack(block)[0]
    assert plain_fields(block, total) is not None
    assert plain_fields(block, total - 1) is None


@pytest.mark.parametrize("size", [126, 127, 254, 255, 127 + 16_383])
def test_lengths_of_up_to_two_bytes_more_are_read(size):
    block = connect_block("h:1", [("baggage", bytes(size))])
    fields = plain_fields(block, LIMIT)
    assert fields == by_hpack(block)[0]
    assert fields is not None


def test_longer_ones_are_left_to_hpack():
    block = connect_block("h:1", [("baggage", bytes(127 + 16_384))])
    assert plain_fields(block, LIMIT) is None
    assert len(by_hpack(block)[0]) == 3
    long_name = connect_block("h:1", [(b"n" * 127, b"")])
    assert plain_fields(long_name, LIMIT) is None
    assert len(by_hpack(long_name)[0]) == 3


@pytest.mark.parametrize("status", [200, 400, 401, 503])
def test_our_own_answers_are_read(status):
    assert plain_fields(response_block(status), LIMIT) == [(b":status", str(status).encode())]


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.lists(PLAIN, max_size=6).map(b"".join))
@example(b"\x00\x01a\x7f\x80\x00" + bytes(127))
@example(b"\x00\x01a\x7f\xff\x00" + bytes(254))
@example(b"\x00\x01a\x7f\x80\x80\x00" + bytes(127))
@example(b"\x00\x01a\x7f\x00" + bytes(127))
@example(b"\x00\x01a\x7f\x01" + bytes(127))
@example(b"\x00\x7fa")
@example(b"\x00\x81\x1f\x01a")
@example(b"\x00\x01a\x81\x1f")
@example(b"\x00\x05a")
@example(b"\x0f\x00\x01a")
def test_what_is_read_is_what_hpack_reads(block):
    fields = plain_fields(block, LIMIT)
    if fields is None:
        return
    try:
        assert (fields, 0) == by_hpack(block)
    except HPACKError as error:
        raise AssertionError("hpack refuses what was read") from error


def test_blocks_that_others_write_are_left_to_hpack():
    fields = [(":method", "CONNECT"), (":authority", "h:1"), ("baggage", "x")]
    assert plain_fields(Encoder().encode(fields), LIMIT) is None
    assert plain_fields(Encoder().encode(fields, huffman=False), LIMIT) is None
