"""On-demand xDS: asking the control plane for an address that the mesh does not hold yet, before deciding.

A lookup first tries the store. What is missing is demanded by key (``{network}/{ip}`` or
``{namespace}/{hostname}``), once however many connections wait for it, and then the decision is made with
what there is by then. A control plane that does not answer in time makes the connection slower, and nothing
else.
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
    """The keys that connections of a data plane wait for. ``send`` tells the control side.

    timeout: seconds after which a connection goes on without an answer; the control side gives up a little
        earlier.
    """

    def __init__(self, store: MeshStore, send: Callable[[ResourceDemanded], None], timeout: float) -> None:
        self._timeout = timeout
        self._store = store
        self._send = send
        self._waiting: dict[str, trio.Event] = {}

    async def destination(self, address: SocketAddress, network: str) -> None:
        """See to it that what is known of an address, if anything, is in the store."""
        if find_address(self._store, network, address.ip, None) is None:
            await self._want(f"{network}/{address.ip}")

    async def authority(self, text: str, local: SocketAddress, workload: Workload, network: str) -> None:
        """The same for the authority of a CONNECT that names another address than ours, or a hostname."""
        authority = parse_authority(text)
        if isinstance(authority, SocketAddress):
            if authority.ip != local.ip:
                await self.destination(authority, network)
        elif authority is not None and not self._store.services_by_hostname(authority.host):
            await self._want(f"{workload.namespace}/{authority.host}")

    def answered(self, key: str) -> None:
        """The control plane has answered for a key, or will not."""
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
