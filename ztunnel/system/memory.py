"""Giving memory back to the kernel after something big has passed through, and sparing the collector.

A first sync of a big mesh is one message of tens of megabytes, which grpcio assembles from thousands of small
buffers. The C library keeps what they took, in case: 40 MB measured with 100,000 workloads.

Python's collector of reference cycles goes through all containers that are alive, now and then, and nothing
else is done meanwhile: 17 ms for the modules of the program alone, 45 to 65 ms with 100,000 workloads.
Neither is ever garbage, so both are taken out of its sight (`gc.freeze`); what is left takes a few ms. What
is frozen is still freed when its last reference goes. Only cycles that are garbage already would be frozen
for good, which is why it is not done again and again but only when the mesh has grown by half
(`GrowthWatch`).
"""

from __future__ import annotations

import ctypes
import gc


def release_unused_memory() -> None:
    """Ask the C library to give back what it holds and does not use: 3 to 12 ms after a big message.

    Does nothing where the C library has no such call (it is glibc's malloc_trim).
    """
    if _trim is not None:
        _trim(0)


def use_one_arena() -> None:
    """Let all threads share one heap of the C library; to be called before there is a second thread.

    Each of grpcio's threads would get a heap of its own, and keep in it what a big message leaves behind: 10
    to 15 MB. The threads need not allocate at the same time, since they have the interpreter's lock to wait
    for anyway.
    """
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8
"""glibc's malloc.h."""

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)


def spare_collector() -> None:
    """Take everything that is there now out of the collector's sight, and let it work from now on.

    To be called once, when the modules are loaded. What is garbage by then stays: 0.3 MB, for which a search
    would cost 25 to 40 ms of the start.
    """
    gc.freeze()
    gc.enable()


class GrowthWatch:
    """Spares the collector what a mesh holds, whenever that has grown by half. ``least``: from where on."""

    def __init__(self, least: int) -> None:
        self._frozen_at = least

    def grown(self, size: int) -> None:
        """The mesh has this many objects now: a millisecond or two when they are frozen."""
        if size * 2 > self._frozen_at * 3:
            self._frozen_at = size
            gc.collect(1)  # the young ones only, of which most of the garbage is
            gc.freeze()
