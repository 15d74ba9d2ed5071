"""Our own replies: flags, EDNS, names, and how they are cut."""

from __future__ import annotations

from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.decide.dns_names import DnsAnswer, DnsAnswerKind
from ztunnel.dns.message import Query, Rcode, parse_query
from ztunnel.dns.reply import error_reply, own_reply, reply_limit


def ask(name: str, qtype: str = "A", **options) -> Query:
    query = parse_query(dns.message.make_query(name, qtype, **options).to_wire())
    assert isinstance(query, Query)
    return query


def records(query: Query, *addresses: str, cname: str | None = None) -> DnsAnswer:
    requested = query.name.lower()
    return DnsAnswer(
        DnsAnswerKind.RECORDS,
        requested,
        owner=cname or requested,
        cname=cname,
        addresses=tuple(ip_address(address) for address in addresses),
    )


def read(reply: bytes) -> dns.message.Message:
    return dns.message.from_wire(reply)


def test_an_answer():
    query = ask("web.default.svc.cluster.local.")
    reply = own_reply(query, records(query, "10.0.0.1", "10.0.0.2"), 4096)
    message = read(reply)
    assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    assert message.id == query.id
    (rrset,) = message.answer
    assert str(rrset.name) == "web.default.svc.cluster.local."
    assert rrset.ttl == 30
    assert {record.to_text() for record in rrset} == {"10.0.0.1", "10.0.0.2"}
    assert not message.authority
    assert not message.additional
    assert message.edns == -1
    assert len(reply) == 12 + len(query.question) + 2 * 16


def test_ipv6():
    query = ask("web.", "AAAA")
    (rrset,) = read(own_reply(query, records(query, "fd00::1"), 4096)).answer
    assert rrset.to_text() == "web. 30 IN AAAA fd00::1"


def test_a_stripped_search_domain_gives_a_cname_first():
    query = ask("web.other.default.svc.cluster.local.")
    reply = own_reply(query, records(query, "10.0.0.1", cname="web.other."), 4096)
    assert [rrset.to_text() for rrset in read(reply).answer] == [
        "web.other.default.svc.cluster.local. 30 IN CNAME web.other.",
        "web.other. 30 IN A 10.0.0.1",
    ]


def test_the_question_keeps_its_case_and_owners_are_in_lower_case():
    query = ask("WEB.Default.svc.cluster.LOCAL.")
    reply = own_reply(query, records(query, "10.0.0.1", "10.0.0.2"), 4096)
    assert reply[12 : 12 + len(query.question)] == query.question
    owners = reply[12 + len(query.question) :]
    assert b"\x03web\x07default\x03svc\x07cluster\x05local\x00" in owners
    assert b"WEB" not in owners
    assert owners.count(b"\x03web") == 1


def test_nothing_of_the_kind_is_an_empty_answer():
    query = ask("web.", "AAAA", use_edns=0)
    message = read(own_reply(query, DnsAnswer(DnsAnswerKind.NO_RECORDS, "web."), 4096))
    assert message.rcode() == dns.rcode.NOERROR
    assert not message.answer
    assert message.flags & dns.flags.AA
    assert message.edns == 0


def test_flags_and_edns_are_those_of_the_query():
    query = ask("web.", use_edns=0, payload=300, want_dnssec=True)
    changed = bytearray(query.message)
    changed[2] &= 0xFE  # no recursion desired
    changed[3] |= 0x30  # AD and CD
    asked = parse_query(bytes(changed))
    assert isinstance(asked, Query)
    message = read(own_reply(asked, records(asked, "10.0.0.1"), 4096))
    assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.CD
    assert message.ednsflags == dns.flags.DO
    assert message.payload == 512


@pytest.mark.parametrize(
    ("options", "tcp", "limit"),
    [
        ({}, False, 512),
        ({"use_edns": 0, "payload": 0}, False, 512),
        ({"use_edns": 0, "payload": 300}, False, 512),
        ({"use_edns": 0, "payload": 511}, False, 512),
        ({"use_edns": 0, "payload": 513}, False, 513),
        ({"use_edns": 0, "payload": 1232}, False, 1232),
        ({"use_edns": 0, "payload": 65535}, False, 65535),
        ({}, True, 65535),
        ({"use_edns": 0, "payload": 512}, True, 65535),
    ],
)
def test_limits(options, tcp, limit):
    assert reply_limit(ask("web.", **options), tcp=tcp) == limit


@given(st.integers(0, 3000), st.integers(512, 4096), st.booleans(), st.sampled_from(["A", "AAAA"]))
@settings(deadline=None, max_examples=60)
def test_what_does_not_fit_is_cut_and_says_so(count, limit, edns, kind):
    query = ask("web.default.", kind, use_edns=0 if edns else -1)
    first = 0x0A000001 if kind == "A" else 0xFD << 120
    addresses = [str(ip_address(first + number)) for number in range(count)]
    reply = own_reply(query, records(query, *addresses), limit)
    assert len(reply) <= limit
    message = read(reply)
    kept = [record.to_text() for rrset in message.answer for record in rrset]
    assert kept == addresses[: len(kept)]
    truncated = bool(message.flags & dns.flags.TC)
    assert truncated == (len(kept) < count)
    size = 16 if kind == "A" else 28
    assert not truncated or len(reply) + size > limit
    assert message.edns == (0 if edns else -1)


@pytest.mark.parametrize("kind", ["A", "AAAA"])
@pytest.mark.parametrize("payload", [None, 0, 512, 1232, 4096])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_an_answer_at_the_boundary(kind, payload, beyond):
    """One record less than fits, as many as fit, and one more."""
    query = ask("web.", kind, **({} if payload is None else {"use_edns": 0, "payload": payload}))
    limit = reply_limit(query, tcp=False)
    assert limit == max(512, payload or 0)
    first, size = (0x0A000001, 16) if kind == "A" else (0xFD << 120, 28)
    fit = (limit - 12 - len(query.question) - (0 if payload is None else 11)) // size
    addresses = [str(ip_address(first + number)) for number in range(fit + beyond)]
    reply = own_reply(query, records(query, *addresses), limit)
    message = read(reply)
    kept = [record.to_text() for rrset in message.answer for record in rrset]
    assert kept == addresses[:fit]
    assert len(reply) <= limit < len(reply) + size * (1 if beyond >= 0 else 2)
    assert bool(message.flags & dns.flags.TC) == (beyond > 0)


def test_a_cname_alone_can_be_what_fits():
    """The longest names leave no room for an address in 512 bytes; the reply says so."""
    labels = ["a" * 63, "b" * 63, "c" * 63, "d" * 59]
    query = ask(".".join(labels) + ".")
    target = ".".join(["x" * 63, "y" * 63, "z" * 63, "w" * 59]) + "."
    reply = own_reply(query, records(query, "10.0.0.1", cname=target), reply_limit(query, tcp=False))
    message = read(reply)
    assert len(reply) <= 512
    assert message.flags & dns.flags.TC
    assert not [rrset for rrset in message.answer if rrset.rdtype == dns.rdatatype.A]


def test_errors():
    query = ask("WEB.example.", use_edns=0, want_dnssec=True)
    reply = error_reply(query, Rcode.SERVFAIL)
    assert reply[12:] == query.question
    message = read(reply)
    assert message.rcode() == dns.rcode.SERVFAIL
    assert message.flags & 0xFFF0 == dns.flags.QR | dns.flags.RD
    assert message.edns == -1
    assert message.id == query.id


_LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-ABC", min_size=1, max_size=20)


@given(st.lists(_LABEL, min_size=1, max_size=8), st.integers(1, 3))
@settings(deadline=None)
def test_compressed_names_read_as_they_were_meant(labels, stripped):
    query = ask(".".join(labels) + ".")
    cname = ".".join(labels[:-stripped]).lower() + "." if len(labels) > stripped else None
    reply = own_reply(query, records(query, "10.0.0.1", cname=cname), 65535)
    answers = read(reply).answer
    if cname is not None:
        assert answers[0].rdtype == dns.rdatatype.CNAME
        assert str(answers[0].name) == query.name.lower()
        assert str(answers[0][0].target) == cname
    assert str(answers[-1].name) == (cname or query.name.lower())
