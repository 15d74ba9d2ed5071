"""Real network namespaces for the tests of this package."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from tests.support.grpc_end import wait_for_the_end_of_grpc
from ztunnel.demo.namespaces import OwnedNamespace, may_make_namespaces

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not may_make_namespaces(),
    reason="needs root and the right to make network namespaces",
)


def namespace_of(sock: socket.socket) -> int:
    """Returns the inode of the network namespace that a socket belongs to (SIOCGSKNS, sockios.h)."""
    descriptor = fcntl.ioctl(sock.fileno(), 0x894C)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def own_namespace() -> int:
    """Returns the inode of the calling thread's."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def made_socket(namespace: OwnedNamespace, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Returns a blocking socket in a namespace, with a timeout."""
    with namespace.entered():
        sock = socket.socket(family, kind)
    sock.settimeout(5)
    return sock


def open_descriptors() -> int:
    """Returns how many descriptors this process has open, once grpcio has closed its own."""
    wait_for_the_end_of_grpc()
    return len(list(Path("/proc/self/fd").iterdir()))
