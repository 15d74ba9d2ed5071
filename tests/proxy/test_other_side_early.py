"""As test_other_side.py, for waits before and after the relay: each ends when the other side's end is seen.

The bounds of these waits are five minutes here, so that nothing else can end them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
import trio
from pyroute2 import IPRoute

from tests.support.data_plane import CONFIG, Control, running_plane, via_socks, workload
from tests.support.hostile_peer import dial, send_all
from tests.support.logs import capture_logs
from tests.support.namespaces import needs_namespaces
from tests.support.other_side import (
    SOON,
    fill,
    gave_up,
    nobody_accepts,
    until,
    until_none_is_open,
    until_open,
)
from tests.support.played_endpoints import HERE, PORT, VIP, endpoint, play, service
from tests.support.played_gateway import ENDPOINT, PlayedGateway, played_gateway
from tests.support.traffic import reset
from ztunnel.bounds import DEFAULTS
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.nftables import apply_rules
from ztunnel.dns.resolv_conf import read_resolv_conf
from ztunnel.hbone import ErrorCode, HboneClient
from ztunnel.messages import CertificateWanted, ResourceDemanded
from ztunnel.model.address import SocketAddress
from ztunnel.pb.istio import workload as pbw

MINUTES = 300.0
PATIENT = replace(
    DEFAULTS,
    connection=replace(
        DEFAULTS.connection,
        dial_timeout=MINUTES,
        demand_timeout=MINUTES,
        refused_wait=MINUTES,
        handshake_timeout=MINUTES,
        inner_linger=MINUTES,
        socks_timeout=MINUTES,
    ),
    dns=replace(DEFAULTS.dns, lookup_timeout=MINUTES),
)
ON_DEMAND = replace(CONFIG, xds_on_demand=True)


async def test_on_demand_xds_of_a_client() -> None:
    async with running_plane(ON_DEMAND, PATIENT) as control:
        with capture_logs() as records:
            stream = await via_socks(80, "127.0.0.77")
            await control.wait_for(ResourceDemanded)
            reset(stream)
            await until_none_is_open(control)
        assert len(gave_up(records)) == 1


@pytest.mark.parametrize("how", ["stream", "tunnel"])
async def test_on_demand_xds_of_a_request(how: str) -> None:
    async with running_plane(ON_DEMAND, PATIENT) as control:
        tls = await dial(control)
        hbone = HboneClient()
        number = hbone.connect("nobody.example.com:80", [])
        await send_all(tls, b"".join(hbone.take_output()))
        with capture_logs() as records:
            await control.wait_for(ResourceDemanded)
            if how == "stream":
                hbone.reset(number, ErrorCode.CANCEL)
                await send_all(tls, b"".join(hbone.take_output()))
            else:
                tls.socket.shutdown(socket.SHUT_RDWR)
            with trio.fail_after(SOON):
                await until(lambda: gave_up(records))
        tls.close()


@contextmanager
def silent_nameservers() -> Iterator[list[socket.socket]]:
    """Those of /etc/resolv.conf, in this network namespace, which take queries and answer none."""
    with IPRoute() as routes, ExitStack() as stack:
        loopback = routes.link_lookup(ifname="lo")[0]
        servers = []
        for ip in read_resolv_conf().nameservers or (ip_address("127.0.0.1"),):
            if not ip.is_loopback:
                routes.addr("add", index=loopback, address=str(ip), prefixlen=ip.max_prefixlen)
                stack.callback(
                    routes.addr, "del", index=loopback, address=str(ip), prefixlen=ip.max_prefixlen
                )
            family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
            servers.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
            servers[-1].bind((str(ip), 53))
            servers[-1].setblocking(False)
        yield servers


@needs_namespaces
async def test_the_lookup_of_a_workloads_name() -> None:
    with silent_nameservers() as servers:
        async with running_plane(HERE, PATIENT) as control:
            await control.apply(service(), endpoint(1, addresses=[], hostname="web.example.com"))
            with capture_logs() as records:
                stream = await via_socks(PORT, VIP)
                with trio.fail_after(SOON):
                    await trio.lowlevel.wait_readable(servers[0])
                reset(stream)
                await until_none_is_open(control)
            assert len(gave_up(records)) == 1


async def until_no_socket_is_open(control: Control) -> None:
    with trio.fail_after(SOON):
        while True:
            samples = (await control.report()).samples
            if not sum(one.value for one in samples if one.family == "istio_tcp_sockets_open"):
                return
            await trio.sleep(0.05)


async def test_a_certificate_for_a_handshake() -> None:
    async with running_plane(HERE, PATIENT) as control:
        control.issue = False
        stream = await trio.open_tcp_stream("127.0.0.1", 15008)
        await control.wait_for(CertificateWanted)
        reset(stream)
        await until_no_socket_is_open(control)


async def test_a_socks_request_that_never_comes() -> None:
    async with running_plane(HERE, PATIENT) as control:
        stream = await trio.open_tcp_stream("127.0.0.1", 15080)
        await stream.send_all(b"\x05\x01\x00")
        assert await stream.receive_some(2) == b"\x05\x00"
        reset(stream)
        await until_no_socket_is_open(control)


@needs_namespaces
async def test_the_lookup_of_a_name_for_socks() -> None:
    dns = replace(HERE, dns_proxy_addr=SocketAddress(ip_address("127.0.0.1"), 15053))
    with silent_nameservers() as servers:
        async with running_plane(dns, PATIENT) as control:
            stream = await trio.open_tcp_stream("127.0.0.1", 15080)
            await stream.send_all(b"\x05\x01\x00\x05\x01\x00\x03\x0fweb.example.com\x00\x50")
            with trio.fail_after(SOON):
                await trio.lowlevel.wait_readable(servers[0])
            reset(stream)
            await until_no_socket_is_open(control)


async def test_the_dial_of_a_tunnel() -> None:
    async with (
        nobody_accepts("127.0.1.1", 15008),
        running_plane(HERE, PATIENT) as control,
    ):
        await control.apply(service(), endpoint(1))
        with capture_logs() as records:
            stream, other = await via_socks(PORT, VIP), await via_socks(PORT, VIP)
            await until_open(control, 2)
            reset(stream)
            await until_open(control, 1)
            reset(other)
            await until_none_is_open(control)
        assert len(gave_up(records)) == 2


async def test_room_on_a_tunnel() -> None:
    """The peer takes one stream on a tunnel, which is in use, and no other tunnel comes up."""
    async with running_plane(HERE, PATIENT) as control, play(control, 1, limit=1, tunnels=1) as played:
        await control.apply(service(), endpoint(1))
        first = await via_socks(PORT, VIP)
        await first.send_all(b"first")
        assert await first.receive_some() == b"first"
        with capture_logs() as records:
            second = await via_socks(PORT, VIP)
            with trio.fail_after(SOON):
                await until(lambda: played.accepted == 2)
            reset(second)
            await until_open(control, 1)
        assert len(gave_up(records)) == 1
        await first.send_all(b"goes on")
        assert await first.receive_some() == b"goes on"
        await first.aclose()


MARK = 0x539
CAPTURED = "127.0.0.9"
REDIRECTION = f"""table ip istio-ambient {{
  chain nat-output {{
    type nat hook output priority -100; policy accept;
    meta mark & 0xfff != {MARK:#x} ip daddr {CAPTURED} meta l4proto tcp redirect to :15006
  }}
}}
"""


def redirect() -> None:
    """From now on, in this network namespace, which ends with the module."""
    here = OwnedNamespace("here", os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    try:
        apply_rules(here, REDIRECTION)
    finally:
        here.close()


@needs_namespaces
async def test_the_dial_of_the_application_in_plaintext() -> None:
    """15006: what is sent to the pod is redirected there, and its application takes no connection."""
    async with (
        nobody_accepts(CAPTURED) as port,
        running_plane(replace(CONFIG, packet_mark=MARK), PATIENT) as control,
    ):
        redirect()
        await control.apply(workload(addresses=[ip_address(CAPTURED).packed]))
        with capture_logs() as records:
            stream = await trio.open_tcp_stream(CAPTURED, port)
            await until_open(control, 1)
            reset(stream)
            await until_none_is_open(control)
        [record] = gave_up(records)
        assert str(record.fields["dst.addr"]) == f"{CAPTURED}:{port}"


@asynccontextmanager
async def double_hbone(control: Control) -> AsyncIterator[PlayedGateway]:
    """The service of `service` is on another network; its gateway is at 127.0.1.1."""
    by_gateway: dict[str, Any] = {
        "network": "far",
        "addresses": [],
        "network_gateway": pbw.GatewayAddress(
            address=pbw.NetworkAddress(network="far", address=ip_address("127.0.1.1").packed),
            hbone_mtls_port=15008,
        ),
    }
    gateway = endpoint(1, network="far", service_account="gateway", services={})
    await control.apply(service(subject_alt_names=[str(ENDPOINT)]), gateway, endpoint(2, **by_gateway))
    async with played_gateway(control, "127.0.1.1") as played:
        yield played


@pytest.mark.parametrize("how", ["stream", "tunnel"])
async def test_the_end_of_an_inner_tunnel(how: str) -> None:
    """Both directions are over; the inner tunnel waits for its peer's end when the outer one dies."""
    async with running_plane(HERE, PATIENT) as control, double_hbone(control) as played:
        stream = await via_socks(PORT, VIP)
        inner = await played.inner.receive()
        await stream.send_all(b"request")
        await stream.send_eof()
        assert await inner.receive_some(100) == b"request"
        played.hold()
        inner.send(b"answer")
        inner.send_end()
        assert await stream.receive_some() == b"answer"
        assert await stream.receive_some() == b""
        await stream.aclose()
        # Nobody reads the end of the inner tunnel.
        await until_open(control, 1)
        if how == "stream":
            played.reset()
        else:
            played.cut()
        await until_none_is_open(control)


async def test_an_inner_tunnel_that_cannot_write_ends_with_its_client() -> None:
    async with running_plane(HERE, PATIENT) as control, double_hbone(control) as played:
        stream = await via_socks(PORT, VIP)
        await played.inner.receive()
        played.hold()
        await fill(stream)
        reset(stream)
        await until_none_is_open(control)
