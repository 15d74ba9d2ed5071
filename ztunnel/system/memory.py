"""Gives memory back to the kernel after a large message, and keeps garbage collections short.

The first sync of a large mesh is one message of tens of megabytes, which grpcio assembles from thousands of
small buffers. The C library keeps their memory for later use: 40 MB were measured with 100,000 workloads.

Python's garbage collector regularly traverses all live containers, and nothing else runs meanwhile: 17 ms for
the modules of the program alone, 45 to 65 ms with 100,000 workloads. Neither modules nor workloads are ever
garbage in cycles, so both are excluded from collection (`gc.freeze`); the rest takes a few ms. A frozen
object is still freed when its last reference goes away. Only cycles that are garbage at that moment would
never be freed. So freezing is not repeated often, but only when the mesh has grown by half (`GrowthWatch`).
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

    Call it once, when the modules are loaded. Garbage that exists then stays: 0.3 MB, for which a collection
    would cost 25 to 40 ms of the start.
    """
    gc.freeze()
    gc.enable()


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
