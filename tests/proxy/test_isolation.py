"""No byte of one identity's connection travels in a tunnel authenticated as another: a data plane, real TLS.

The tests play the endpoints, and note for each stream who the client's certificate says it is, and who they
are themselves. Meanwhile things change in random order: the pod's own identity (its trust domain), who lives
at an address (with and without the mesh being told first), certificates. Each connection brings a token that
says what was true when it was made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
import trio

from tests.support.data_plane import CONFIG, Control, read_all, running_plane, via_socks, workload
from tests.support.noting_endpoint import Seen, note_streams
from tests.support.raw_tls import KeyPair, TlsChoices
from ztunnel.messages import CertificateIssued
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity

# The pod's own HBONE port must leave 127.0.1.x to the endpoints.
HERE = replace(CONFIG, inbound_addr=SocketAddress(ip_address("127.0.0.1"), 15008))
ADDRESSES = (1, 2, 3)
ACCOUNTS = ("red", "green", "blue")
TRUST_DOMAINS = ("one.example", "two.example")
ROUNDS = 40


class World:
    """What is true now, and what the mesh was told."""

    def __init__(self, control: Control, seed: int) -> None:
        self.control = control
        self.random = Random(seed)
        self.trust_domain = TRUST_DOMAINS[0]
        self.living = dict.fromkeys(ADDRESSES, ACCOUNTS[0])
        self.told = dict(self.living)
        self.uids: dict[int, str] = {}
        self.generation = 0
        self.seen: list[Seen] = []
        self.answered = 0
        root = KeyPair(control.ca.root._key, control.ca.root.certificate)
        names = {account: f"spiffe://peers.example/ns/default/sa/{account}" for account in ACCOUNTS}
        self.choices = {account: TlsChoices(root.issue(name)) for account, name in names.items()}

    async def tell(self, address: int, account: str) -> None:
        """The mesh says that a workload of this account lives at an address, and its predecessor is gone."""
        self.generation += 1
        name = f"e{address}-{self.generation}"
        one = workload(
            uid=f"cluster1//Pod/default/{name}",
            name=name,
            trust_domain="peers.example",
            service_account=account,
            addresses=[ip_address(f"127.0.1.{address}").packed],
        )
        gone = (self.uids[address],) if address in self.uids else ()
        self.told[address], self.uids[address] = account, one.name
        await self.control.apply(one, removed=gone)

    async def own_trust_domain(self, trust_domain: str) -> None:
        """The pod is of another trust domain, so it has another identity."""
        await self.control.apply(workload(trust_domain=trust_domain))
        self.trust_domain = trust_domain

    async def change(self) -> None:
        """Something changes."""
        address, account = self.random.choice(ADDRESSES), self.random.choice(ACCOUNTS)
        match self.random.randrange(5):
            case 0:
                self.living[address] = account
                await self.tell(address, account)
            case 1:
                self.living[address] = account  # an address is reused, and the mesh will be told later
            case 2:
                await self.tell(address, self.living[address])
            case 3:
                await self.own_trust_domain(self.random.choice(TRUST_DOMAINS))
            case 4:
                ours = Identity(self.trust_domain, "default", "default")
                await self.control.to_plane.send(CertificateIssued(await self.control.ca.issue(ours)))

    async def serve(self, address: int, stream: trio.SocketStream) -> None:
        """One connection to an endpoint: whoever lives there when it comes answers it to its end."""
        account = self.living[address]
        await note_streams(stream, self.choices[account], account, str(address), self.seen)

    async def connect(self) -> None:
        """One connection of the pod's application. Whether it succeeds is not the question here."""
        address = self.random.choice(ADDRESSES)
        token = f"{self.trust_domain} {address} {self.told[address]} {self.random.random()}".encode()
        with suppress(trio.BrokenResourceError, trio.TooSlowError):
            with trio.fail_after(20):
                async with await via_socks(80, f"127.0.1.{address}") as stream:
                    await stream.send_all(token)
                    await stream.send_eof()
                    answer = await read_all(stream)
            if answer:
                assert answer == token
                self.answered += 1


@asynccontextmanager
async def world(seed: int) -> AsyncIterator[World]:
    async with running_plane(HERE) as control, trio.open_nursery() as nursery:
        made = World(control, seed)
        await made.own_trust_domain(made.trust_domain)
        for address in ADDRESSES:
            listeners = await trio.open_tcp_listeners(15008, host=f"127.0.1.{address}")

            async def serve(stream: trio.SocketStream, address: int = address) -> None:
                await made.serve(address, stream)

            nursery.start_soon(trio.serve_listeners, serve, listeners)
            await made.tell(address, made.living[address])
        yield made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_sent_reaches_only_whom_it_was_meant_for_as_who_sent_it(seed: int):
    """One connection at a time: what was true when it began was true all along."""
    async with world(seed) as made:
        for _ in range(ROUNDS):
            await made.change()
            await made.connect()
        assert made.answered >= ROUNDS // 4
        for seen in made.seen:
            trust_domain, address, account, _ = seen.data.decode().split()
            assert seen.client == f"spiffe://{trust_domain}/ns/default/sa/default"
            assert (seen.address, seen.server) == (address, account)
        assert len({seen.client for seen in made.seen}) == len(TRUST_DOMAINS)
        assert len({seen.server for seen in made.seen}) > 1


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_gets_mixed_up_when_all_of_it_happens_at_once(seed: int):
    """Changes while connections are being made: each may go as either, but its bytes stay together."""
    async with world(seed) as made:
        async with trio.open_nursery() as nursery:
            for _ in range(ROUNDS):
                nursery.start_soon(made.connect)
                await trio.sleep(made.random.choice([0, 0, 0.01]))  # real time: changes come in between
                await made.change()
        assert made.answered >= ROUNDS // 8
        tokens = [seen.data for seen in made.seen]
        assert len(set(tokens)) == len(tokens)
        for seen in made.seen:
            _, address, _, _ = seen.data.decode().split()
            assert seen.address == address
