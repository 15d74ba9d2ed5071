"""Finds the names that are most similar to an unknown one, among all names of a mesh. Pure, with pauses.

A full comparison of two names takes about 50 µs. So only the best candidates are compared in full: those that
share most pairs of letters with the wanted name, which takes a microsecond to count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from heapq import nsmallest

from ztunnel.bounds import DEFAULTS, ExplainBounds
from ztunnel.slices import Slices, batches

COUNTED_SLICE = 200
"""Names whose pairs of letters are counted between two pauses."""

COMPARED_SLICE = 10
"""Names that are compared in full between two pauses."""

_ALIKE = 0.5
"""The similarity, from 0 to 1, that two names must have."""


def nearest_names(
    text: str, parts: Iterable[Sequence[str]], bounds: ExplainBounds = DEFAULTS.explain
) -> Slices[list[str]]:
    """Returns the names that are most similar to a text, best first; only those that are similar at all."""
    wanted = text.casefold()
    pairs = _pairs(wanted)
    likely: dict[str, int] = {}
    for part in parts:
        for names in batches(part, COUNTED_SLICE):
            likely.update((name, _difference(pairs, _pairs(name.casefold()))) for name in names)
            if len(likely) > bounds.names_compared:
                likely = dict(nsmallest(bounds.names_compared, likely.items(), key=_rank))
            yield
    scored: list[tuple[float, str]] = []
    for number, name in enumerate(likely, 1):
        scored.append((-_likeness(wanted, name.casefold()), name))
        if number % COMPARED_SLICE == 0:
            yield
    return [name for score, name in nsmallest(bounds.names_suggested, scored) if -score > _ALIKE]


def _pairs(text: str) -> set[str]:
    return {text[start : start + 2] for start in range(len(text) - 1)}


def _difference(wanted: set[str], pairs: set[str]) -> int:
    """Returns how much a name differs: the pairs that it has too many, less those that are shared."""
    return len(pairs) - 2 * len(wanted & pairs)


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    name, difference = item
    return difference, name


def _likeness(wanted: str, name: str) -> float:
    last = SequenceMatcher(None, wanted.rpartition("/")[2], name.rpartition("/")[2], autojunk=False)
    if last.real_quick_ratio() < _ALIKE:
        return 0.0
    whole = SequenceMatcher(None, wanted, name, autojunk=False)
    return max(last.ratio(), whole.ratio())
