"""Frames go to TLS in their order, whatever it takes at a time; few of them take no queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.tunnel.backlog import SMALL, Backlog


class Wire:
    """Takes so many bytes with each call, nothing once the numbers are used up."""

    def __init__(self, takes: list[int]) -> None:
        self.takes = takes
        self.calls: list[bytes] = []
        self.taken = b""

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        self.calls.append(bytes(data))
        count = min(self.takes.pop(0), len(data)) if self.takes else 0
        self.taken += bytes(data[:count])
        return count


def test_a_header_and_its_short_payload_are_one_write():
    wire = Wire([100])
    assert Backlog(wire).send([b"header", b"payload"])
    assert wire.calls == [b"headerpayload"]


@given(
    sizes=st.lists(st.lists(st.sampled_from([1, 9, 500, SMALL - 1, SMALL, 200_000]), min_size=1, max_size=4)),
    takes=st.lists(st.sampled_from([0, 1, 10, SMALL, 1 << 20]), max_size=12),
)
def test_nothing_is_lost_or_changes_its_place(sizes, takes):
    wire = Wire(takes)
    backlog = Backlog(wire)
    said = b""
    number = 0
    for batch in sizes:
        pieces = []
        for size in batch:
            number += 1
            pieces.append(bytes([number % 256]) * size)
        said += b"".join(pieces)
        written = backlog.send(pieces)
        assert written == (wire.taken == said) == (not backlog)
    wire.takes = [1 << 20] * 1000
    backlog.write()
    assert wire.taken == said
    assert not backlog
