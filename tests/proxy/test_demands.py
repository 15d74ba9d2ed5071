"""Addresses that are demanded of the control plane before a connection is routed."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import trio

from tests.support.mesh_messages import address, delta
from ztunnel.messages import ResourceDemanded
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.pb.istio import workload as pb
from ztunnel.proxy.demands import Demands
from ztunnel.state.store import MeshStore

TIMEOUT = 2.0
OWN = SocketAddress(ip_address("10.0.0.1"), 15008)
UNKNOWN = SocketAddress(ip_address("10.0.0.9"), 80)
ME = Workload(uid="me", name="me", namespace="home")


class Asked:
    """A data plane that knows one workload and one service; ``keys``: what was demanded."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.store = MeshStore(None)
        known = pb.Workload(uid="u", name="u", namespace="ns", network="n", addresses=[bytes([10, 0, 0, 2])])
        web = pb.Service(name="web", namespace="ns", hostname="web.ns.svc")
        self.store.apply(delta(address(known), address(web)))
        self.demands = Demands(self.store, self._send, TIMEOUT)

    def _send(self, message: ResourceDemanded) -> None:
        self.keys.append(message.key)


@pytest.fixture
def asked() -> Asked:
    return Asked()


async def test_what_is_known_is_not_asked_for(asked, autojump_clock):
    await asked.demands.destination(SocketAddress(ip_address("10.0.0.2"), 80), "n")
    await asked.demands.authority("10.0.0.2:80", OWN, ME, "n")
    await asked.demands.authority("web.ns.svc:80", OWN, ME, "n")
    assert asked.keys == []
    assert trio.current_time() < TIMEOUT


@pytest.mark.parametrize("text", ["10.0.0.1:80", "no port", ""])
async def test_an_authority_for_ourselves_or_for_nobody_is_not_asked_for(asked, autojump_clock, text):
    await asked.demands.authority(text, OWN, ME, "n")
    assert asked.keys == []


@pytest.mark.parametrize(
    ("text", "key"),
    [("10.0.0.9:80", "n/10.0.0.9"), ("[fd00::1]:80", "n/fd00::1"), ("api.x:80", "home/api.x")],
)
async def test_an_authority_is_asked_for_by_address_or_by_the_namespace_of_who_is_asked(
    asked, autojump_clock, nursery, text, key
):
    nursery.start_soon(asked.demands.authority, text, OWN, ME, "n")
    await trio.testing.wait_all_tasks_blocked()
    assert asked.keys == [key]
    asked.demands.answered(key)


async def test_all_who_wait_for_a_key_share_one_demand_and_go_on_together(asked, autojump_clock):
    went = []

    async def connection(number: int) -> None:
        await asked.demands.destination(UNKNOWN, "n")
        went.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(connection, number)
        await trio.testing.wait_all_tasks_blocked()
        assert (asked.keys, went) == (["n/10.0.0.9"], [])
        asked.demands.answered("n/10.0.0.8")  # nobody waits for it
        await trio.testing.wait_all_tasks_blocked()
        assert went == []
        asked.demands.answered("n/10.0.0.9")
    assert sorted(went) == [0, 1, 2]
    assert trio.current_time() < TIMEOUT


async def test_without_an_answer_a_connection_goes_on_after_the_timeout_and_the_next_asks_again(
    asked, autojump_clock
):
    begun = trio.current_time()
    await asked.demands.destination(UNKNOWN, "n")
    assert trio.current_time() - begun == pytest.approx(TIMEOUT)
    await asked.demands.destination(UNKNOWN, "n")
    assert asked.keys == ["n/10.0.0.9"] * 2
    asked.demands.answered("n/10.0.0.9")  # too late: nobody waits, nothing breaks


async def test_a_late_answer_to_the_first_does_not_end_the_wait_that_began_after_it(
    asked, autojump_clock, nursery
):
    await asked.demands.destination(UNKNOWN, "n")
    nursery.start_soon(asked.demands.destination, UNKNOWN, "n")
    await trio.testing.wait_all_tasks_blocked()
    asked.demands.answered("n/10.0.0.9")
    begun = trio.current_time()
    await asked.demands.destination(UNKNOWN, "n")
    assert trio.current_time() - begun == pytest.approx(TIMEOUT)
    assert len(asked.keys) == 3
