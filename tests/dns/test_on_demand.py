"""On-demand DNS: hostnames of workloads, with a search list and a cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio

from tests.support.fake_resolver import answer_with, fake_resolver, reply_to, silent
from ztunnel.bounds import DEFAULTS, DnsBounds
from ztunnel.dns.dns_errors import NameResolutionError
from ztunnel.dns.lookup import addresses_in
from ztunnel.dns.on_demand import OnDemandResolver
from ztunnel.dns.resolv_conf import ResolvConf
from ztunnel.dns.upstream import Upstream
from ztunnel.sockets.factories import HostSockets

CONF = ResolvConf((ip_address("127.0.0.1"),), search=("ns.svc.cluster.local", "cluster.local"), ndots=2)


def make_resolver(
    port: int, *, ipv6: bool = True, conf: ResolvConf = CONF, bounds: DnsBounds = DEFAULTS.dns
) -> OnDemandResolver:
    upstream = Upstream(conf, HostSockets(), mark=None, random=Random(1), port=port)
    return OnDemandResolver(ipv6=ipv6, conf=conf, upstream=upstream, bounds=bounds)


def zone(records: dict[str, list[str]], soa: int | None = None):
    """Answers with the records of the name and type that are asked for, else NXDOMAIN."""

    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        (question,) = dns.message.from_wire(query).question
        name = str(question.name)
        kind = dns.rdatatype.to_text(question.rdtype)
        found = [record for record in records.get(name, []) if record.split()[3] == kind]
        reply = dns.message.make_response(dns.message.from_wire(query))
        for record in found:
            owner, ttl, *rest = record.split(maxsplit=4)
            reply.answer.append(dns.rrset.from_text(owner, int(ttl), *rest))
        if name not in records:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        if soa is not None and not found:
            text = f"ns. admin. 1 2 3 4 {soa}"
            reply.authority.append(dns.rrset.from_text(".", soa, "IN", "SOA", text))
        return [reply.to_wire()]

    return behave


BOTH = {"db.example.com.": ["db.example.com. 60 IN A 10.0.0.1", "db.example.com. 60 IN AAAA fd00::1"]}


async def resolved(resolver: OnDemandResolver, name: str) -> set[str]:
    return {str(address) for address in await resolver.resolve(name)}


async def test_both_families_are_asked():
    async with fake_resolver(zone(BOTH)) as upstream:
        assert await resolved(make_resolver(upstream.port), "db.example.com") == {"10.0.0.1", "fd00::1"}
        assert await resolved(make_resolver(upstream.port, ipv6=False), "DB.example.com") == {"10.0.0.1"}
    assert len(upstream.asked) == 3


async def test_an_address_is_its_own_answer():
    resolver = make_resolver(1)
    assert await resolved(resolver, "10.0.0.7") == {"10.0.0.7"}
    assert await resolved(resolver, "fd00::7") == {"fd00::7"}


async def test_one_family_is_enough():
    one = {"db.example.com.": ["db.example.com. 60 IN A 10.0.0.1"]}
    async with fake_resolver(zone(one)) as upstream:
        assert await resolved(make_resolver(upstream.port), "db.example.com") == {"10.0.0.1"}


async def test_short_names_are_searched_first_and_long_ones_last():
    records = {
        "db.cluster.local.": ["db.cluster.local. 60 IN A 10.0.0.2"],
        "a.b.c.ns.svc.cluster.local.": ["a.b.c.ns.svc.cluster.local. 60 IN A 10.0.0.3"],
    }
    async with fake_resolver(zone(records)) as upstream:
        resolver = make_resolver(upstream.port)
        assert await resolved(resolver, "db") == {"10.0.0.2"}
        assert upstream.asked_for("db.") == 0
        assert await resolved(resolver, "a.b.c") == {"10.0.0.3"}
        assert upstream.asked_for("a.b.c.") == 2
        assert await resolved(resolver, "db.") == set()
        assert upstream.asked_for("db.") == 2


async def test_answers_are_kept_for_their_time(autojump_clock):
    async with fake_resolver(zone(BOTH, soa=30)) as upstream:
        resolver = make_resolver(upstream.port)
        for _ in range(3):
            await resolver.resolve("db.example.com")
            assert await resolver.resolve("none.example.com.") == []
        assert len(upstream.asked) == 4
        await trio.sleep(31)
        await resolver.resolve("db.example.com")
        await resolver.resolve("none.example.com.")
        assert len(upstream.asked) == 6
        await trio.sleep(30)
        await resolver.resolve("db.example.com")
        assert len(upstream.asked) == 8


async def test_without_a_time_nothing_is_kept():
    record = {"db.example.com.": ["db.example.com. 0 IN A 10.0.0.1"]}
    async with fake_resolver(zone(record)) as upstream:
        resolver = make_resolver(upstream.port, ipv6=False)
        await resolver.resolve("db.example.com.")
        await resolver.resolve("db.example.com.")
        await resolver.resolve("none.example.com.")
        await resolver.resolve("none.example.com.")
    assert len(upstream.asked) == 4


async def test_the_cache_has_a_bound():
    records = {f"n{number}.": [f"n{number}. 60 IN A 10.0.0.1"] for number in range(5)}
    async with fake_resolver(zone(records)) as upstream:
        resolver = make_resolver(upstream.port, ipv6=False, bounds=DnsBounds(cached_names=3))
        for number in range(5):
            await resolver.resolve(f"n{number}.")
        assert len(resolver._cache) == 3
        await resolver.resolve("n4.")
        assert len(upstream.asked) == 5


async def test_a_truncated_answer_is_asked_for_over_tcp():
    def behave(query: bytes, tcp: bool) -> Iterable[bytes]:
        record = "db.example.com. 60 IN A 10.0.0.1"
        return [reply_to(query, record) if tcp else reply_to(query, truncated=True)]

    async with fake_resolver(behave) as upstream:
        assert await resolved(make_resolver(upstream.port, ipv6=False), "db.example.com.") == {"10.0.0.1"}
    assert [tcp for _, tcp in upstream.asked] == [False, True]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_errors_fail(rcode):
    async with fake_resolver(answer_with(rcode=rcode)) as upstream:
        with pytest.raises(NameResolutionError, match="error response"):
            await make_resolver(upstream.port).resolve("db.example.com")


async def test_silence_fails_in_bounded_time(autojump_clock):
    async with fake_resolver(silent) as upstream:
        began = trio.current_time()
        with pytest.raises(NameResolutionError, match="request timed out"):
            await make_resolver(upstream.port, conf=replace(CONF, attempts=5)).resolve("db")
        assert trio.current_time() - began == pytest.approx(15)


async def test_no_hostname_fails():
    with pytest.raises(NameResolutionError):
        await make_resolver(1).resolve("no..name.")


def test_what_is_no_answer_has_no_addresses():
    query = dns.message.make_query("a.example.", "A").to_wire()
    assert addresses_in(b"") == ((), 0)
    assert addresses_in(b"\x00" * 11) == ((), 0)
    assert addresses_in(query) == ((), 0)
    loop = reply_to(query, "a.example. 5 IN CNAME b.example.", "b.example. 5 IN CNAME a.example.")
    assert addresses_in(loop).addresses == ()
    other = reply_to(query, "b.example. 5 IN A 10.0.0.1")
    assert addresses_in(other).addresses == ()
    failed = reply_to(query, "a.example. 5 IN A 10.0.0.1", rcode=dns.rcode.SERVFAIL)
    assert addresses_in(failed).addresses == ()
