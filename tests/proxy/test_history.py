"""What is kept of connections that were: how much, for how long, and in how much memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from random import Random

import pytest

from ztunnel.bounds import HistoryBounds
from ztunnel.model.address import SocketAddress
from ztunnel.proxy.history import ClosedConnection, Failure, History, limited, short

BOUNDS = HistoryBounds()
LARGEST_ENTRY = 7500
USUAL_ENTRY = 200
CLIENT = SocketAddress.parse("10.0.0.1:41234")
SERVER = SocketAddress.parse("[fd00::2]:80")
HOP = SocketAddress.parse("10.0.0.2:15008")
ROUTE = ("10.0.0.2 is an address of workload x.", "The workload speaks HBONE.")


def add(
    history: History, *, failed: Failure | None = None, text: str = "", route: tuple[str, ...] = ROUTE
) -> str:
    """Add a connection. Returns its id. text: makes its peer, service and identity long and its own."""
    number = next(history.numbers)
    peer = f"server{text}"
    history.add(
        number,
        history.kind(
            "outbound", "default/client", "default", peer, f"web{text}", f"spiffe://{peer}", "HBONE", route
        ),
        CLIENT._replace(port=number % 65536),
        SERVER,
        HOP,
        1.5e9 + number,
        number / 3,
        (number, number * 2),
        f"{number:032x}",
        failed,
    )
    return history.id_of(number)


def test_an_entry_is_read_as_it_was_added():
    history = History(3, Random(1))
    failure = Failure("it broke", "ZT-NET-010", "Nothing listens.", "default/deny", ("No.",), ("one failed",))
    name = add(history, failed=failure)
    assert history.find(name) == ClosedConnection(
        id=name,
        pod="default/client",
        direction="outbound",
        client=CLIENT._replace(port=1),
        destination=SERVER,
        began=1.5e9 + 1,
        seconds=1 / 3,
        next_hop=HOP,
        peer="default/server",
        service="web",
        peer_identity="spiffe://server",
        protocol="HBONE",
        received=1,
        sent=2,
        error="it broke",
        code="ZT-NET-010",
        why="Nothing listens.",
        policy="default/deny",
        route=("No.",),
        attempts=("one failed",),
        trace=f"{1:032x}",
    )


def test_of_a_connection_of_which_only_the_addresses_were_known():
    history = History(3, Random(1))
    kind = history.kind("inbound", "default/client", "", "", "", "", "", ())
    history.add(next(history.numbers), kind, SERVER, CLIENT, None, 1.0, 0.0, (0, 0), "0" * 32, Failure("no"))
    [was] = history.latest()
    assert (was.client, was.destination, was.next_hop) == (SERVER, CLIENT, None)
    assert (was.peer, was.service, was.route, was.error) == ("", "", (), "no")


def test_the_last_ones_are_kept_and_found_by_their_ids():
    history = History(3, Random(1))
    names = [add(history) for _ in range(5)]
    assert [one.id for one in history.latest()] == names[:1:-1]
    assert len(history) == 3
    assert history.find(names[0]) is None
    assert len(set(names)) == 5


def test_a_failure_does_not_stay_with_its_place():
    history = History(1, Random(1))
    add(history, failed=Failure("it broke"))
    add(history)
    [was] = history.latest()
    assert was.error == ""


@pytest.mark.parametrize(("meanwhile", "seen"), [(0, 4), (1, 3), (2, 2), (9, 1)])
def test_what_is_overwritten_while_somebody_reads_is_left_out(meanwhile, seen):
    history = History(4, Random(1))
    names = [add(history) for _ in range(6)]
    reading = history.latest()
    first = next(reading)
    for _ in range(meanwhile):
        add(history)
    assert [first.id, *(one.id for one in reading)] == names[::-1][:seen]


class Late:
    """A connection that adds itself when it is told to."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.id = ""

    def remember(self) -> None:
        self.id = add(self.history)


def test_what_waits_is_added_before_somebody_reads_and_in_order():
    history = History(100, Random(1))
    ended = [Late(history) for _ in range(3)]
    for one in ended:
        history.later(one)
    assert not ended[0].id
    assert [one.id for one in history.latest()] == [one.id for one in ended][::-1]
    assert len(history) == 3


def test_few_connections_wait():
    history = History(100, Random(1))
    ended = [Late(history) for _ in range(70)]
    for one in ended:
        history.later(one)
    assert len([one for one in ended if not one.id]) < 32


def test_nothing_is_kept_when_it_is_off():
    history = History(0, Random(1))
    assert not history.keeps
    add(history)
    assert list(history.latest()) == []
    assert len(history) == 0


def test_kinds_are_shared_and_bounded():
    history = History(10, Random(1))
    same = ("outbound", "default/client", "default", "server", "web", "spiffe://x", "HBONE")
    assert history.kind(*same, ("a", "b")) is history.kind(*same, ("a", "b"))
    assert history.kind(*same, ("a",)) is not history.kind(*same, ("a", "b"))
    assert short("x" * 1000, BOUNDS) == "x" * 297 + "..."
    many = limited(tuple("x" * 1000 for _ in range(100)), BOUNDS)
    assert (len(many), {len(one) for one in many}) == (12, {300})
    long = history.kind("inbound", "p", "n" * 70_000, "s" * 70_000, "w" * 70_000, "i" * 70_000, "HBONE", ())
    assert [len(one) for one in (long.peer, long.service, long.peer_identity)] == [300, 300, 300]
    narrow = History(10, Random(1), HistoryBounds(text=10, sentences=1, kinds=1))
    first = narrow.kind(*same, ("a" * 20, "b"))
    assert (first.peer, first.route) == ("default...", ("aaaaaaa...",))
    assert narrow.kind(*same, ("c",)) is narrow.kind(*same, ("c",))
    assert narrow.kind(*same, ("a" * 20, "b")) is not first


def bytes_each(made: Callable[[], History], add_one: Callable[[History, int], object]) -> float:
    """Bytes that a full history of ten thousand takes for each entry."""
    gc.collect()
    tracemalloc.start()
    history = made()
    for number in range(12_000):
        add_one(history, number)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / 10_000


def ten_thousand() -> History:
    return History(10_000, Random(1))


def test_ten_thousand_usual_ones_take_less_than_two_megabytes():
    assert bytes_each(ten_thousand, lambda history, _number: add(history)) < USUAL_ENTRY


def test_ten_thousand_of_the_largest_take_less_than_is_stated():
    def add_large(history: History, number: int) -> None:
        text = f"{number:06d}" * 50
        attempts = tuple(short(one + text, BOUNDS) for one in "abc")
        failed = Failure(
            short(text, BOUNDS), "ZT-NET-010", short(text + ".", BOUNDS), "default/deny", None, attempts
        )
        add(history, failed=failed, text=text * 4, route=tuple("r" * 1000 for _ in range(100)))

    assert bytes_each(ten_thousand, add_large) < LARGEST_ENTRY
