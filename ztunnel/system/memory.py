"""Gives memory back to the kernel after a large message, and keeps garbage collections short.

The first sync of a large mesh is one message of tens of megabytes, which grpcio assembles from thousands of
small buffers. The C library keeps their memory for later use: 40 MB were measured with 100,000 workloads.

Python's garbage collector regularly traverses all live containers, and nothing else runs meanwhile: 17 ms for
the modules of the program alone, 45 to 65 ms with 100,000 workloads. Neither modules nor workloads are ever
garbage in cycles, so both are excluded from collection (`gc.freeze`); the rest takes a few ms. A frozen
object is still freed when its last reference goes away. Only cycles that are garbage at that moment would
never be freed. So freezing is not repeated often, but only when the mesh has grown by half (`GrowthWatch`).

Open connections would be traversed in the same way: 1,000 of them, both ends in one process, took 120 ms each
time, and new connections make that frequent. A connection leaves no cycle, however it ended
(tests/soak/test_mixed_endings.py). So whatever survives a full collection is frozen too (`_Survivors`), and
the next one traverses only what came since: 9 to 14 ms. Rarely, all is traversed, for what has become garbage
in a cycle after it was frozen: h2's connection of a tunnel that has ended.
"""

from __future__ import annotations

import ctypes
import gc


def release_unused_memory() -> None:
    """Ask the C library to give unused memory back to the kernel: 3 to 12 ms after a large message.

    Does nothing where the C library has no such call (it is glibc's malloc_trim).
    """
    if _trim is not None:
        _trim(0)


def use_one_arena() -> None:
    """Let all threads share one heap of the C library. Call it before there is a second thread.

    Otherwise each of grpcio's threads gets its own heap and keeps there what a large message leaves behind:
    10 to 15 MB. Sharing costs little, because the threads wait for the interpreter's lock anyway.
    """
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8
"""glibc's malloc.h."""

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)


def spare_collector() -> None:
    """Exclude all present objects from garbage collection, and switch the collector on.

    Call it when the modules are loaded. Garbage that exists then stays: 0.3 MB, for which a collection would
    cost 25 to 40 ms of the start. What survives a full collection is excluded from the next ones as well.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    if _survivors not in gc.callbacks:
        gc.callbacks.append(_survivors)
    gc.enable()


_THRESHOLDS = (2000, 5, 2)
"""Python has 700, 10, 10. Of eight connections that open at once nearly all are over before anything is
traversed: 4 µs of CPU time for each instead of 26. Full collections are more frequent, since each is short.
"""

_WHOLE_EVERY = 1024
"""Of so many full collections, one traverses what was frozen, too."""


class _Survivors:
    """A callback of the collector (`gc.callbacks`) that freezes what survives a full collection."""

    def __init__(self, whole_every: int) -> None:
        self._whole_every = whole_every
        self._left = whole_every

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < _OLDEST:
            return
        if phase == "start":
            self._left -= 1
            if self._left <= 0:
                self._left = self._whole_every
                gc.unfreeze()
        else:
            gc.freeze()


_OLDEST = 2
_survivors = _Survivors(_WHOLE_EVERY)


class GrowthWatch:
    """Freezes the objects of the mesh whenever their number has grown by half.

    ``least``: the first such number.
    """

    def __init__(self, least: int) -> None:
        self._frozen_at = least

    def grown(self, size: int) -> None:
        """The mesh has this many objects now. Takes a millisecond or two when they are frozen."""
        if size * 2 > self._frozen_at * 3:
            self._frozen_at = size
            gc.collect(1)  # only the young objects, which most garbage is
            gc.freeze()
