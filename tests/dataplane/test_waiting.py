"""Connections that are not established yet are shown with what they wait for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import trio

from tests.support.data_plane import CONFIG, UID, Control, echo, running_plane, server, via_socks, workload
from ztunnel.messages import CertificateWanted, Topic
from ztunnel.model.address import SocketAddress
from ztunnel.proxy.phase import Phase

PATIENT = replace(CONFIG, workload_wait=60.0)
HERE = replace(CONFIG, inbound_addr=SocketAddress(ip_address("127.0.0.1"), 15008))
SILENT = "127.0.0.9"
"""An address whose port 15008 takes connections and says nothing."""


async def waiting(control: Control, phase: Phase, **parameters: str) -> dict[str, Any]:
    """The one connection that waits for this, as soon as there is one."""
    with trio.fail_after(60):
        while True:
            found = await control.ask(Topic.CONNECTIONS, state="open", **parameters)
            those = [one for one in found if one.get("waitsFor") == phase.value]
            if those:
                assert len(those) == 1
                return dict(those[0])
            await trio.sleep(0.01)


async def open_ones(control: Control, count: int) -> list[dict[str, Any]]:
    """The open connections, as soon as there are so many."""
    with trio.fail_after(60):
        while True:
            found = await control.ask(Topic.CONNECTIONS, state="open")
            if len(found) == count:
                return found
            await trio.sleep(0.01)


@asynccontextmanager
async def to_15008():
    async with await trio.open_tcp_stream("127.0.0.1", 15008) as stream:
        yield stream.socket.getsockname()[1]


async def test_for_the_control_plane_to_tell_of_the_pod():
    async with running_plane(PATIENT) as control, server(echo) as port:
        await control.apply(removed=[UID])
        async with await via_socks(port), to_15008() as peer:
            found = await open_ones(control, 2)
            assert {one["waitsFor"] for one in found} == {Phase.WORKLOAD.value}
            shown = {one["direction"]: one for one in found}
            assert shown["outbound"]["destination"] == f"127.0.0.1:{port}"
            assert shown["inbound"]["client"] == f"127.0.0.1:{peer}"
            assert [one["id"] for one in await control.ask(Topic.CONNECTIONS, id=found[0]["id"])] == [
                found[0]["id"]
            ]
            report = await control.report()
            [pod] = report.pods
            assert (pod.inbound, pod.outbound) == ((), ()), "the dump shows what it always did"
            sockets = await control.ask(Topic.SOCKETS)
            assert {one["connection"] for one in sockets if "connection" in one} == {
                one["id"] for one in found
            }
            await control.apply(workload())
        await open_ones(control, 0)


async def test_for_a_certificate():
    async with running_plane() as control, server(echo) as port:
        control.issue = False
        await control.apply(workload(trust_domain="new.example"))
        async with await via_socks(port):
            assert (await waiting(control, Phase.CERTIFICATE))["pod"] == "default/local"
            wanted = next(one for one in reversed(control.came) if isinstance(one, CertificateWanted))
            control.issue = True
            await control.take(wanted)
        await open_ones(control, 0)


async def test_for_the_peer_of_an_incoming_tunnel_to_finish_the_handshake():
    async with running_plane() as control, to_15008() as peer:
        shown = await waiting(control, Phase.HANDSHAKE)
        assert (shown["direction"], shown["client"]) == ("inbound", f"127.0.0.1:{peer}")
        assert shown["destination"] == "127.0.0.1:15008"


async def test_for_the_peer_of_an_outgoing_tunnel_to_finish_the_handshake():
    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.Event().wait()

    async with running_plane(HERE) as control, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(15008, host=SILENT)
        nursery.start_soon(trio.serve_listeners, say_nothing, listeners)
        peer = workload(uid="cluster1//Pod/default/peer", name="peer", addresses=[ip_address(SILENT).packed])
        await control.apply(peer)
        async with await via_socks(80, SILENT):
            shown = await waiting(control, Phase.HANDSHAKE, peer="default/peer")
            assert (shown["direction"], shown["nextHop"]) == ("outbound", f"{SILENT}:15008")
        nursery.cancel_scope.cancel()
