"""A network namespace for tests of a data plane, whose ports are fixed."""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from trio._core._thread_cache import THREAD_CACHE

from tests.support.grpc_end import wait_for_the_end_of_grpc

CLONE_NEWNET = 0x40000000


@contextmanager
def enter_network_namespace() -> Iterator[bool]:
    """Moves this thread into its own network namespace until the block ends. Without root, takes a lock.

    Yields whether it is in a namespace of its own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    wait_for_the_end_of_grpc()
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            # Without root: the ports of this machine have to do, for one module at a time.
            with Path(tempfile.gettempdir(), f"ztunnel-test-ports-{os.geteuid()}").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield False
            return
        forget_threads()
        with IPRoute() as routes:
            routes.link("set", index=routes.link_lookup(ifname="lo")[0], state="up")
        try:
            yield True
        finally:
            wait_for_the_end_of_grpc()
            assert libc.setns(before, CLONE_NEWNET) == 0
            forget_threads()
    finally:
        os.close(before)


@contextmanager
def small_send_buffers() -> Iterator[None]:
    """Sockets that are made meanwhile keep little of what their peer does not read.

    Only inside of `enter_network_namespace`, where it has given one: the setting is a namespace's.
    """
    setting = Path("/proc/sys/net/ipv4/tcp_wmem")
    before = setting.read_text()
    setting.write_text("4096 16384 32768")
    try:
        yield
    finally:
        setting.write_text(before)


def forget_threads() -> None:
    """Let Trio start new threads. Its idle ones stay in the namespace in which they began."""
    THREAD_CACHE._idle_workers.clear()


@pytest.fixture(scope="module", autouse=True)
def own_network_namespace():
    with enter_network_namespace() as is_own:
        yield is_own
