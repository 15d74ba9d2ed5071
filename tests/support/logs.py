"""Collects log records while a block runs, and writes what is queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ztunnel.observe.logging import LogRecord, _hub, set_filter


@contextmanager
def capture_logs(wanted: str = "trace") -> Iterator[list[LogRecord]]:
    """Collect the records of all loggers while the block runs, at every level by default."""
    before, earlier = _hub.filter, _hub.records
    captured: list[LogRecord] = []
    _hub.records = captured
    set_filter(wanted)
    try:
        yield captured
    finally:
        _hub.records = earlier
        _hub.set_filter(before)


def flush_logs() -> None:
    """Write what is queued, waiting up to a second."""
    if _hub.sink is not None:
        _hub.sink.flush(1.0)
