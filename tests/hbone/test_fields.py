"""Which requests and answers are malformed, and what the sound ones say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ztunnel.hbone.fields import read_request, read_response, sound_trailers

METHOD = (b":method", b"CONNECT")
AUTHORITY = (b":authority", b"10.0.0.1:80")


def test_a_connect_is_read():
    request = read_request([METHOD, AUTHORITY, (b"baggage", b""), (b"x-other", b"\xff")])
    assert request == ("CONNECT", "10.0.0.1:80", ((b"baggage", b""), (b"x-other", b"\xff")))


@pytest.mark.parametrize(
    "fields",
    [
        [METHOD],
        [METHOD, (b":authority", b"10.0.0.1")],
        [METHOD, (b":authority", b"10.0.0.1:")],
        [METHOD, (b":authority", b"10.0.0.1:eighty")],
        [METHOD, (b":authority", b"10.0.0.1:99999999")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), AUTHORITY],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")],
        [(b":method", b"PURGE"), (b":path", b"*"), (b":scheme", b"x"), (b"te", b"Trailers")],
        [METHOD, AUTHORITY, (b"content-length", b"nonsense")],
        [METHOD, AUTHORITY, (b"host", b"other")],
    ],
)
def test_what_the_caller_answers_is_delivered(fields):
    assert read_request(fields) is not None


def test_a_missing_authority_is_an_empty_text():
    assert read_request([METHOD]) == ("CONNECT", "", ())


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [AUTHORITY],
        [(b":method", b"")],
        [(b":method", b"CON NECT"), AUTHORITY],
        [METHOD, AUTHORITY, (b":path", b"/")],
        [METHOD, AUTHORITY, (b":scheme", b"https")],
        [METHOD, AUTHORITY, (b":scheme", b"https"), (b":path", b"/"), (b":protocol", b"websocket")],
        [METHOD, AUTHORITY, (b":protocol", b"websocket")],
        [METHOD, AUTHORITY, (b":status", b"200")],
        [METHOD, AUTHORITY, (b":unknown", b"")],
        [METHOD, METHOD, AUTHORITY],
        [(b"baggage", b""), METHOD, AUTHORITY],
        [(b":method", b"GET"), AUTHORITY],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":protocol", b"x")],
        [METHOD, AUTHORITY, (b"Upper", b"")],
        [METHOD, AUTHORITY, (b"", b"")],
        [METHOD, AUTHORITY, (b"sp ace", b"")],
        [METHOD, AUTHORITY, (b"co:lon", b"")],
        [METHOD, AUTHORITY, (b"baggage", b"a\r\nb")],
        [METHOD, AUTHORITY, (b"baggage", b"a\0b")],
        [METHOD, AUTHORITY, (b"connection", b"close")],
        [METHOD, AUTHORITY, (b"transfer-encoding", b"chunked")],
        [METHOD, AUTHORITY, (b"upgrade", b"h2c")],
        [METHOD, AUTHORITY, (b"keep-alive", b"1")],
        [METHOD, AUTHORITY, (b"proxy-connection", b"close")],
        [METHOD, AUTHORITY, (b"te", b"gzip")],
    ],
)
def test_malformed_requests_are_told(fields):
    assert read_request(fields) is None


@pytest.mark.parametrize(
    "authority",
    [
        b"10.0.0.1:80",
        b"[2001:db8::1]:80",
        b"[::ffff:10.0.0.1]:80",
        b"svc.default.svc.cluster.local:http",
        b"u@h:80",
        b"user:pass%20word@h:80",
        b"h",
        b"[::1]",
        b":80",
    ],
)
def test_authorities_of_sound_syntax(authority):
    assert read_request([METHOD, (b":authority", authority)]) == ("CONNECT", authority.decode(), ())


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b"::1",
        b"::1:80",
        b"a:b:c",
        b"h:80/path",
        b"h?x",
        b"h#x",
        b"h h:80",
        b"[::1:80",
        b"::1]:80",
        b"[::1]x:80",
        b"u@",
        b"h%41:80",
        b"h\xc3\xa9:80",
        b"<h>:80",
    ],
)
def test_authorities_of_wrong_syntax(authority):
    assert read_request([METHOD, (b":authority", authority)]) is None


def test_an_answer_is_read():
    assert read_response([(b":status", b"503"), (b"baggage", b"x")]) == (503, ((b"baggage", b"x"),))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"0200")],
        [(b":status", b"abc")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"200"), (b"Upper", b"")],
    ],
)
def test_malformed_answers_are_told(fields):
    assert read_response(fields) is None


def test_trailers_have_no_pseudo_fields():
    assert sound_trailers([(b"grpc-status", b"0")])
    assert not sound_trailers([(b":status", b"200")])
    assert not sound_trailers([(b"A", b"")])


NAMES = st.sampled_from([b":method", b":authority", b":path", b":status", b"te", b"a"]) | st.binary(
    max_size=8
)
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=6)


@hypothesis_settings(deadline=None, max_examples=100)
@given(FIELDS)
def test_no_fields_raise(fields):
    request = read_request(fields)
    assert request is None or (request.method.isprintable() and request.authority.isprintable())
    read_response(fields)
    sound_trailers(fields)
