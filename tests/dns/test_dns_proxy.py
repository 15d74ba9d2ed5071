"""Conversations with the DNS proxy of a pod, over UDP and TCP, with a resolver behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
import trio
import trio.testing

from tests.support.dns_pod import frame, read_frames, running_pod
from tests.support.fake_resolver import answer_with, fake_resolver, reply_to, silent
from tests.support.logs import capture_logs
from tests.support.namespaces import open_descriptors
from ztunnel.bounds import DnsBounds
from ztunnel.dns.listeners import open_dns_sockets
from ztunnel.sockets.factories import HostSockets

FQDN = "productpage.ns1.svc.cluster.local."
ELSEWHERE = "elsewhere.example."
NO_RECORDS = (
    "forwarding failed (net error: DNS error: no records found for "
    'Query { name: Name("elsewhere.example."), query_type: A, query_class: IN })'
)
RECORD = f"{ELSEWHERE} 77 IN A 9.9.9.9"


def texts(message: dns.message.Message) -> list[str]:
    return [rrset.to_text() for rrset in message.answer]


async def test_names_of_the_mesh_are_answered_without_the_resolver():
    async with fake_resolver(answer_with()) as resolver, running_pod(resolver.port) as pod:
        assert texts(await pod.ask(FQDN)) == [f"{FQDN} 30 IN A 10.96.0.1"]
        assert texts(await pod.ask(FQDN, "AAAA")) == [f"{FQDN} 30 IN AAAA fd96::1"]
        assert texts(await pod.ask("www.google.com.ns1.svc.cluster.local.")) == [
            "www.google.com.ns1.svc.cluster.local. 30 IN CNAME www.google.com.",
            "www.google.com. 30 IN A 1.1.1.1",
        ]
        empty = await pod.ask("www.google.com.", "AAAA")
        assert (empty.rcode(), texts(empty)) == (dns.rcode.NOERROR, [])
        assert pod.counted("istio_dns_requests_total", request_protocol="udp") == 4
        assert pod.counted("istio_dns_requests_total", request_query_type="aaaa") == 2
        assert pod.counted("istio_dns_upstream_requests_total") == 0
    assert not resolver.asked


@pytest.mark.parametrize("tcp", [False, True])
async def test_everything_else_is_forwarded_byte_for_byte(tcp):
    replies: list[bytes] = []

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        replies.append(reply_to(query, "_x._tcp.eXample. 7 IN SRV 1 2 3 H.example.") + b"odd")
        return replies

    message = dns.message.make_query("_x._tcp.eXample.", "SRV", use_edns=0, want_dnssec=True).to_wire()
    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        if tcp:
            async with await pod.connect() as stream:
                await stream.send_all(frame(message))
                (reply,) = await read_frames(stream, 1)
        else:
            found = await pod.udp(message)
            assert found is not None
            reply = found
        assert reply == message[:2] + replies[0][2:]
        ((asked, over_tcp),) = resolver.asked
        assert asked[2:] == message[2:]
        assert over_tcp is tcp
        protocol = "tcp" if tcp else "udp"
        for name in ("istio_dns_requests_total", "istio_dns_upstream_requests_total"):
            assert pod.counted(name, request_protocol=protocol, source_canonical_service="app") == 1
        assert pod.counted("istio_dns_upstream_failures_total") == 0
        assert pod.counted("istio_dns_upstream_request_duration_seconds_count") == 1


async def test_other_types_of_our_names_are_forwarded():
    async with fake_resolver(answer_with()) as resolver, running_pod(resolver.port) as pod:
        await pod.ask(FQDN, "SRV")
        await pod.ask(FQDN, "HTTPS")
    assert len(resolver.asked) == 2


@pytest.mark.parametrize("count", [29, 30, 31, 300])
async def test_a_client_without_edns_gets_no_more_than_512_bytes_and_the_rest_over_tcp(count):
    """Thirty addresses are what fits beside this question."""
    async with fake_resolver(answer_with()) as resolver, running_pod(resolver.port) as pod:
        vips = [f"10.97.{number // 250}.{number % 250}" for number in range(count)]
        pod.mesh.add_service("w", " ".join(vips), namespace="ns1")
        query = dns.message.make_query("w.", "A")
        reply = await pod.udp(query.to_wire())
        assert reply is not None
        assert len(reply) <= 512
        message = dns.message.from_wire(reply)
        given = [record.to_text() for rrset in message.answer for record in rrset]
        assert len(given) == min(count, 30)
        assert set(given) <= set(vips)
        assert bool(message.flags & dns.flags.TC) == (count > 30)
        large = await pod.ask("w.", use_edns=0, payload=65535)
        assert {record.to_text() for record in large.answer[0]} == set(vips)
        async with await pod.connect() as stream:
            await stream.send_all(frame(query.to_wire()))
            (whole,) = await read_frames(stream, 1)
        message = dns.message.from_wire(whole)
        assert not message.flags & dns.flags.TC
        assert {record.to_text() for record in message.answer[0]} == set(vips)
    assert not resolver.asked


@pytest.mark.parametrize("name", [FQDN, ELSEWHERE])
@pytest.mark.parametrize("tcp", [False, True])
async def test_a_version_of_edns_that_is_not_spoken_is_refused_whoever_would_answer(name, tcp):
    query = dns.message.make_query(name, "A", use_edns=1)
    async with fake_resolver(answer_with()) as resolver, running_pod(resolver.port) as pod:
        if tcp:
            async with await pod.connect() as stream:
                await stream.send_all(frame(query.to_wire()))
                (reply,) = await read_frames(stream, 1)
        else:
            found = await pod.udp(query.to_wire())
            assert found is not None
            reply = found
    message = dns.message.from_wire(reply)
    assert (message.rcode(), message.edns) == (dns.rcode.BADVERS, 0)
    assert not resolver.asked


async def test_a_truncated_answer_is_asked_for_again_over_tcp():
    big = [f"{ELSEWHERE} 77 IN A 10.1.{number // 250}.{number % 250}" for number in range(1000)]

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, *big) if over_tcp else reply_to(query, truncated=True)]

    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        query = dns.message.make_query(ELSEWHERE, "A")
        first = await pod.udp(query.to_wire())
        assert first is not None
        assert dns.message.from_wire(first).flags & dns.flags.TC
        async with await pod.connect() as stream:
            await stream.send_all(frame(query.to_wire()))
            (second,) = await read_frames(stream, 1)
        message = dns.message.from_wire(second)
        assert sum(len(rrset) for rrset in message.answer) == 1000
        assert pod.counted("istio_dns_upstream_failures_total") == 0
    assert [tcp for _, tcp in resolver.asked] == [False, True]


async def test_bad_messages_over_udp():
    async with fake_resolver(silent) as resolver, running_pod(resolver.port) as pod:
        garbage = await pod.udp(b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\xff" * 20)
        assert garbage == b"\x12\x34\x81\x01" + bytes(8)
        update = dns.message.make_query("a.example.", "A")
        update.set_opcode(dns.opcode.UPDATE)
        with capture_logs() as records:
            reply = await pod.udp(update.to_wire())
        assert reply is not None
        assert reply[3] & 0x0F == dns.rcode.NOTIMP
        assert ("warn", "unimplemented op_code: Update") in [
            (record.level.name.lower(), record.message) for record in records
        ]
        two = b"\x12\x34\x01\x00\x00\x02" + bytes(6) + b"\x01a\x00\x00\x01\x00\x01" * 2
        assert await pod.udp(two) == b"\x12\x34\x81\x02\x00\x02" + bytes(6) + two[12:]
        response = dns.message.make_response(dns.message.make_query(FQDN, "A")).to_wire()
        for ignored in (b"", b"\x00" * 11, response):
            assert await pod.udp(ignored, timeout=0.02) is None
        assert texts(await pod.ask(FQDN))
        assert pod.counted("istio_dns_requests_total") == 1
    assert not resolver.asked


async def test_the_largest_datagram_is_harmless():
    message = dns.message.make_query(ELSEWHERE, "A").to_wire() + bytes(65000)

    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [query[:2] + b"\x81\x80" + query[4:]]

    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        assert await pod.udp(message) == message[:2] + b"\x81\x80" + message[4:]
        assert texts(await pod.ask(FQDN))


async def test_silence_of_the_resolver_ends_in_a_failure(autojump_clock):
    async with fake_resolver(silent) as resolver, running_pod(resolver.port) as pod:
        began = trio.current_time()
        with capture_logs() as records:
            reply = await pod.ask(ELSEWHERE, use_edns=0)
        assert trio.current_time() - began == pytest.approx(15)
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert not reply.flags & dns.flags.RA
        assert reply.edns == -1
        assert pod.counted("istio_dns_upstream_failures_total") == 1
        (line,) = [record for record in records if record.scope == "ztunnel::dns"]
    assert line.fields["result"] == "forwarding failed (net error: request timed out)"


async def test_a_thousand_queries_at_once_against_a_dead_resolver(autojump_clock):
    codes: list[int] = []

    async def client(number: int) -> None:
        codes.append((await pod.ask(f"n{number}.example.")).rcode())

    async with fake_resolver(silent) as resolver, running_pod(resolver.port) as pod:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(client, number)
            await trio.sleep(1)
            # The mesh's names do not suffer.
            assert texts(await pod.ask(FQDN))
            assert trio.current_time() - began < 2
        assert trio.current_time() - began < 17
    assert codes == [dns.rcode.SERVFAIL] * 1000


async def test_beyond_the_limit_there_is_a_failure_at_once(autojump_clock):
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port, bounds=DnsBounds(queries=5)) as pod,
    ):
        replies: list[float] = []

        async def client(number: int) -> None:
            assert (await pod.ask(f"n{number}.example.")).rcode() == dns.rcode.SERVFAIL
            replies.append(trio.current_time() - began)

        with capture_logs() as records:
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                for number in range(12):
                    nursery.start_soon(client, number)
        assert [round(time) for time in sorted(replies)] == [0] * 7 + [15] * 5
        warnings = [record for record in records if record.level.name.lower() == "warn"]
        assert len(warnings) == 1
        assert len(resolver.asked) == 15
        assert pod.counted("istio_dns_requests_total") == 12
        assert pod.counted("istio_dns_upstream_failures_total") == 12


async def test_a_client_that_repeats_itself_gets_one_answer(autojump_clock):
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, RECORD)] if len(resolver.asked) > 1 else []

    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect(pod.target)
            message = dns.message.make_query(ELSEWHERE, "A").to_wire()
            for _ in range(3):
                await sock.send(message)
                await trio.sleep(0.5)
            assert (await sock.recv(65535))[:2] == message[:2]
            with trio.move_on_after(30) as nothing_more:
                await sock.recv(65535)
            assert nothing_more.cancelled_caught


async def test_a_pod_not_yet_known_is_waited_for(autojump_clock):
    async with fake_resolver(silent) as resolver, running_pod(resolver.port, known=False) as pod:
        answers: list[dns.message.Message] = []

        async def client() -> None:
            answers.append(await pod.ask(FQDN))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await trio.sleep(3)
            pod.client.workload = pod.mesh.workloads[next(iter(pod.mesh.workloads))]
            pod.client.came.set()
        assert texts(answers[0])


async def test_large_queries_that_wait_are_bounded_in_bytes(autojump_clock):
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port, known=False, bounds=DnsBounds(query_bytes=100_000)) as pod,
    ):
        replies: list[float] = []

        async def client() -> None:
            message = dns.message.make_query(ELSEWHERE, "A").to_wire() + bytes(40_000)
            assert await pod.udp(message)
            replies.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for _ in range(4):
                nursery.start_soon(client)
        assert [round(time) for time in sorted(replies)] == [0, 0, 5, 5]
        assert pod.proxy._waiting_bytes == 0


@pytest.mark.parametrize("name", [FQDN, ELSEWHERE])
async def test_an_unknown_pod_gets_a_failure(autojump_clock, name):
    async with fake_resolver(silent) as resolver, running_pod(resolver.port, known=False) as pod:
        began = trio.current_time()
        with capture_logs() as records:
            assert (await pod.ask(name)).rcode() == dns.rcode.SERVFAIL
        assert trio.current_time() - began == pytest.approx(5)
        assert [record.message for record in records if record.scope == "ztunnel::dns"] == ["unknown source"]
        assert pod.counted("istio_dns_requests_total", source_canonical_service="unknown") == 1
    assert not resolver.asked


async def test_a_resolver_that_asks_us_back_does_no_harm(autojump_clock):
    """The resolver is itself a pod of the mesh and has us as its resolver."""
    async with trio.open_nursery() as nursery:

        def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
            nursery.start_soon(pod.udp, b"\x77\x77" + query[2:])
            return []

        async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
            assert (await pod.ask(ELSEWHERE)).rcode() == dns.rcode.SERVFAIL
            assert len(resolver.asked) == 3
            nursery.cancel_scope.cancel()


async def test_a_query_of_our_own_that_comes_back_is_refused_at_once(autojump_clock):
    """What a missing mark leads to: our query is redirected to ourselves, with its source address kept."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        async with running_pod(0) as pod:
            pod.resolver.upstream._port = pod.address.port
            began = trio.current_time()
            with capture_logs() as records:
                reply = await pod.ask(ELSEWHERE)
            assert reply.rcode() == dns.rcode.SERVFAIL
            assert trio.current_time() == began
            results = [record.fields["result"] for record in records if record.scope == "ztunnel::dns"]
    loop = "forwarding failed (net error: the query is one that was forwarded from here)"
    assert results == [loop] * 3 + [
        "forwarding failed (net error: DNS error: error response: Server Failure)"
    ]


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "records", "result", "endpoints"),
    [
        (FQDN, "A", 0, [], "success", 1),
        ("www.google.com.ns1.svc.cluster.local.", "A", 0, [], "success", 1),
        ("www.google.com.", "AAAA", 0, [], "no records", 0),
        (ELSEWHERE, "A", 0, [RECORD, RECORD.replace("9.9.9.9", "9.9.9.8")], "forwarded", 2),
        ("ELSEwhere.example.", "HTTPS", 0, [f"{ELSEWHERE} 7 IN HTTPS 1 ."], "forwarded", 1),
        (
            ELSEWHERE,
            "A",
            3,
            [],
            NO_RECORDS,
            0,
        ),
        (
            ELSEWHERE,
            "A",
            2,
            [],
            "forwarding failed (net error: DNS error: error response: Server Failure)",
            0,
        ),
        (
            ELSEWHERE,
            "A",
            5,
            [],
            "forwarding failed (net error: DNS error: error response: Query Refused)",
            0,
        ),
    ],
)
async def test_the_line_about_a_query(name, qtype, rcode, records, result, endpoints):
    behave = answer_with(*records, rcode=dns.rcode.Rcode(rcode))
    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        with capture_logs() as captured:
            reply = await pod.ask(name, qtype)
        failed = pod.counted("istio_dns_upstream_failures_total")
    assert reply.rcode() == rcode
    (line,) = [record for record in captured if record.scope == "ztunnel::dns"]
    assert (line.level.name.lower(), line.message, line.spans) == ("debug", "", ())
    assert line.fields == {
        "src.workload": "client",
        "src.namespace": "ns1",
        "query": qtype,
        "domain": name.lower(),
        "result": result,
        "endpoints": endpoints,
    }
    assert failed == result.startswith("forwarding failed")


async def test_a_bug_ends_its_query_alone(monkeypatch):
    async with fake_resolver(silent) as resolver, running_pod(resolver.port) as pod:
        decide = pod.resolver._decide

        def fail(client, query):
            if query.name.startswith("bad"):
                raise RuntimeError("a bug")
            return decide(client, query)

        monkeypatch.setattr(pod.resolver, "_decide", fail)
        with capture_logs() as records:
            assert await pod.udp(dns.message.make_query("bad.", "A").to_wire(), timeout=0.02) is None
            async with await pod.connect() as stream:
                await stream.send_all(frame(dns.message.make_query("bad.", "A").to_wire()))
                assert await read_frames(stream, 1) == []
        assert len([record for record in records if record.level.name.lower() == "error"]) == 2
        assert texts(await pod.ask(FQDN))


# -- TCP -------------------------------------------------------------------------------------------------


async def test_queries_sent_ahead_are_answered_in_their_order():
    queries = [
        dns.message.make_query(name, "A").to_wire()
        for _ in range(50)
        for name in (FQDN, ELSEWHERE, "x.wild.com.")
    ]
    behave = answer_with(RECORD)
    async with (
        fake_resolver(behave) as resolver,
        running_pod(resolver.port) as pod,
        await pod.connect() as stream,
    ):
        await stream.send_all(b"".join(map(frame, queries)))
        replies = await read_frames(stream, len(queries))
    assert [reply[:2] for reply in replies] == [query[:2] for query in queries]
    assert len(resolver.asked) == 50


async def test_a_query_may_come_in_single_bytes():
    query = dns.message.make_query(FQDN, "A").to_wire()
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port) as pod,
        await pod.connect() as stream,
    ):
        for byte in frame(query):
            await stream.send_all(bytes((byte,)))
        (reply,) = await read_frames(stream, 1)
    assert texts(dns.message.from_wire(reply))


async def test_bad_messages_do_not_end_a_connection():
    good = dns.message.make_query(FQDN, "A").to_wire()
    bad = b"\x12\x34\x01\x00\x00\x01" + bytes(6)
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port) as pod,
        await pod.connect() as stream,
    ):
        await stream.send_all(frame(b"") + frame(b"short") + frame(bad) + frame(good))
        first, second = await read_frames(stream, 2)
    assert first == b"\x12\x34\x81\x01" + bytes(8)
    assert second[:2] == good[:2]


@pytest.mark.parametrize("sent", [b"", b"\x00", b"\x10\x00half"])
async def test_a_silent_connection_is_closed_after_five_seconds(autojump_clock, sent):
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port) as pod,
        await pod.connect() as stream,
    ):
        began = trio.current_time()
        if sent:
            await stream.send_all(sent)
        assert await stream.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)


async def test_a_client_that_takes_no_answers_is_dropped(autojump_clock):
    query = frame(dns.message.make_query(FQDN, "A").to_wire())
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port) as pod,
        await pod.connect() as stream,
    ):
        dropped = False
        while not dropped:
            try:
                await stream.send_all(query * 1000)
            except trio.BrokenResourceError:
                dropped = True


async def test_there_are_only_so_many_connections(autojump_clock):
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port, bounds=DnsBounds(connections=3)) as pod,
    ):
        streams = [await pod.connect() for _ in range(5)]
        await trio.sleep(1)
        closed = []
        for number, stream in enumerate(streams):
            with trio.move_on_after(1):
                assert await stream.receive_some() == b""
                closed.append(number)
        assert closed == [3, 4]
        await trio.sleep(6)
        async with await pod.connect() as stream:
            await stream.send_all(frame(dns.message.make_query(FQDN, "A").to_wire()))
            assert await read_frames(stream, 1)
        for stream in streams:
            await stream.aclose()


async def test_a_zone_transfer_passes(autojump_clock):
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, f"h{number}.example. 1 IN A 10.0.0.{number}") for number in range(5)]

    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        async with await pod.connect() as stream:
            query = dns.message.make_query("example.", "AXFR").to_wire()
            await stream.send_all(frame(query))
            replies = await read_frames(stream, 6)
        assert len(replies) == 5
        assert {reply[:2] for reply in replies} == {query[:2]}
        assert pod.counted("istio_dns_upstream_requests_total", request_query_type="axfr") == 1


async def test_a_transfer_that_nobody_serves_fails(autojump_clock):
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port) as pod,
        await pod.connect() as stream,
    ):
        await stream.send_all(frame(dns.message.make_query("example.", "AXFR").to_wire()))
        (reply,) = await read_frames(stream, 2)
    assert dns.message.from_wire(reply).rcode() == dns.rcode.SERVFAIL


# -- the end ---------------------------------------------------------------------------------------------


async def test_a_drain_lets_queries_end_and_takes_no_new_ones(autojump_clock):
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, RECORD)] if len(resolver.asked) > 2 else []

    answers: list[list[str]] = []

    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:

        async def over_udp() -> None:
            answers.append(texts(await pod.ask(ELSEWHERE)))

        async def over_tcp() -> None:
            async with await pod.connect() as stream:
                await stream.send_all(frame(dns.message.make_query(ELSEWHERE, "A").to_wire()))
                (reply,) = await read_frames(stream, 2)
                answers.append(texts(dns.message.from_wire(reply)))

        idle = await pod.connect()
        with capture_logs() as records:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(over_udp)
                nursery.start_soon(over_tcp)
                await trio.sleep(1)
                pod.serving.cancel()
                await trio.lowlevel.checkpoint()
                late = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                await late.sendto(dns.message.make_query(FQDN, "A").to_wire(), pod.target)
                pod.proxy.shut()
                began = trio.current_time()
                assert await idle.receive_some() == b""
                assert trio.current_time() == began
                # What had arrived is answered, what comes now is not.
                assert await late.recv(65535)
                late.close()
                with pytest.raises(OSError, match="all attempts to connect"):
                    await pod.connect()
                with pytest.raises(ConnectionRefusedError):
                    await pod.udp(dns.message.make_query(FQDN, "A").to_wire())
            pod.proxy.drained()
        await idle.aclose()
        assert answers == [[RECORD]] * 2
        lines = [record.message for record in records if record.scope == "ztunnel::dns::server"]
        assert lines == ["shutting down the DNS server", "dns server drained"]


@pytest.mark.parametrize("leaver", ["the older", "the newer"])
@pytest.mark.parametrize("busy", [False, True])
async def test_who_stays_on_the_address_gets_all_queries_once_the_other_is_shut(leaver, busy):
    async with (
        fake_resolver(silent) as resolver,
        running_pod(resolver.port, reuse_port=True) as older,
        running_pod(resolver.port, reuse_port=True, address=older.address) as newer,
    ):
        await trio.testing.wait_all_tasks_blocked()
        leaving, staying = (older, newer) if leaver == "the older" else (newer, older)
        if busy:
            # What keeps its socket open.
            leaving.proxy._waiting.add((("127.0.0.1", 1), b""))
        leaving.serving.cancel()
        await trio.lowlevel.checkpoint()
        leaving.proxy.shut()
        assert bool(leaving.proxy._sockets.datagrams) is busy
        for _ in range(100):
            assert texts(await staying.ask(FQDN))
        assert staying.counted("istio_dns_requests_total") == 100


# -- for SOCKS5 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version", "address"),
    [
        (FQDN, 4, "10.96.0.1"),
        ("productpage", 6, "fd96::1"),
        ("www.google.com", 6, None),
        ("elsewhere.example", 4, "9.9.9.9"),
        ("1.2.3.4", 4, "1.2.3.4"),
        ("", 4, None),
        ("no..name", 4, None),
        ("é", 4, None),
    ],
)
async def test_first_address(name, version, address):
    behave = answer_with("elsewhere.example. 5 IN CNAME there.example.", "there.example. 5 IN A 9.9.9.9")
    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        found = await pod.resolver.first_address(name, version)
    assert found == (ip_address(address) if address else None)


async def test_first_address_over_tcp_where_needed():
    def behave(query: bytes, over_tcp: bool) -> Iterable[bytes]:
        return [reply_to(query, RECORD) if over_tcp else reply_to(query, truncated=True)]

    async with fake_resolver(behave) as resolver, running_pod(resolver.port) as pod:
        assert await pod.resolver.first_address(ELSEWHERE, 4) == ip_address("9.9.9.9")


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, dns.rcode.NOERROR])
async def test_no_first_address(rcode):
    async with fake_resolver(answer_with(rcode=rcode)) as resolver, running_pod(resolver.port) as pod:
        assert await pod.resolver.first_address(ELSEWHERE, 4) is None


async def test_no_first_address_for_an_unknown_pod(autojump_clock):
    async with fake_resolver(silent) as resolver, running_pod(resolver.port, known=False) as pod:
        assert await pod.resolver.first_address(FQDN, 4) is None


async def test_a_taken_port_is_said_and_leaves_nothing_open():
    async with fake_resolver(silent) as resolver, running_pod(resolver.port) as pod:
        before = open_descriptors()
        with pytest.raises(OSError, match=f"failed to bind to address {pod.address}"):
            await open_dns_sockets(pod.address, HostSockets(), mark=None, reuse_port=False)
        assert open_descriptors() == before
