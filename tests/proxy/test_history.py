"""What is kept of connections that were: how much, for how long, and in how much memory."""

from __future__ import annotations

import gc
import tracemalloc
from ipaddress import ip_address
from random import Random

from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.proxy.history import ClosedConnection, History, short

ENTRY_BYTES = 3500


def remembered(history: History, number: int, length: int = 60) -> ClosedConnection:
    text = f"{number:06d}" * (length // 6)
    return ClosedConnection(
        id=history.next_id(),
        pod="default/client",
        direction="outbound",
        client=SocketAddress(ip_address("10.0.0.1"), number % 65536),
        destination=SocketAddress(ip_address("10.0.0.2"), 80),
        began=float(number),
        seconds=number / 3,
        next_hop=SocketAddress(ip_address("10.0.0.2"), 15008),
        peer=f"default/server-{number}",
        peer_identity=f"spiffe://cluster.local/ns/default/sa/server-{number}",
        error=short(text),
        code="ZT-NET-010",
        why=short(text + "."),
        route=history.shared((f"10.0.0.2 is an address of workload {number}.", "The workload speaks HBONE.")),
        attempts=(short("a" + text), short("b" + text), short("c" + text)),
        identity=Identity("cluster.local", "default", f"client-{number}"),
        trace=f"{number:032x}",
    )


def test_the_last_ones_are_kept_and_found_by_their_ids():
    history = History(3, Random(1))
    made = [remembered(history, number) for number in range(5)]
    for entry in made:
        history.add(entry)
    assert list(history.latest()) == made[:1:-1]
    assert history.find(made[4].id) is made[4]
    assert history.find(made[0].id) is None
    assert len({entry.id for entry in made}) == 5


def test_nothing_is_kept_when_it_is_off():
    history = History(0, Random(1))
    assert not history.keeps
    history.add(remembered(history, 1))
    assert len(history) == 0


def test_reasons_are_shared_and_bounded():
    history = History(10, Random(1))
    first = history.shared(("a", "b"))
    assert history.shared(("a", "b")) is first
    many = history.shared(tuple("x" * 1000 for _ in range(100)))
    assert len(many) == 12
    assert all(len(one) == 300 for one in many)


def test_ten_thousand_take_less_than_is_stated():
    gc.collect()
    tracemalloc.start()
    history = History(10_000, Random(1))
    for number in range(12_000):
        history.add(remembered(history, number, length=300))
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 10_000 < ENTRY_BYTES
