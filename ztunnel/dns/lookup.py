"""Addresses of a hostname, for our own use: reads an answer and follows CNAMEs."""

from __future__ import annotations

from typing import NamedTuple

import dns.exception
import dns.rcode
import dns.rdatatype

from ztunnel.decide.dns_names import TYPE_A, TYPE_AAAA
from ztunnel.dns.dns_errors import UpstreamUnreachable
from ztunnel.dns.message import Query, make_query, read_reply
from ztunnel.dns.upstream import Upstream
from ztunnel.model.address import IPAddress, parse_ip


class Found(NamedTuple):
    """The addresses of a name, perhaps none, and for how many seconds they may be cached."""

    addresses: tuple[IPAddress, ...]
    ttl: int


_NOTHING = Found((), 0)


def addresses_in(reply: bytes) -> Found:
    """Returns the addresses in a reply for its question; None when it is an error or not a message."""
    # Few meshes ask for hostnames, and dnspython's parser is 3 % of the start's CPU time.
    import dns.message  # noqa: PLC0415

    try:
        message = dns.message.from_wire(reply)
    except (dns.exception.DNSException, ValueError):
        return _NOTHING
    if not isinstance(message, dns.message.QueryMessage) or not message.question:
        return _NOTHING
    if message.rcode() not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        return _NOTHING
    try:
        chain = message.resolve_chaining()
    except dns.exception.DNSException:
        return _NOTHING
    ttl = chain.minimum_ttl
    if chain.answer is None:
        # Only an SOA record says how long a negative answer may be cached (RFC 2308, section 5).
        soa = any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority)
        return Found((), ttl if soa else 0)
    return Found(tuple(parse_ip(record.to_text()) for record in chain.answer), ttl)


async def look_up(upstream: Upstream, name: str, version: int) -> Found:
    """Ask for the addresses of IP version 4 or 6 of an absolute hostname; over TCP if necessary.

    Raises UpstreamError when there is no answer, and ValueError for an invalid hostname.
    """
    query: Query = make_query(name, TYPE_A if version == 4 else TYPE_AAAA)
    reply = await upstream.ask(query, tcp=False)
    if read_reply(reply).truncated:
        reply = await upstream.ask(query, tcp=True)
    rcode = read_reply(reply).rcode
    if rcode not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        raise UpstreamUnreachable(f"DNS error: error response: {dns.rcode.to_text(dns.rcode.Rcode(rcode))}")
    return addresses_in(reply)
