"""On-demand xDS: before routing, ask the control plane for an address that the store does not know yet.

A missing address is demanded by key (``{network}/{ip}`` or ``{namespace}/{hostname}``), once for all
connections that wait for it. Afterwards routing uses what the store has then. A control plane that does not
answer in time delays the connection but does not fail it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ztunnel.decide.balance import find_address
from ztunnel.decide.headers import parse_authority
from ztunnel.messages import ResourceDemanded
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.state.store import MeshStore


class Demands:
    """The keys that connections of a data plane wait for.

    send: sends a demand to the control side.
    timeout: seconds after which a connection continues without an answer. The control side gives up a little
        earlier.
    """

    def __init__(self, store: MeshStore, send: Callable[[ResourceDemanded], None], timeout: float) -> None:
        self._timeout = timeout
        self._store = store
        self._send = send
        self._waiting: dict[str, trio.Event] = {}

    async def destination(self, address: SocketAddress, network: str) -> None:
        """Wait until the store has what the control plane knows of an address."""
        if find_address(self._store, network, address.ip, None) is None:
            await self._want(f"{network}/{address.ip}")

    async def authority(self, text: str, local: SocketAddress, workload: Workload, network: str) -> None:
        """The same for the authority of a CONNECT, if it is a hostname or another address than ``local``."""
        authority = parse_authority(text)
        if isinstance(authority, SocketAddress):
            if authority.ip != local.ip:
                await self.destination(authority, network)
        elif authority is not None and not self._store.services_by_hostname(authority.host):
            await self._want(f"{workload.namespace}/{authority.host}")

    def answered(self, key: str) -> None:
        """The control plane has answered for a key, or the control side has given up."""
        event = self._waiting.pop(key, None)
        if event is not None:
            event.set()

    async def _want(self, key: str) -> None:
        event = self._waiting.get(key)
        if event is None:
            event = self._waiting[key] = trio.Event()
            self._send(ResourceDemanded(key))
        with trio.move_on_after(self._timeout):
            await event.wait()
            return
        if self._waiting.get(key) is event:
            del self._waiting[key]
