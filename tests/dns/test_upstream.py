"""Asking the real resolver: bytes kept, lies passed over, other servers tried, nothing without bounds."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import dns.message
import dns.rcode
import pytest
import trio

from tests.support.closed_port import closed_port
from tests.support.fake_resolver import answer_with, fake_resolver, reply_to, silent
from ztunnel.bounds import DEFAULTS, DnsBounds
from ztunnel.dns.dns_errors import (
    NoNameserverError,
    TooManyQueriesError,
    UpstreamError,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from ztunnel.dns.message import Query, make_query, parse_query
from ztunnel.dns.resolv_conf import ResolvConf
from ztunnel.dns.upstream import Upstream
from ztunnel.model.address import SocketAddress
from ztunnel.sockets.factories import HostSockets

HERE = ip_address("127.0.0.1")
THERE = ip_address("127.0.0.2")
CONF = ResolvConf((HERE,))


class CountingSockets(HostSockets):
    """Keeps every socket it made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[socket.socket] = []

    async def datagram(self, family: int) -> socket.socket:
        self.made.append(await super().datagram(family))
        return self.made[-1]

    async def stream(self, family: int) -> socket.socket:
        self.made.append(await super().stream(family))
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self.made)


def make_upstream(
    port: int,
    conf: ResolvConf = CONF,
    sockets: HostSockets | None = None,
    bounds: DnsBounds = DEFAULTS.dns,
) -> Upstream:
    return Upstream(conf, sockets or HostSockets(), mark=None, random=Random(5), port=port, bounds=bounds)


def ask_for(name: str = "a.example.", qtype: str = "A", **options) -> Query:
    query = parse_query(dns.message.make_query(name, qtype, **options).to_wire())
    assert isinstance(query, Query)
    return query


@pytest.mark.parametrize("tcp", [False, True])
async def test_bytes_pass_both_ways_unchanged_but_for_the_id(tcp):
    odd = b"\x0dodd trailing!\xff\x00"

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, "A.eXample. 7 IN HTTPS 1 . alpn=h2") + odd]

    query = ask_for("A.eXample.", "HTTPS", use_edns=0, want_dnssec=True, payload=1999)
    async with fake_resolver(behave) as resolver:
        reply = await make_upstream(resolver.port).ask(query, tcp=tcp)
    ((asked, over_tcp),) = resolver.asked
    assert over_tcp is tcp
    assert asked[2:] == query.message[2:]
    assert asked[:2] != query.message[:2]
    assert reply[:2] == query.message[:2]
    assert reply[2:] == next(iter(behave(asked, tcp)))[2:]


async def test_ids_and_ports_differ_from_query_to_query():
    async with fake_resolver(answer_with()) as resolver:
        upstream = make_upstream(resolver.port)
        for _ in range(20):
            await upstream.ask(ask_for(), tcp=False)
    assert len({query[:2] for query, _ in resolver.asked}) == 20
    assert len(set(resolver.ports)) > 10


async def test_a_truncated_answer_is_handed_on():
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, truncated=True)]

    async with fake_resolver(behave) as resolver:
        reply = await make_upstream(resolver.port).ask(ask_for(), tcp=False)
    assert reply[2] & 0x02
    assert len(resolver.asked) == 1


async def test_silence_ends_after_all_tries(autojump_clock):
    sockets = CountingSockets()
    async with fake_resolver(silent) as resolver:
        upstream = make_upstream(resolver.port, sockets=sockets)
        began = trio.current_time()
        with pytest.raises(UpstreamTimedOut, match="request timed out"):
            await upstream.ask(ask_for(), tcp=False)
        assert trio.current_time() - began == pytest.approx(15)
        assert len(resolver.asked) == 3
        with pytest.raises(UpstreamTimedOut):
            await upstream.ask(ask_for(), tcp=True)
    assert trio.current_time() - began == pytest.approx(30)
    assert sockets.open == 0
    assert upstream.under_way == 0


async def test_an_answer_that_is_only_slow_counts(autojump_clock):
    late: list[bytes] = []

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        late.append(reply_to(query, "a.example. 1 IN A 1.2.3.4"))
        return late[:1] if len(late) == 2 else []  # the first query's, when the second comes

    async with fake_resolver(behave) as resolver:
        reply = await make_upstream(resolver.port).ask(ask_for(), tcp=False)
    assert dns.message.from_wire(reply).answer[0].to_text() == "a.example. 1 IN A 1.2.3.4"


async def test_lies_are_passed_over():
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        truth = reply_to(query, "a.example. 1 IN A 1.2.3.4")
        lie = reply_to(query, "a.example. 1 IN A 6.6.6.6")
        other = reply_to(make_query("b.example", 1).with_id(0)[:2] + make_query("b.example", 1).message[2:])
        yield bytes((lie[0] ^ 1,)) + lie[1:]  # another id
        yield query[:2] + other[2:]  # another question
        yield query  # no reply at all
        yield b""
        yield query[:2] + b"\xff" * 600
        yield truth
        yield lie

    async with fake_resolver(behave) as resolver:
        reply = await make_upstream(resolver.port).ask(ask_for(), tcp=False)
    assert dns.message.from_wire(reply).answer[0].to_text() == "a.example. 1 IN A 1.2.3.4"
    assert len(resolver.asked) == 1


async def test_somebody_elses_datagrams_do_not_arrive():
    """The socket is connected: what comes from another port of the same machine is not even seen."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:

        def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
            stranger.sendto(reply_to(query, "a.example. 1 IN A 6.6.6.6"), ("127.0.0.1", resolver.ports[-1]))
            return [reply_to(query, "a.example. 1 IN A 1.2.3.4")]

        async with fake_resolver(behave) as resolver:
            reply = await make_upstream(resolver.port).ask(ask_for(), tcp=False)
    assert "1.2.3.4" in dns.message.from_wire(reply).answer[0].to_text()


async def test_a_flood_of_guesses_costs_the_guesser_port_and_id(autojump_clock):
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        lie = reply_to(query, "a.example. 1 IN A 6.6.6.6")
        return [((lie[0] << 8 | lie[1]) ^ guess).to_bytes(2, "big") + lie[2:] for guess in range(1, 101)]

    async with fake_resolver(behave) as resolver:
        with pytest.raises(UpstreamUnreachable, match="no answer to the query"):
            await make_upstream(resolver.port).ask(ask_for(), tcp=False)
    assert len(resolver.asked) == 3
    assert len({query[:2] for query, _ in resolver.asked}) == 3


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_port_where_nobody_listens_is_told_at_once(autojump_clock, tcp):
    with closed_port(socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as port:
        upstream = make_upstream(port)
        began = trio.current_time()
        with pytest.raises(UpstreamUnreachable, match="Connection refused"):
            await upstream.ask(ask_for(), tcp=tcp)
        assert trio.current_time() == began


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_failures_are_tried_again_and_then_handed_on(rcode, tcp):
    async with fake_resolver(answer_with(rcode=rcode)) as resolver:
        reply = await make_upstream(resolver.port).ask(ask_for(), tcp=tcp)
    assert dns.message.from_wire(reply).rcode() == rcode
    assert len(resolver.asked) == 3


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR, dns.rcode.NOTIMP])
async def test_other_codes_are_answers(rcode):
    async with fake_resolver(answer_with(rcode=rcode)) as resolver:
        reply = await make_upstream(resolver.port).ask(ask_for(), tcp=False)
    assert dns.message.from_wire(reply).rcode() == rcode
    assert len(resolver.asked) == 1


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("first", [silent, answer_with(rcode=dns.rcode.SERVFAIL)])
async def test_the_next_server_helps_out_and_is_preferred_for_a_while(autojump_clock, first, tcp):
    conf = replace(CONF, nameservers=(HERE, THERE))
    good = answer_with("a.example. 1 IN A 1.2.3.4")
    async with fake_resolver(first) as bad, fake_resolver(good, "127.0.0.2", bad.port) as other:
        upstream = make_upstream(bad.port, conf)
        for _ in range(3):
            assert dns.message.from_wire(await upstream.ask(ask_for(), tcp=tcp)).answer
        assert len(other.asked) == 3
        assert len(bad.asked) == (1 if first is silent else 3)
        await trio.sleep(31)
        await upstream.ask(ask_for(), tcp=tcp)
        assert len(bad.asked) == (2 if first is silent else 4)


async def test_rotation():
    conf = replace(CONF, nameservers=(HERE, THERE), rotate=True)
    good = answer_with("a.example. 1 IN A 1.2.3.4")
    async with fake_resolver(good) as one, fake_resolver(good, "127.0.0.2", one.port) as two:
        upstream = make_upstream(one.port, conf)
        for _ in range(4):
            await upstream.ask(ask_for(), tcp=False)
    assert (len(one.asked), len(two.asked)) == (2, 2)


async def test_without_a_nameserver_it_says_so():
    upstream = make_upstream(53, ResolvConf(problem="/etc/resolv.conf: No such file or directory"))
    with pytest.raises(NoNameserverError, match="No such file"):
        await upstream.ask(ask_for(), tcp=False)


async def test_the_same_question_at_the_same_time_is_asked_once(autojump_clock):
    replies: list[bytes] = []

    async def client(query: Query) -> None:
        replies.append(await upstream.ask(query, tcp=False))

    queries = [ask_for() for _ in range(50)]

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, "a.example. 1 IN A 1.2.3.4")] if len(resolver.asked) == 2 else []

    async with fake_resolver(behave) as resolver:
        upstream = make_upstream(resolver.port)
        async with trio.open_nursery() as nursery:
            for query in queries:
                nursery.start_soon(client, query)
    assert len(resolver.asked) == 2  # one query, and its repetition after 5 s
    assert sorted(reply[:2] for reply in replies) == sorted(query.message[:2] for query in queries)


async def test_a_thousand_queries_against_a_dead_server_end_in_time(autojump_clock):
    sockets = CountingSockets()
    failures: list[str] = []

    async def client(number: int) -> None:
        try:
            await upstream.ask(ask_for(f"name-{number}.example."), tcp=False)
        except UpstreamError as error:
            failures.append(str(error))

    async with fake_resolver(silent) as resolver:
        upstream = make_upstream(resolver.port, sockets=sockets)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(client, number)
            await trio.sleep(1)
            assert upstream.under_way == 1000
            assert sockets.open == 1000
    assert failures == ["request timed out"] * 1000
    assert trio.current_time() - began < 16
    assert sockets.open == 0


@pytest.mark.parametrize("bounds", [DnsBounds(forwarded=10), DnsBounds(query_bytes=10 * 28)])
async def test_more_than_the_bound_is_refused_at_once(autojump_clock, bounds):
    failures: list[UpstreamError] = []

    async def client(name: str) -> None:
        try:
            await upstream.ask(ask_for(name), tcp=False)
        except UpstreamError as error:
            failures.append(error)

    async with fake_resolver(silent) as resolver:
        upstream = make_upstream(resolver.port, bounds=bounds)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(10, 25):
                nursery.start_soon(client, f"{number}.example.")
            await trio.sleep(0.1)
            assert [type(failure) for failure in failures] == [TooManyQueriesError] * 5
    assert len(failures) == 15
    assert trio.current_time() - began == pytest.approx(15)
    assert upstream._bytes == 0


async def test_who_waits_for_anothers_query_hears_of_its_end(autojump_clock):
    failures: list[UpstreamError] = []

    async def follow() -> None:
        try:
            await upstream.ask(ask_for(), tcp=False)
        except UpstreamError as error:
            failures.append(error)

    async with fake_resolver(silent) as resolver, trio.open_nursery() as nursery:
        upstream = make_upstream(resolver.port)
        with trio.move_on_after(1):
            async with trio.open_nursery() as leading:
                leading.start_soon(lambda: upstream.ask(ask_for(), tcp=False))
                await trio.sleep(0.5)
                nursery.start_soon(follow)
    assert [str(failure) for failure in failures] == ["the query was cancelled"]


async def test_our_own_sockets_are_known_as_such():
    seen: list[bool] = []

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        seen.append(upstream.is_own(SocketAddress(HERE, resolver.ports[-1])))
        return [reply_to(query)]

    async with fake_resolver(behave) as resolver:
        upstream = make_upstream(resolver.port)
        await upstream.ask(ask_for(), tcp=False)
        assert seen == [True]
        assert not upstream.is_own(SocketAddress(HERE, resolver.ports[-1]))


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([b"\x00\x00"], "no answer to the query"),
        ([b"\x00\x05hello"], "no answer to the query"),
    ],
)
async def test_nonsense_over_tcp_is_no_answer(frames, text):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def serve(stream: trio.SocketStream) -> None:
        for frame in frames:
            await stream.send_all(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        with pytest.raises(UpstreamUnreachable, match=text):
            await make_upstream(port).ask(ask_for(), tcp=True)
        nursery.cancel_scope.cancel()


async def test_a_server_that_hangs_up_or_stops_in_the_middle(autojump_clock):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    connections: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        connections.append(stream)
        await stream.receive_some()
        if len(connections) > 1:
            await stream.send_all(b"\xff\xff1234")
            await trio.sleep(60)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        with pytest.raises(UpstreamError):
            await make_upstream(port, replace(CONF, attempts=0)).ask(ask_for(), tcp=True)
        began = trio.current_time()
        with pytest.raises(UpstreamTimedOut):
            await make_upstream(port, replace(CONF, attempts=0)).ask(ask_for(), tcp=True)
        assert trio.current_time() - began == pytest.approx(5)
        nursery.cancel_scope.cancel()


async def test_a_zone_transfer_comes_in_all_its_messages(autojump_clock):
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, f"h{number}.example. 1 IN A 10.0.0.{number}") for number in range(5)]

    taken: list[bytes] = []

    async def take(message: bytes) -> None:
        taken.append(message)

    query = ask_for("example.", "AXFR")
    async with fake_resolver(behave) as resolver:
        assert await make_upstream(resolver.port).transfer(query, take) == 5
    assert all(message[:2] == query.message[:2] for message in taken)
    assert [str(dns.message.from_wire(message).answer[0].name)[:2] for message in taken] == [
        f"h{number}" for number in range(5)
    ]


async def test_ipv6_servers(autojump_clock):
    conf = replace(CONF, nameservers=(ip_address("::1"),))
    async with fake_resolver(answer_with("a.example. 1 IN A 1.2.3.4"), "::1") as resolver:
        for tcp in (False, True):
            assert await make_upstream(resolver.port, conf).ask(ask_for(), tcp=tcp)
