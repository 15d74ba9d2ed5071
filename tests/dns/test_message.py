"""What is read of queries and of replies, and that no bytes upset it."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ztunnel.dns.message import (
    Query,
    Rcode,
    Refused,
    encode_name,
    is_reply_to,
    make_query,
    parse_query,
    read_reply,
    type_name,
)


def wire(name: str = "a.example.", qtype: str = "A", **options) -> bytes:
    return dns.message.make_query(name, qtype, **options).to_wire()


def parsed(message: bytes) -> Query:
    query = parse_query(message)
    assert isinstance(query, Query)
    return query


def refused(message: bytes) -> dns.message.Message:
    refusal = parse_query(message)
    assert isinstance(refusal, Refused)
    return dns.message.from_wire(refusal.reply)


def test_a_query_is_read():
    message = wire("WWW.Example.COM.", "AAAA", use_edns=0, payload=1400, want_dnssec=True)
    query = parsed(message)
    assert (query.name, query.qtype, query.type_name) == ("WWW.Example.COM.", 28, "AAAA")
    assert query.id == int.from_bytes(message[:2], "big")
    assert query.edns == (1400, 0, True)
    assert query.message == message
    assert query.with_id(0x1234) == b"\x12\x34" + message[2:]


def test_edns_is_optional():
    assert parsed(wire()).edns is None


def test_the_root_can_be_asked_for():
    assert parsed(wire(".", "NS")).name == "."


def test_bytes_that_no_hostname_has_are_escaped():
    question = b"\x05a.b\\\x00\x02\xc3\xa9\x00\x00\x01\x00\x01"
    message = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + question
    assert parsed(message).name == "a\\046b\\092\\000.\\195\\169."


def test_unnamed_types_share_a_name():
    assert (type_name(65), type_name(33), type_name(65280)) == ("HTTPS", "SRV", "unknown")


@pytest.mark.parametrize("length", [0, 1, 11])
def test_what_is_shorter_than_a_header_is_ignored(length):
    assert parse_query(wire()[:length]) is None


def test_responses_are_ignored():
    message = dns.message.make_response(dns.message.from_wire(wire())).to_wire()
    assert parse_query(message) is None


HEADER = b"\xab\xcd\x01\x10"
QUESTION = b"\x01a\x00\x00\x01\x00\x01"


@pytest.mark.parametrize(
    "rest",
    [
        b"\x00\x01\x00\x00\x00\x00\x00\x00",  # a question is promised
        b"\x00\x01\x00\x00\x00\x00\x00\x00" + QUESTION[:-1],
        b"\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",  # a name that points to itself
        b"\x00\x01\x00\x00\x00\x00\x00\x00\x01a\xc0\x0c\x00\x01\x00\x01",
        b"\x00\x01\x00\x00\x00\x00\x00\x00\x40" + bytes(64) + b"\x00\x00\x01\x00\x01",  # a reserved length
        b"\x00\x01\x00\x00\x00\x00\x00\x00" + (b"\x3f" + b"a" * 63) * 4 + b"\x00\x00\x01\x00\x01",  # too long
        b"\x00\x01\x00\x01\x00\x00\x00\x00" + QUESTION,  # an answer is promised
        b"\x00\x01\x00\x00\x00\x00\x00\x01" + QUESTION + b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x09",
        b"\x00\x01\x00\x00\x00\x00\x00\x02" + QUESTION + b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00" * 2,
        b"\x00\x01\x00\x00\x00\x00\x00\x01" + QUESTION + b"\x01a\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\xff" + QUESTION * 100,
    ],
)
def test_what_cannot_be_read_is_a_format_error_without_a_question(rest):
    reply = refused(HEADER + rest)
    assert reply.id == 0xABCD
    assert reply.rcode() == dns.rcode.FORMERR
    assert not reply.question
    assert reply.flags & 0xFFF0 == dns.flags.QR | dns.flags.RD | dns.flags.CD


@pytest.mark.parametrize("version", [1, 2, 255])
@pytest.mark.parametrize("opcode", [dns.opcode.QUERY, dns.opcode.STATUS])
def test_an_unknown_version_of_edns_is_told_which_one_is_spoken(version, opcode):
    query = dns.message.make_query("WEB.example.", "A", use_edns=version, payload=1400, want_dnssec=True)
    query.set_opcode(opcode)
    reply = refused(query.to_wire())
    assert reply.id == query.id
    assert reply.rcode() == dns.rcode.BADVERS
    assert (reply.edns, reply.payload, reply.ednsflags & 0xFFFF) == (0, 1400, dns.flags.DO)
    assert reply.question == query.question
    assert reply.flags & 0xFFF0 == dns.flags.QR | dns.flags.RD | (opcode << 11)
    assert not reply.answer


def test_no_refusal_is_longer_than_a_client_without_edns_takes():
    """Many questions, in all the kinds of refusal that repeat them."""
    questions = QUESTION * 70
    count = (70).to_bytes(2, "big")
    opt = b"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"
    for message in (
        HEADER + count + bytes(6) + questions,
        HEADER[:2] + b"\x21\x10" + count + bytes(6) + questions,
        HEADER + count + b"\x00\x00\x00\x00\x00\x01" + questions + opt,
    ):
        refusal = parse_query(message)
        assert isinstance(refusal, Refused)
        assert len(refusal.reply) <= 512
        assert dns.message.from_wire(refusal.reply).id == 0xABCD


@pytest.mark.parametrize(
    ("opcode", "text"),
    [
        (dns.opcode.STATUS, "Status"),
        (dns.opcode.NOTIFY, "Notify"),
        (dns.opcode.UPDATE, "Update"),
        (9, "Unknown(9)"),
    ],
)
def test_other_operations_are_not_implemented(opcode, text):
    message = bytearray(wire())
    message[2] = (message[2] & 0x87) | (opcode << 3)
    refusal = parse_query(bytes(message))
    assert isinstance(refusal, Refused)
    assert refusal.why == f"unimplemented op_code: {text}"
    assert refusal.reply[3] & 0x0F == Rcode.NOTIMP
    assert refusal.reply[12:] == bytes(message[12:])
    assert (refusal.reply[2] >> 3) & 0x0F == opcode


@pytest.mark.parametrize("count", [0, 2, 30])
def test_any_number_of_questions_but_one_is_a_failure_that_echoes_them(count):
    message = HEADER + count.to_bytes(2, "big") + bytes(6) + QUESTION * count
    reply = refused(message)
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert refused(message).to_wire()[12:][:7] == (QUESTION if count else b"")
    refusal = parse_query(message)
    assert isinstance(refusal, Refused)
    assert refusal.reply[4:] == message[4:]
    assert not refusal.why


def test_very_many_questions_are_not_echoed():
    message = HEADER + b"\x03\xe8" + bytes(6) + QUESTION * 1000
    reply = refused(message)
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert not reply.question


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
@example(HEADER + b"\x00\x01" + bytes(6) + b"\xc0")
def test_no_bytes_upset_it(message):
    query = parse_query(message)
    if isinstance(query, Refused):
        assert query.reply[:2] == message[:2]
        assert len(query.reply) <= max(12, len(message))


@given(st.data())
@settings(deadline=None)
def test_damage_to_a_query_never_passes_as_another_question(data):
    message = bytearray(wire("www.example.com.", "HTTPS", use_edns=0, want_dnssec=True))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(2, len(message) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(message[: data.draw(st.integers(0, len(message)))])
    query = parse_query(damaged)
    if isinstance(query, Query):
        assert damaged[12:].startswith(query.question)
        assert query.name.isprintable()
        assert not set(query.name) & set(' "')


# -- replies ---------------------------------------------------------------------------------------------


def reply(query: Query, **changes) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(query.with_id(7)))
    message.set_rcode(changes.get("rcode", dns.rcode.NOERROR))
    return message.to_wire()


def test_a_reply_is_one_to_the_same_question_under_the_same_id():
    query = parsed(wire("A.Example."))
    good = reply(query)
    assert is_reply_to(query, 7, good)
    assert is_reply_to(query, 7, good.replace(b"\x01A\x07Example", b"\x01a\x07eXAMPLE"))
    assert not is_reply_to(query, 8, good)
    assert not is_reply_to(query, 7, reply(parsed(wire("b.example."))))
    assert not is_reply_to(query, 7, reply(parsed(wire("a.example.", "AAAA"))))
    assert not is_reply_to(query, 7, query.with_id(7))
    assert not is_reply_to(query, 7, good[:11])
    assert not is_reply_to(query, 7, good[:-1])


def test_the_case_of_a_letter_matters_in_types():
    # HTTPS is 65, "A"; 97 is "a".
    query = parsed(wire("a.example.", "HTTPS"))
    assert not is_reply_to(query, 7, reply(parsed(wire("a.example.", "TYPE97"))))


def test_an_error_may_come_without_the_question():
    query = parsed(wire())
    bare = b"\x00\x07\x81\x80" + bytes(8)
    assert not is_reply_to(query, 7, bare)
    assert is_reply_to(query, 7, bare[:3] + b"\x81" + bare[4:])
    assert not is_reply_to(query, 7, bare[:3] + b"\x83" + bare[4:])


def test_another_operation_is_no_reply():
    query = parsed(wire())
    changed = bytearray(reply(query))
    changed[2] |= 0x28
    assert not is_reply_to(query, 7, bytes(changed))


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_no_bytes_are_taken_for_a_reply(noise):
    query = parsed(wire("very-much-longer-than-the-noise-can-guess.example."))
    accepted = is_reply_to(query, int.from_bytes(noise[:2], "big"), noise)
    assert accepted == (
        len(noise) >= 12
        and noise[2] & 0xF8 == 0x80
        and noise[3] & 0x0F in {1, 2, 4, 5}
        and noise[4:8] == bytes(4)
    )


def test_what_is_read_of_a_reply():
    query = parsed(wire())
    assert read_reply(reply(query, rcode=dns.rcode.NXDOMAIN)) == (3, False, 0)


# -- queries of ours -------------------------------------------------------------------------------------


def test_a_query_of_ours_is_an_ordinary_one():
    query = make_query("Some.Host", 28)
    assert parse_query(query.message) == query
    message = dns.message.from_wire(query.message)
    assert str(message.question[0]) == "Some.Host. IN AAAA"
    assert message.flags == dns.flags.RD
    assert (message.edns, message.payload) == (0, 1232)


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, ".a", "é.example", "a." * 128])
def test_no_hostnames(name):
    with pytest.raises(ValueError):  # noqa: PT011  # UnicodeError is one
        encode_name(name)
