"""A data plane in this process, fed by messages; applications talk through it over SOCKS5 and tunnels."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import trio

from tests.support.data_plane import (
    CONFIG,
    deny_port,
    echo,
    is_closed,
    read_all,
    running_plane,
    server,
    via_socks,
    workload,
)
from tests.support.logs import capture_logs
from tests.support.traffic import reset
from ztunnel.dataplane import data_plane
from ztunnel.messages import Drain
from ztunnel.observe.filter import Level
from ztunnel.observe.logging import LogRecord
from ztunnel.tls import accelerated


def totals(report, family: str):
    return sum(sample.value for sample in report.samples if sample.family == family)


async def test_a_request_goes_through_a_tunnel_and_back(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        with capture_logs("trace") as lines:
            async with await via_socks(port) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await read_all(stream) == b"hello"
            await trio.sleep(0.1)
        complete = [line for line in lines if line.message == "connection complete"]
        assert [line.fields["direction"] for line in complete] == ["inbound", "outbound"]
        assert {line.fields["src.identity"] for line in complete} == {
            "spiffe://cluster.local/ns/default/sa/default"
        }
        report = await control.report()
        assert totals(report, "istio_tcp_received_bytes_total") == 10
        assert totals(report, "istio_tcp_connections_opened_total") == 2
        assert totals(report, "istio_tcp_connections_closed_total") == 2


async def test_policy_refuses_with_401(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        await control.policies(deny_port(port))
        with capture_logs("trace") as lines:
            async with await via_socks(port) as stream:
                assert await is_closed(stream)
            await trio.sleep(0.1)
        errors = [line.fields["error"] for line in lines if line.message == "connection complete"]
        assert errors == [
            "connection closed due to policy rejection: explicitly denied by: default/deny",
            "http status: 401 Unauthorized",
        ]


async def refusal(port: int) -> list[LogRecord]:
    """The lines about a connection that is refused on both sides."""
    with capture_logs("trace") as lines:
        async with await via_socks(port) as stream:
            assert await is_closed(stream)
        await trio.sleep(0.1)
    return [line for line in lines if line.message in ("connection complete", "refused")]


async def test_a_denial_is_explained_on_both_sides_right_after_the_access_line(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        await control.policies(deny_port(port))
        lines = await refusal(port)
    shown = [(line.message, line.level, line.fields["code"]) for line in lines]
    assert shown == [
        ("connection complete", Level.ERROR, "ZT-POL-001"),
        ("refused", Level.ERROR, "ZT-POL-001"),
        ("connection complete", Level.ERROR, "ZT-HBN-010"),
        ("refused", Level.ERROR, "ZT-HBN-010"),
    ]
    for access, why in (lines[:2], lines[2:]):
        for name in ("connection", "src.addr", "dst.addr", "direction"):
            assert access.fields[name] == why.fields[name]
    assert lines[0].fields["connection"] != lines[2].fields["connection"]
    assert lines[1].fields["policy"] == "default/deny"
    assert "Rule 0 of default/deny denies it" in lines[1].fields["why"]
    assert "an authorization policy there does not allow" in lines[3].fields["why"]
    # the two explanations share a trace id, by which one finds the other
    [ours, theirs] = [next(s.fields["id"] for s in line.spans if "id" in s.fields) for line in lines[1::2]]
    assert ours == theirs


async def test_an_application_that_is_down_is_explained_on_both_sides():
    async with running_plane(), server(echo) as port:
        pass
    async with running_plane() as _:
        lines = await refusal(port)
    assert [line.fields["code"] for line in lines] == ["ZT-NET-012", "ZT-NET-012", "ZT-HBN-010", "ZT-HBN-010"]
    assert f"Nothing listens on 127.0.0.1:{port} in pod default/local" in lines[1].fields["why"]
    assert "pod default/local was reached, and its application was not" in lines[3].fields["why"]


async def test_a_dry_run_refusal_is_told_once_a_connection_and_counted(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        await control.policies(deny_port(port, dry_run=True))
        with capture_logs("info") as lines:
            async with await via_socks(port) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await read_all(stream) == b"hello"
            await trio.sleep(0.1)
        [told] = [line for line in lines if line.message.startswith("a dry-run policy would refuse")]
        assert (told.level, told.fields["policy"]) == (Level.INFO, "default/deny")
        report = await control.report()
        counted = [s for s in report.samples if s.family == "ztunnel_dry_run_verdicts_total"]
        assert [(s.labels, s.value) for s in counted] == [(("default/deny", "deny"), 1)]


async def test_a_change_of_policy_closes_what_it_would_refuse(autojump_clock):
    async with running_plane() as control, server(echo) as port:
        async with await via_socks(port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some(100) == b"hello"
            with capture_logs("trace") as lines:
                await control.policies(deny_port(port))
                assert await is_closed(stream)
                await trio.sleep(0.1)
        assert "connection closed due to policy change" in [line.fields.get("error") for line in lines]


async def test_a_megabyte_each_way_at_once():
    payload = bytes(range(256)) * 4096 * 8

    async with running_plane(), server(echo) as port, await via_socks(port) as stream:
        received = []

        async def read():
            received.append(await read_all(stream))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await stream.send_all(payload)
                await stream.send_eof()
        assert received == [payload]


async def test_connections_to_one_destination_share_a_tunnel():
    async with running_plane() as control, server(echo) as port:
        streams = []
        for _ in range(20):
            stream = await via_socks(port)
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"
            streams.append(stream)
        report = await control.report()
        [pod] = report.pods
        assert len(pod.outbound) == 20
        assert len({inbound.src for inbound in pod.inbound}) == 1
        for stream in streams:
            await stream.aclose()


async def test_a_bug_in_a_connection_is_told_with_its_code_and_the_connections_id(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("a bug on purpose")

    async with running_plane(), server(echo) as port:
        with capture_logs("warn") as lines, monkeypatch.context() as patches:
            patches.setattr("ztunnel.proxy.outbound.route", broken)
            async with await via_socks(port) as stream:
                assert await is_closed(stream)
    told = {line.message: dict(line.fields) for line in lines}
    bug, access = told["a connection's task failed; the connection is closed"], told["connection failed"]
    assert bug["code"] == access["code"] == "ZT-INT-002"
    assert bug["connection"] == access["connection"] != ""


async def test_a_bug_before_a_connection_is_known_spares_its_neighbours_in_the_tunnel(monkeypatch):
    async def use() -> None:
        async with await via_socks(port) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"

    def broken(value: bytes | None) -> str | None:
        raise AssertionError("a bug on purpose")

    async with running_plane() as control, server(echo) as port:
        neighbour = await via_socks(port)
        await neighbour.send_all(b"1")
        assert await neighbour.receive_some(1) == b"1"
        with capture_logs("error") as lines, monkeypatch.context() as patches:
            patches.setattr("ztunnel.decide.headers.parse_forwarded_host", broken)
            async with await via_socks(port) as stream:
                await stream.send_all(b"x")
                assert await is_closed(stream)
        assert "a connection's task failed; the connection is closed" in [line.message for line in lines]
        await neighbour.send_all(b"2")
        assert await neighbour.receive_some(1) == b"2"
        [pod] = (await control.report()).pods
        assert len(pod.inbound) == 1
        await use()
        await neighbour.aclose()


async def test_an_unknown_workload_is_refused_after_the_wait():
    async with running_plane() as control, server(echo) as port:
        await control.apply(removed=[workload().name])
        with capture_logs("warn") as lines:
            async with await via_socks(port) as stream:
                assert await is_closed(stream)
        assert [line.fields.get("error") for line in lines if line.scope == "access"] == [
            "failed to fetch information about local workload: default.default (local)"
        ]


@pytest.mark.parametrize("transparent", [False, None])
async def test_a_redirection_that_is_missing_is_told_unless_it_may_be_tproxy(transparent):
    config = replace(CONFIG, enable_orig_src=transparent)
    with capture_logs("info") as lines:
        async with running_plane(config), await trio.open_tcp_stream("127.0.0.1", 15001) as stream:
            assert await is_closed(stream)
    refused = [line.fields["error"] for line in lines if line.scope == "access"]
    assert refused == ["attempted recursive call to ourselves"]
    told = [line for line in lines if line.message.startswith("failed to read SO_ORIGINAL_DST: ")]
    spoofing = [line.fields["transparent"] for line in lines if line.message == "listener established"]
    if not told and not any(spoofing):
        pytest.skip("connection tracking runs on this machine")
    assert len(told) == (0 if any(spoofing) else 1)
    assert all(str(line.fields["local"]) == "127.0.0.1:15001" for line in told)


async def test_a_drain_lets_connections_end_and_then_ends_the_plane(autojump_clock):
    async with running_plane(CONFIG) as control, server(echo) as port:
        stream = await via_socks(port)
        await stream.send_all(b"1")
        assert await stream.receive_some(1) == b"1"
        await control.to_plane.send(Drain(30.0))
        await trio.sleep(0.1)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", 15080)
        await stream.send_all(b"2")
        assert await stream.receive_some(1) == b"2"
        await stream.aclose()
        await control.drained()


async def test_a_drain_cuts_what_outlives_its_deadline():
    async with running_plane(CONFIG) as control, server(echo) as port:
        stream = await via_socks(port)
        await stream.send_all(b"1")
        assert await stream.receive_some(1) == b"1"
        with capture_logs("trace") as lines:
            await control.to_plane.send(Drain(0.3))
            await control.drained()
        errors = [line.fields.get("error") for line in lines if line.message == "connection complete"]
        assert errors
        assert set(errors) == {"connection closed due to connection drain"}
        await stream.aclose()


async def test_a_refused_handshake_is_explained_beside_the_access_log(autojump_clock):
    async with running_plane():
        with capture_logs("info") as lines:
            async with await trio.open_tcp_stream("127.0.0.1", 15008) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: pod\r\n\r\n")
                with trio.move_on_after(5), contextlib.suppress(trio.BrokenResourceError):
                    await read_all(stream)
            await trio.sleep(0.1)
        [failed] = [line for line in lines if line.message == "connection failed"]
        assert failed.fields["error"].startswith("tls handshake error: ")
        [why] = [line for line in lines if line.message == "refused"]
        assert why.fields["code"].startswith("ZT-TLS-")
        assert "TLS" in why.fields["why"]


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_probe_of_the_hbone_port_that_says_nothing_is_no_warning(autojump_clock, how):
    async with running_plane():
        with capture_logs() as records:
            stream = await trio.open_tcp_stream("127.0.0.1", 15008)
            if how == "reset":
                reset(stream)
            else:
                await stream.aclose()
            with trio.fail_after(20):
                while True:
                    if any(
                        record.message == "a connection ended before its first byte" for record in records
                    ):
                        break
                    await trio.sleep(0.02)
        assert not [record for record in records if record.level <= Level.INFO]


async def test_half_a_handshake_is_still_a_warning(autojump_clock):
    async with running_plane():
        with capture_logs() as records:
            async with await trio.open_tcp_stream("127.0.0.1", 15008) as stream:
                await stream.send_all(b"\x16\x03\x01")
            with trio.fail_after(20):
                while True:
                    if any("tls handshake eof" in str(record.fields.get("error")) for record in records):
                        break
                    await trio.sleep(0.02)


@pytest.mark.parametrize("wanted", [True, False])
async def test_tls_in_python_is_said_once_and_carries_the_same(wanted, monkeypatch, autojump_clock):
    monkeypatch.setattr(data_plane, "unavailable", lambda: "it was lost")
    monkeypatch.setattr(accelerated, "unavailable", lambda: "it was lost")
    config = replace(CONFIG, tls_accelerator=wanted)
    with capture_logs("info") as lines:
        async with running_plane(config), server(echo) as port, await via_socks(port) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await read_all(stream) == b"hello"
    said = [line.message for line in lines if "TLS" in line.message]
    assert said == (["TLS reads and writes are Python's: it was lost"] if wanted else [])


async def test_tls_is_pythons_where_the_compiled_part_is_switched_off(monkeypatch, autojump_clock):
    def never(*_: object) -> None:
        raise AssertionError("the compiled part was used")

    for name in ("receive", "send", "flush"):
        monkeypatch.setattr(accelerated.AcceleratedRecords, name, never)
    async with (
        running_plane(replace(CONFIG, tls_accelerator=False)),
        server(echo) as port,
        await via_socks(port) as stream,
    ):
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await read_all(stream) == b"hello"
