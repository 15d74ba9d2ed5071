"""Connections that cannot be established at once: who is asked next, who is left alone, what is counted.

A data plane in this process, with SOCKS5 as the way in; its endpoints are played by the tests on addresses
127.0.1.x, at the HBONE port, in a network namespace of the tests' own.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from tests.support.data_plane import (
    Control,
    echo,
    read_all,
    running_plane,
    server,
    via_socks,
)
from tests.support.logs import capture_logs
from tests.support.played_endpoints import (
    HERE,
    HOSTNAME,
    PORT,
    VIP,
    Serve,
    endpoint,
    play,
    service,
)
from tests.support.raw_hbone import RawHbone, answer_all
from ztunnel.bounds import Bounds, ConnectionBounds, TunnelBounds
from ztunnel.messages import CertificateForgotten, CertificateIssued, CertificateWanted
from ztunnel.model.identity import Identity
from ztunnel.pb.istio import workload as pbw
from ztunnel.proxy import outbound
from ztunnel.sockets import dial

IMPATIENT = Bounds(connection=ConnectionBounds(try_timeout=0.2))
PROBING = Bounds(tunnel=TunnelBounds(probe_after=0.1, probe_timeout=0.2))
REFUSED_STREAM = 7


async def ask(ip: str = VIP, port: int = PORT, data: bytes = b"hello") -> bool:
    """Whether one request through the pod is answered."""
    async with await via_socks(port, ip) as stream:
        try:
            with trio.fail_after(10):
                await stream.send_all(data)
                await stream.send_eof()
                return await read_all(stream) == data
        except trio.BrokenResourceError:
            return False


def answering(status: int) -> Serve:
    async def serve(connection: RawHbone) -> None:
        await answer_all(connection, status)

    return serve


async def close_at_the_first_request(connection: RawHbone) -> None:
    await connection.until(lambda: any(stream.headers for stream in connection.streams.values()))


async def counters(control: Control) -> dict[str, int]:
    """What was counted once every connection has ended."""
    with trio.fail_after(10):
        while True:
            report = await control.report()
            total: Counter[str] = Counter()
            for sample in report.samples:
                total[sample.family] += int(sample.value)
            found = {
                name: total[f"istio_tcp_connections_{name}_total"] for name in ("opened", "closed", "failed")
            }
            if found["opened"] == found["closed"]:
                return found
            await trio.sleep(0.01)


def complete(lines) -> list[str | None]:
    """The errors of the access log lines of outgoing connections."""
    return [
        line.fields.get("error")
        for line in lines
        if line.message == "connection complete" and line.fields["direction"] == "outbound"
    ]


async def logged(lines, count: int) -> None:
    """Wait for the access log lines of so many outgoing connections."""
    with trio.fail_after(10):
        while len(complete(lines)) < count:  # noqa: ASYNC110 - nothing tells when a line was logged
            await trio.sleep(0.01)


def tried(lines) -> list[str]:
    return [str(line.fields["error"]) for line in lines if line.message == "trying another endpoint"]


FAILING: dict[str, tuple[Serve | None, str]] = {
    "refuses the connection": (None, "io error: Connection refused (os error 111)"),
    "has an application that refuses": (answering(503), "http status: 503 Service Unavailable"),
    "closes the tunnel": (close_at_the_first_request, "h2 failed: "),
    "is a stranger": (answer_all, "io error: "),
}


@pytest.mark.parametrize("how", FAILING)
async def test_another_endpoint_takes_what_one_could_not(how):
    serve, error = FAILING[how]
    account = "stranger" if how == "is a stranger" else "web"
    async with running_plane(HERE) as control, AsyncExitStack() as stack:
        # Everything goes to the first endpoint while it is not avoided.
        await control.apply(service(), endpoint(1, capacity=1), endpoint(2, capacity=0))
        bad = None
        if serve is not None:
            bad = await stack.enter_async_context(play(control, 1, serve, account))
        good = await stack.enter_async_context(play(control, 2))
        await control.apply(endpoint(2, capacity=1), endpoint(1, capacity=4_000_000))
        with capture_logs("info") as lines:
            assert await ask()
            await logged(lines, 1)
        assert [text.startswith(error) for text in tried(lines)] == [True]
        assert complete(lines) == [None]
        assert good.requests == 1
        if bad is not None:
            assert bad.accepted == 1
        assert await counters(control) == {"opened": 2, "closed": 2, "failed": 1}


async def test_a_large_request_sent_before_anybody_took_it_arrives_whole():
    async with running_plane(HERE) as control, play(control, 1, answering(503)), play(control, 2) as good:
        await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
        assert await ask(data=bytes(range(256)) * 4096)
        assert good.requests == 1


async def test_a_plain_endpoint_that_refuses_is_passed_over_too():
    async with running_plane(HERE) as control, server(echo, "127.0.1.2") as port:
        plain: dict[str, Any] = {"tunnel_protocol": pbw.TunnelProtocol.NONE}
        ports: dict[str, Any] = {
            "services": {
                f"default/{HOSTNAME}": pbw.PortList(ports=[pbw.Port(service_port=80, target_port=port)])
            }
        }
        await control.apply(
            service(), endpoint(1, capacity=4_000_000, **plain, **ports), endpoint(2, **plain, **ports)
        )
        assert await ask()
        assert await counters(control) == {"opened": 2, "closed": 2, "failed": 1}


@pytest.mark.parametrize("status", [401, 400])
async def test_an_answer_about_the_request_itself_is_final(status):
    async with (
        running_plane(HERE) as control,
        play(control, 1, answering(status)) as first,
        play(control, 2, answering(status)) as second,
    ):
        await control.apply(service(), endpoint(1), endpoint(2))
        with capture_logs("info") as lines:
            assert not await ask()
            await logged(lines, 1)
        assert first.requests + second.requests == 1
        assert [str(text)[:16] for text in complete(lines)] == [f"http status: {status}"]
        assert await counters(control) == {"opened": 1, "closed": 1, "failed": 1}


async def test_each_endpoint_is_asked_once_and_the_last_failure_is_told():
    async with running_plane(HERE) as control, play(control, 1, answering(503)) as one:
        await control.apply(service(), endpoint(1), endpoint(2))
        with capture_logs("info") as lines:
            assert not await ask()
            await logged(lines, 1)
        assert one.requests == 1
        assert len(tried(lines)) == 1
        assert len(complete(lines)) == 1
        assert await counters(control) == {"opened": 2, "closed": 2, "failed": 2}


async def test_no_more_than_three_are_asked():
    async with running_plane(HERE) as control, AsyncExitStack() as stack:
        played = [
            await stack.enter_async_context(play(control, number, answering(503))) for number in range(1, 7)
        ]
        await control.apply(service(), *(endpoint(number) for number in range(1, 7)))
        assert not await ask()
        assert sorted(one.requests for one in played) == [0, 0, 0, 1, 1, 1]


async def test_a_single_endpoint_is_asked_once():
    async with running_plane(HERE) as control, play(control, 1, answering(503)) as only:
        await control.apply(service(), endpoint(1))
        assert not await ask()
        assert only.requests == 1
        assert await counters(control) == {"opened": 1, "closed": 1, "failed": 1}


async def test_an_endpoint_that_failed_is_avoided_for_a_while(autojump_clock):
    async with (
        running_plane(HERE, Bounds(connection=ConnectionBounds(ejection_time=1.0))) as control,
        play(control, 1, answering(503)) as bad,
        play(control, 2) as good,
    ):
        await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
        for _ in range(5):
            assert await ask()
        assert (bad.requests, good.requests) == (1, 5)
        await trio.sleep(1.1)
        assert await ask()
        assert bad.requests == 2


async def test_an_endpoint_that_failed_is_used_when_there_is_no_other():
    async with running_plane(HERE) as control:
        await control.apply(service(), endpoint(1))
        assert not await ask()
        async with play(control, 1):
            assert await ask()


async def test_strict_locality_is_kept_when_its_only_endpoint_fails():
    strict = pbw.LoadBalancing(
        routing_preference=[pbw.LoadBalancingScope.ZONE], mode=pbw.LoadBalancingMode.STRICT
    )
    async with running_plane(HERE) as control, play(control, 1, answering(503)), play(control, 2) as far:
        await control.apply(
            service(load_balancing=strict), endpoint(1), endpoint(2, locality=pbw.Locality(zone="far"))
        )
        assert not await ask()
        assert far.accepted == 0


async def test_a_stream_refused_unseen_goes_to_the_same_endpoint_in_a_new_tunnel():
    async def refuse_on_the_first_tunnel(connection: RawHbone) -> None:
        if played.accepted > 1:
            await answer_all(connection)
            return
        await connection.until(lambda: connection.streams and next(iter(connection.streams.values())).headers)
        (number,) = connection.streams
        connection.h2.reset_stream(number, REFUSED_STREAM)
        await connection.flush()
        await connection.until(lambda: connection.goaway)

    async with running_plane(HERE) as control, play(control, 1, refuse_on_the_first_tunnel) as played:
        await control.apply(service(), endpoint(1))
        with capture_logs("info") as lines:
            assert await ask()
            assert await ask()
            await logged(lines, 2)
        assert played.accepted == 2
        assert tried(lines) == []
        assert await counters(control) == {"opened": 2, "closed": 2, "failed": 0}


async def test_a_peer_that_refuses_every_stream_is_asked_three_times():
    async def refuse(connection: RawHbone) -> None:
        done: set[int] = set()
        while True:
            await connection.step()
            for number, stream in connection.streams.items():
                if stream.headers and number not in done:
                    done.add(number)
                    connection.h2.reset_stream(number, REFUSED_STREAM)
            await connection.flush()

    async with running_plane(HERE) as control, play(control, 1, refuse) as played:
        await control.apply(service(), endpoint(1))
        with capture_logs("info") as lines:
            assert not await ask()
            await logged(lines, 1)
        assert played.requests == 3
        assert complete(lines) == [
            "h2 failed: stream error received: refused stream before processing any application logic"
        ]


async def test_sixteen_connections_to_a_peer_that_takes_one_stream_are_all_served():
    served = 0
    everybody = trio.Event()

    async def hold() -> None:
        nonlocal served
        async with await via_socks(PORT, VIP) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            served += 1
            if served == 16:
                everybody.set()
            await everybody.wait()

    # h2 ends a connection on which more streams are opened than it allowed.
    async with running_plane(HERE) as control, play(control, 1, limit=1) as played:
        await control.apply(service(), endpoint(1))
        with capture_logs("info") as lines, trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(hold)
            await logged(lines, 16)
        assert complete(lines) == [None] * 16
        assert tried(lines) == []
        assert (played.accepted, played.requests) == (16, 16)


async def test_a_limit_that_the_peer_does_not_name_is_found_and_uses_up_no_attempt(autojump_clock):
    async def take_two(connection: RawHbone) -> None:
        """Refuses what comes while two are open, though its SETTINGS allow a hundred."""
        answered: set[int] = set()
        refused: set[int] = set()
        while True:
            await connection.step()
            for number, stream in connection.streams.items():
                if not stream.headers or number in answered or number in refused:
                    continue
                open_ones = [n for n in answered if not connection.streams[n].ended]
                if len(open_ones) < 2:
                    answered.add(number)
                    connection.h2.send_headers(number, [(":status", "200")])
                else:
                    refused.add(number)
                    connection.h2.reset_stream(number, REFUSED_STREAM)
            await connection.flush()

    def arrived() -> int:
        streams = [stream for one in played.connections for stream in one.streams.values()]
        return sum(bytes(stream.data) == b"hello" for stream in streams)

    async with (
        running_plane(HERE) as control,
        play(control, 1, take_two) as played,
        AsyncExitStack() as stack,
    ):
        await control.apply(service(), endpoint(1))
        with capture_logs("info") as lines, trio.fail_after(10):
            for count in range(9):
                stream = await stack.enter_async_context(await via_socks(PORT, VIP))
                await stream.send_all(b"hello")
                while arrived() <= count:  # noqa: ASYNC110 - nothing tells when the peer has read
                    await trio.sleep(0.01)
        assert complete(lines) == []
        assert tried(lines) == []
        assert played.accepted == 5
        # Each tunnel found its limit with one stream too many.
        assert played.requests == 9 + 4


@pytest.mark.parametrize("addressed", ["service", "pod"])
async def test_a_tunnel_that_had_worked_and_dies_is_replaced(addressed):
    async def serve_one(connection: RawHbone) -> None:
        if played.accepted > 1:
            await answer_all(connection)
        await connection.until(lambda: 1 in connection.streams)
        connection.h2.send_headers(1, [(":status", "200")])
        await connection.flush()
        await connection.until(lambda: connection.streams[1].ended)
        await connection.send(connection.streams[1], bytes(connection.streams[1].data), end=True)
        await connection.until(lambda: 3 in connection.streams)

    async with running_plane(HERE) as control, play(control, 1, serve_one) as played:
        await control.apply(service(), endpoint(1))
        ip = VIP if addressed == "service" else "127.0.1.1"
        with capture_logs("info") as lines:
            assert await ask(ip)
            assert await ask(ip)
            await logged(lines, 2)
        assert played.accepted == 2
        assert complete(lines) == [None, None]
        assert await counters(control) == {"opened": 2, "closed": 2, "failed": 0}


async def test_an_endpoint_that_never_answers_is_given_up(autojump_clock):

    async def say_nothing(connection: RawHbone) -> None:
        while True:
            await connection.step()

    async with (
        running_plane(HERE, Bounds(tunnel=TunnelBounds(answer_timeout=0.2))) as control,
        play(control, 1, say_nothing) as silent,
        play(control, 2),
    ):
        await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
        with capture_logs("info") as lines:
            assert await ask()
        assert tried(lines) == ["io error: no answer to CONNECT within 0.2 s"]
        assert silent.requests == 1


async def test_another_endpoint_of_the_waypoint_is_asked():
    reference = pbw.GatewayAddress(
        address=pbw.NetworkAddress(address=ip_address(VIP).packed), hbone_mtls_port=PORT
    )
    port = pbw.PortList(ports=[pbw.Port(service_port=80, target_port=15008)])
    behind: dict[str, Any] = {"services": {f"default/{HOSTNAME}": port}}
    async with running_plane(HERE) as control, play(control, 2) as good:
        await control.apply(
            service(),
            endpoint(1, capacity=4_000_000, **behind),
            endpoint(2, **behind),
            endpoint(3, services={}, waypoint=reference),
        )
        assert await ask("127.0.1.3", 80)
        assert good.requests == 1


async def test_the_addresses_of_a_name_are_tried_one_after_another(monkeypatch):
    async def resolve(self, hostname):
        return [ip_address("127.0.1.1"), ip_address("127.0.1.2")]

    monkeypatch.setattr("ztunnel.dataplane.data_plane.OnDemandResolver.resolve", resolve)
    async with running_plane(HERE) as control, play(control, 2) as good:
        await control.apply(service(), endpoint(1, addresses=[], hostname="web.example.com"))
        for _ in range(5):
            assert await ask()
        assert good.requests == 5


async def test_the_first_failure_is_told_when_the_service_vanishes_meanwhile():
    async def refuse_after_vanishing(connection: RawHbone) -> None:
        await connection.until(lambda: any(stream.headers for stream in connection.streams.values()))
        await control.apply(removed=[endpoint(1).name, endpoint(2).name])
        (number,) = connection.streams
        connection.h2.send_headers(number, [(":status", "503")], end_stream=True)
        await connection.flush()
        await connection.until(lambda: False, timeout=60)

    async with running_plane(HERE) as control, play(control, 1, refuse_after_vanishing):
        await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
        with capture_logs("info") as lines:
            assert not await ask()
            await logged(lines, 1)
        assert complete(lines) == ["http status: 503 Service Unavailable"]
        assert await counters(control) == {"opened": 1, "closed": 1, "failed": 1}


async def test_a_new_pod_at_an_old_address_gets_a_tunnel_of_its_own():
    async with running_plane(HERE) as control, play(control, 1) as played:
        await control.apply(service(), endpoint(1))
        assert await ask()
        assert await ask()
        assert played.accepted == 1
        await control.apply(endpoint(1, uid="cluster1//Pod/default/new"), removed=[endpoint(1).name])
        assert await ask()
        assert played.accepted == 2
        with trio.fail_after(10):
            await played.ended[0].wait()
        assert played.connections[0].goaway == [0]


async def test_a_tunnel_is_given_up_when_its_workload_moves_or_becomes_another():
    async with running_plane(HERE) as control, play(control, 1) as played, play(control, 2, account="other"):
        await control.apply(service(), endpoint(1))
        assert await ask()
        moved = {"uid": endpoint(1).name, "service_account": "other"}
        await control.apply(endpoint(2, **moved))
        assert await ask()
        assert played.requests == 1
        with trio.fail_after(10):
            await played.ended[0].wait()
        assert played.connections[0].goaway == [0]


@contextmanager
def black_hole(number: int, port: int = 15008) -> Iterator[None]:
    """An address whose port neither takes nor refuses connections: its queue is full."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((f"127.0.1.{number}", port))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            yield


async def test_an_endpoint_that_is_slow_to_reach_is_left_for_another(autojump_clock):
    with black_hole(1):
        async with running_plane(HERE, IMPATIENT) as control, play(control, 2) as good:
            await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
            with capture_logs("info") as lines:
                for _ in range(3):
                    assert await ask()
            assert tried(lines) == ["io error: not connected within 0.2 s"]
            assert good.requests == 3


@pytest.mark.parametrize("protocol", ["HBONE", "NONE"])
async def test_without_another_endpoint_a_slow_one_is_waited_for(autojump_clock, protocol):
    port = pbw.PortList(ports=[pbw.Port(service_port=80, target_port=8080)])
    fields: dict[str, Any] = {
        "tunnel_protocol": pbw.TunnelProtocol[protocol],
        "services": {f"default/{HOSTNAME}": port},
    }
    with black_hole(1, 15008 if protocol == "HBONE" else 8080):
        async with running_plane(
            HERE, Bounds(connection=ConnectionBounds(try_timeout=0.2, dial_timeout=0.6))
        ) as control:
            await control.apply(service(), endpoint(1, **fields))
            with capture_logs("info") as lines:
                assert not await ask()
                await logged(lines, 1)
            assert tried(lines) == []
            (error,) = complete(lines)
            assert error is not None
            assert error.endswith("deadline has elapsed")
            assert error.startswith(
                "connection timed out, maybe a NetworkPolicy" if protocol == "HBONE" else "io error"
            )
            assert await counters(control) == {"opened": 1, "closed": 1, "failed": 1}


@pytest.mark.parametrize("first", [b"", b"hello"])
async def test_a_refused_client_sees_a_reset_whether_or_not_it_has_said_something(first):
    async with running_plane(HERE) as control, play(control, 1, answering(401)):
        await control.apply(service(), endpoint(1))
        with capture_logs("info") as lines:
            async with await via_socks(PORT, VIP) as stream:
                if first:
                    await stream.send_all(first)
                with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
                    await read_all(stream)
            await logged(lines, 1)
        (error,) = complete(lines)
        assert error is not None
        assert "401" in error


async def test_the_time_that_a_silent_endpoint_had_before_counts(monkeypatch):
    given: list[float] = []

    async def connect(*args: Any, timeout: float, **more: Any) -> socket.socket:
        given.append(timeout)
        return await real_connect(*args, timeout=timeout, **more)

    real_connect = dial.connect
    monkeypatch.setattr(outbound, "connect", connect)
    port = pbw.PortList(ports=[pbw.Port(service_port=80, target_port=8080)])
    fields: dict[str, Any] = {
        "tunnel_protocol": pbw.TunnelProtocol.NONE,
        "services": {f"default/{HOSTNAME}": port},
    }
    bounds = Bounds(connection=ConnectionBounds(try_timeout=0.2, dial_timeout=0.6))
    with black_hole(1, 8080):
        async with running_plane(HERE, bounds) as control:
            await control.apply(service(), endpoint(1, **fields))
            assert not await ask()
    assert given == pytest.approx([0.2, 0.4])


async def test_a_tunnel_that_fell_silent_is_left_alone(autojump_clock):
    silent = trio.Event()

    async def fall_silent(connection: RawHbone) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_all, connection)
                await silent.wait()
                scope.cancel()
        await trio.sleep(60)

    async with (
        running_plane(HERE, PROBING) as control,
        play(control, 1, fall_silent) as first,
        play(control, 2),
    ):
        await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
        assert await ask()
        silent.set()
        with capture_logs("info") as lines:
            assert await ask()
            assert await ask()
        assert tried(lines) == ["h2 failed: no sign of life within 0.2 s"]
        assert first.accepted == 2, "a new tunnel to the same endpoint is tried first"


async def test_a_slow_application_behind_a_living_tunnel_is_waited_for(autojump_clock):

    async def answer_late(connection: RawHbone) -> None:
        with trio.move_on_after(0.8):
            while True:
                await connection.step()
        connection.h2.send_headers(1, [(":status", "200")])
        await connection.flush()
        await connection.until(lambda: connection.streams[1].ended)
        await connection.send(connection.streams[1], bytes(connection.streams[1].data), end=True)
        await connection.until(lambda: connection.goaway)

    async with (
        running_plane(HERE, PROBING) as control,
        play(control, 1, answer_late) as slow,
        play(control, 2) as other,
    ):
        await control.apply(service(), endpoint(1, capacity=4_000_000), endpoint(2))
        assert await ask()
        assert (slow.requests, other.requests) == (1, 0)


async def test_nobody_is_blamed_for_the_wait_for_our_own_certificate(autojump_clock):
    identity = Identity("cluster.local", "default", "default")
    async with running_plane(HERE, IMPATIENT) as control, play(control, 1) as one, play(control, 2) as two:
        await control.apply(service(), endpoint(1), endpoint(2))
        control.issue = False
        control.came.clear()
        await control.to_plane.send(CertificateForgotten(identity))

        async def issue_late() -> None:
            await control.wait_for(CertificateWanted, identity=identity)
            await trio.sleep(0.6)
            await control.to_plane.send(CertificateIssued(await control.ca.issue(identity)))

        with capture_logs("info") as lines:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(issue_late)
                assert await ask()
            await logged(lines, 1)
        assert tried(lines) == []
        assert one.accepted + two.accepted == 1
