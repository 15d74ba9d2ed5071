"""Endpoints of a service that the test itself serves, at 127.0.1.x on the HBONE port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

import trio
from h2.settings import SettingCodes, Settings

from tests.support.data_plane import CONFIG, Control, workload
from tests.support.raw_hbone import RawHbone, answer_all
from tests.support.raw_tls import KeyPair, RawTls, TlsAlertError, TlsChoices, TlsEndError
from ztunnel.messages import Resource
from ztunnel.model.address import SocketAddress
from ztunnel.pb.istio import workload as pbw

# The pod's own HBONE port must leave 127.0.1.x to the endpoints.
HERE = replace(CONFIG, inbound_addr=SocketAddress(ip_address("127.0.0.1"), 15008))
VIP, PORT = "10.96.0.1", 80
HOSTNAME = "web.default.svc.cluster.local"


def endpoint(number: int, uid: str = "", **fields) -> Resource:
    """Returns an endpoint of the service at 127.0.1.<number>."""
    name = f"e{number}"
    base = {
        "uid": uid or f"cluster1//Pod/default/{name}",
        "name": name,
        "service_account": "web",
        "addresses": [ip_address(f"127.0.1.{number}").packed],
        "workload_name": name,
        "services": {f"default/{HOSTNAME}": pbw.PortList(ports=[pbw.Port(service_port=80, target_port=80)])},
    }
    return workload(**(base | fields))


def service(**fields) -> Resource:
    made = pbw.Service(
        name="web",
        namespace="default",
        hostname=HOSTNAME,
        addresses=[pbw.NetworkAddress(address=ip_address(VIP).packed)],
        ports=[pbw.Port(service_port=PORT, target_port=80)],
        **fields,
    )
    return Resource(f"default/{HOSTNAME}", bytes(pbw.Address(service=made)))


class Played:
    """An endpoint that the test serves: its connections, and how many streams came."""

    def __init__(self) -> None:
        self.connections: list[RawHbone] = []
        self.accepted = 0
        self.ended: list[trio.Event] = []

    @property
    def requests(self) -> int:
        return sum(1 for one in self.connections for stream in one.streams.values() if stream.headers)


Serve = Callable[[RawHbone], Awaitable[None]]


@asynccontextmanager
async def play(
    control: Control,
    number: int,
    serve: Serve = answer_all,
    account: str = "web",
    limit: int | None = None,
    tunnels: int | None = None,
) -> AsyncIterator[Played]:
    """limit: streams on a tunnel. tunnels: how many connections it serves; others it only accepts."""
    root = KeyPair(control.ca.root._key, control.ca.root.certificate)
    choices = TlsChoices(root.issue(f"spiffe://cluster.local/ns/default/sa/{account}"))
    played = Played()

    async def one(stream: trio.SocketStream) -> None:
        played.accepted += 1
        ended = trio.Event()
        played.ended.append(ended)
        async with stream:
            try:
                if tunnels is not None and played.accepted > tunnels:
                    await trio.sleep_forever()
                tls = RawTls(stream, choices, server=True)
                await tls.handshake()
                connection = RawHbone(tls, server=True)
                played.connections.append(connection)
                if limit is not None:
                    values = {SettingCodes.MAX_CONCURRENT_STREAMS: limit}
                    connection.h2.local_settings = Settings(client=False, initial_values=values)
                await connection.start()
                await serve(connection)
            except (TlsAlertError, TlsEndError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                ended.set()

    listeners = await trio.open_tcp_listeners(15008, host=f"127.0.1.{number}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, listeners)
        yield played
        nursery.cancel_scope.cancel()
