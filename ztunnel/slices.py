"""Long work of pure functions in slices: a generator that pauses, so that other tasks can run in between.

A long function is written as a generator that yields after each limited piece of work and returns its result.
A data plane runs it with a checkpoint at each pause; a command-line tool, where nothing else runs, runs it at
once. The data may change between two slices.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Slices: TypeAlias = Generator[None, None, T]
"""Yields None at each pause. Its return value is the result."""


def at_once(slices: Slices[T]) -> T:
    """Returns the result, without pauses."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Returns the items, at most ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
