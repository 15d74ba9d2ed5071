"""Profiles of this process in the format of ``go tool pprof``.

CPU: the kernel's profiling timer counts processor time and sends SIGPROF. Python runs the handler between two
instructions of the main thread, and it records the interrupted stack. So only time in which the process
worked is sampled, and there is no cost while no profile is taken. Other threads and processes are not
included. Heap: the standard library's tracemalloc, switched on only by request because it is expensive.

Source: https://github.com/google/pprof/blob/main/proto/profile.proto. Only its varint and length-delimited
fields are needed; they are encoded here.
"""

from __future__ import annotations

import signal
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import NamedTuple, TypeAlias

from ztunnel.protobuf import write_varint

_DEPTH = 200
TRACED_FRAMES = 16


class Place(NamedTuple):
    """A line of code in a function."""

    function: str
    file: str
    line: int


Stack: TypeAlias = tuple[Place, ...]  # innermost first


class CpuProfile:
    """Collects stacks of the main thread while `sampling` lasts. One at a time in a process."""

    def __init__(self) -> None:
        self._stacks: Counter[tuple[tuple[CodeType, int], ...]] = Counter()

    @contextmanager
    def sampling(self, frequency: int) -> Iterator[None]:
        """Sample so many times a second of processor time. To be entered in the main thread."""
        before = signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, 1 / frequency, 1 / frequency)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            # a signal may still be on its way, and the default for it is to end the process
            signal.signal(signal.SIGPROF, signal.SIG_IGN if before == signal.SIG_DFL else before)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        stack: list[tuple[CodeType, int]] = []
        while frame is not None and len(stack) < _DEPTH:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1

    def stacks(self) -> dict[Stack, int]:
        """Samples by stack."""
        result: dict[Stack, int] = {}
        for stack, count in self._stacks.items():
            places = tuple(Place(code.co_qualname, code.co_filename, line) for code, line in stack)
            result[places] = result.get(places, 0) + count
        return result


def encode_cpu(stacks: Mapping[Stack, int], frequency: int, seconds: float, time_ns: int) -> bytes:
    """Returns a CPU profile: for each stack the samples and the nanoseconds that they stand for."""
    period = 1_000_000_000 // frequency
    samples = [(stack, (count, count * period)) for stack, count in stacks.items()]
    return _encode(
        (("samples", "count"), ("cpu", "nanoseconds")),
        samples,
        period=(("cpu", "nanoseconds"), period),
        time_ns=time_ns,
        duration_ns=round(seconds * 1e9),
    )


def encode_heap(snapshot: tracemalloc.Snapshot, time_ns: int) -> bytes:
    """Returns a heap profile: for each stack the objects and bytes that it allocated and still holds."""
    samples = []
    for statistic in snapshot.statistics("traceback"):
        # tracemalloc has no function names; the file stands for them
        frames = reversed(statistic.traceback)
        stack = tuple(
            Place(frame.filename.rpartition("/")[2], frame.filename, frame.lineno) for frame in frames
        )
        samples.append((stack, (statistic.count, statistic.size)))
    return _encode(
        (("inuse_objects", "count"), ("inuse_space", "bytes")),
        samples,
        period=(("space", "bytes"), 1),
        time_ns=time_ns,
        duration_ns=0,
    )


class _Strings:
    def __init__(self) -> None:
        self.table: dict[str, int] = {"": 0}

    def __call__(self, text: str) -> int:
        return self.table.setdefault(text, len(self.table))


def _encode(
    types: Iterable[tuple[str, str]],
    samples: Iterable[tuple[Stack, tuple[int, int]]],
    *,
    period: tuple[tuple[str, str], int],
    time_ns: int,
    duration_ns: int,
) -> bytes:
    strings = _Strings()
    functions: dict[tuple[str, str], int] = {}
    locations: dict[Place, int] = {}
    out: list[bytes] = [_message(1, _value_type(strings, each)) for each in types]
    for stack, values in samples:
        ids = []
        for place in stack:
            functions.setdefault((place.function, place.file), len(functions) + 1)
            ids.append(locations.setdefault(place, len(locations) + 1))
        out.append(_message(2, _packed(1, ids) + _packed(2, values)))
    for place, number in locations.items():
        line = _varint(1, functions[place.function, place.file]) + _varint(2, max(place.line, 0))
        out.append(_message(4, _varint(1, number) + _message(4, line)))
    for (name, file), number in functions.items():
        named = _varint(2, strings(name)) + _varint(3, strings(name)) + _varint(4, strings(file))
        out.append(_message(5, _varint(1, number) + named))
    period_type = _value_type(strings, period[0])
    out += [_message(6, text.encode("utf-8", "backslashreplace")) for text in strings.table]
    out += [_varint(9, time_ns), _varint(10, duration_ns), _message(11, period_type), _varint(12, period[1])]
    return b"".join(out)


def _value_type(strings: _Strings, names: tuple[str, str]) -> bytes:
    return _varint(1, strings(names[0])) + _varint(2, strings(names[1]))


def _varint(field: int, value: int) -> bytes:
    return write_varint(field << 3) + write_varint(value) if value else b""


def _message(field: int, body: bytes) -> bytes:
    return write_varint(field << 3 | 2) + write_varint(len(body)) + body


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _message(field, b"".join(map(write_varint, values)))
