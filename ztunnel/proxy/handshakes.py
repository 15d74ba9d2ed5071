"""How clients' TLS handshakes at 15008 share the CPU.

A handshake takes two to three milliseconds of CPU, in two steps that nothing can interrupt: OpenSSL signs,
and checks the client's chain. So steps take turns. Between two of them the event loop serves every other
socket that is ready, however many handshakes have come at once.

That alone would let a client that makes one handshake after the other take the CPU. So each address has an
account. A handshake is owed from its first step on, until a request comes through its tunnel. It is owed
again when we end that tunnel because its peer broke the rules of HTTP/2. What is owed is forgotten with time
(`ConnectionBounds.handshake_pause`). An address that owes too much (``handshakes_owed``) waits with its next
handshakes. They begin in the order in which their first bytes came; one that has its turn too late fails like
any that takes too long. Nobody is refused, and addresses do not wait for one another. A client that makes
handshakes to send requests waits only for the first requests of those before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import trio

from ztunnel.bounds import ConnectionBounds
from ztunnel.errors import ZtunnelError
from ztunnel.loop.bulk import make_room
from ztunnel.model.address import IPAddress
from ztunnel.observe.logging import get_logger

log = get_logger("proxy::inbound")


class HandshakesDelayedError(ZtunnelError):
    """Many handshakes of one address came to nothing, so its next ones wait. Told in a log line."""

    code: ClassVar[str] = "ZT-TLS-042"

    def __init__(self) -> None:
        super().__init__("handshakes of a client wait, since many before them came to nothing")


class _Account:
    """What one address owes. changed: set when it owes less. order: who waits holds its place in it."""

    __slots__ = ("_at", "_owed", "changed", "order", "users")

    def __init__(self, now: float) -> None:
        self._at = now
        self._owed = 0.0
        self.changed = trio.Event()
        self.order = trio.Lock()
        self.users = 0

    def owed(self, now: float, pause: float) -> float:
        """Returns how many handshakes are owed; one is forgotten in each ``pause``."""
        self._owed = max(0.0, self._owed - (now - self._at) / pause)
        self._at = now
        return self._owed

    def add(self, count: int) -> None:
        self._owed = max(0.0, self._owed + count)
        self.changed.set()
        self.changed = trio.Event()


class Handshakes:
    """The handshakes of all clients of a process.

    delayed: called for each handshake that has to wait because of what its address owes.
    """

    def __init__(self, bounds: ConnectionBounds, delayed: Callable[[], None]) -> None:
        self._bounds = bounds
        self._delayed = delayed
        self._accounts: dict[IPAddress, _Account] = {}
        self._swept = 0
        self._stepping = trio.Lock()
        self._next_report = -math.inf

    def begin(self, address: IPAddress) -> Handshake:
        """Returns the handshake of a client that has just connected."""
        return Handshake(self, address)

    async def step(self) -> None:
        """Wait for a turn. The caller takes its step at once, without waiting before it."""
        async with self._stepping:
            await trio.lowlevel.checkpoint()
            await make_room()

    async def admit(self, address: IPAddress) -> None:
        """Wait until ``address`` may begin a handshake, which it then owes."""
        account = self._account(address)
        account.users += 1
        try:
            if account.order.locked() or self._excess(account) > 0:
                self._report(address)
            async with account.order:
                while (excess := self._excess(account)) > 0:
                    with trio.move_on_after(excess * self._bounds.handshake_pause):
                        await account.changed.wait()
                account.add(1)
        finally:
            account.users -= 1

    def owe(self, address: IPAddress, count: int) -> None:
        """Add to what an address owes, or with a negative number take from it."""
        account = self._account(address)
        account.owed(trio.current_time(), self._bounds.handshake_pause)
        account.add(count)

    def _excess(self, account: _Account) -> float:
        bounds = self._bounds
        return account.owed(trio.current_time(), bounds.handshake_pause) - (bounds.handshakes_owed - 1)

    def _account(self, address: IPAddress) -> _Account:
        found = self._accounts.get(address)
        if found is None:
            self._sweep()
            found = self._accounts[address] = _Account(trio.current_time())
        return found

    def _sweep(self) -> None:
        """Forget addresses that owe nothing, each time that there are twice as many as after the last one."""
        if len(self._accounts) < 2 * self._swept + 100:
            return
        now, pause = trio.current_time(), self._bounds.handshake_pause
        self._accounts = {
            address: account
            for address, account in self._accounts.items()
            if account.users or account.owed(now, pause)
        }
        self._swept = len(self._accounts)

    def _report(self, address: IPAddress) -> None:
        self._delayed()
        now = trio.current_time()
        if now >= self._next_report:
            self._next_report = now + self._bounds.accept_report
            error = HandshakesDelayedError()
            log.warn(str(error), code=error.code, peer=str(address))


class Handshake:
    """One handshake of a client, and what came of it."""

    __slots__ = ("_address", "_all", "_begun", "_owed")

    def __init__(self, handshakes: Handshakes, address: IPAddress) -> None:
        self._all = handshakes
        self._address = address
        self._begun = self._owed = False

    async def turn(self) -> None:
        """Wait for the turn of the next step, which the caller takes at once."""
        if not self._begun:
            self._begun = True
            await self._all.admit(self._address)
            self._owed = True
        await self._all.step()

    def paid(self) -> None:
        """It owes nothing any more: a request came through the tunnel, or there was not even a first byte."""
        if self._owed:
            self._owed = False
            self._all.owe(self._address, -1)

    def abused(self) -> None:
        """We ended the tunnel because its peer broke the rules."""
        if not self._owed:
            self._owed = True
            self._all.owe(self._address, 1)
