from __future__ import annotations

import signal
import time
import tracemalloc
from typing import Any

from ztunnel.admin.pprof import CpuProfile, Place, encode_cpu, encode_heap


def fields(data: bytes) -> list[tuple[int, Any]]:
    """A protobuf message read by hand: (field, number or bytes)."""
    found: list[tuple[int, Any]] = []
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        key = number()
        if key & 7 == 0:
            found.append((key >> 3, number()))
        else:
            assert key & 7 == 2
            size = number()
            found.append((key >> 3, data[position : position + size]))
            position += size
    return found


def numbers(data: bytes) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    return values


def read(profile: bytes) -> tuple[list[tuple[list[str], list[int]]], dict[int, Any]]:
    """((functions innermost first, values) for each sample, the scalar fields)."""
    parts = fields(profile)
    strings = [body.decode() for field, body in parts if field == 6]
    assert strings[0] == ""
    functions = {dict(fields(body))[1]: strings[dict(fields(body))[2]] for field, body in parts if field == 5}
    locations = {}
    for field, body in parts:
        if field == 4:
            location = dict(fields(body))
            locations[location[1]] = functions[dict(fields(location[4]))[1]]
    samples = []
    for field, body in parts:
        if field == 2:
            sample = dict(fields(body))
            samples.append(([locations[n] for n in numbers(sample[1])], numbers(sample[2])))
    return samples, {field: value for field, value in parts if isinstance(value, int)}


def test_a_cpu_profile_has_stacks_counts_and_times():
    inner, outer = Place("inner", "/a.py", 3), Place("outer", "/b.py", 7)
    profile = encode_cpu({(inner, outer): 5, (outer,): 1}, 100, 2.0, 12345)
    samples, scalars = read(profile)
    assert samples == [(["inner", "outer"], [5, 50_000_000]), (["outer"], [1, 10_000_000])]
    assert scalars == {9: 12345, 10: 2_000_000_000, 12: 10_000_000}


def test_the_processor_time_of_a_busy_function_is_found():
    def busy_function_of_this_test() -> None:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass

    profile = CpuProfile()
    before = signal.getsignal(signal.SIGPROF)
    with profile.sampling(200):
        busy_function_of_this_test()
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    names = [stack[0].function for stack, count in profile.stacks().items() for _ in range(count)]
    assert any("busy_function_of_this_test" in name for name in names)
    assert signal.getsignal(signal.SIGPROF) in (before, signal.SIG_IGN)


def test_a_heap_profile_has_what_is_held():
    tracemalloc.start(5)
    try:
        held = [bytearray(1_000_000)]
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    samples, _ = read(encode_heap(snapshot, 1))
    largest = max(samples, key=lambda sample: sample[1][1])
    assert largest[1][1] >= 1_000_000
    assert largest[0][0] == "test_pprof.py"
    assert held
