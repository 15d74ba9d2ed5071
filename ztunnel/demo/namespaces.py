"""Network namespaces without the ``ip`` program: making, entering, publishing and removing them.

A namespace lives as long as something refers to it. Here that is a descriptor; as root the namespace is also
bound to a file below ``/run/netns``, so that ``ip netns exec`` finds it. Without privileges the process first
moves into a user namespace of its own (`become_root_of_own_namespace`), in which it may make network
namespaces; those vanish with the last process and descriptor.

Entering a namespace changes the calling thread, and what that thread creates meanwhile (sockets, child
processes) belongs to the namespace for good. So `OwnedNamespace.entered` is for a few synchronous calls and
never surrounds an await.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 0x2

PUBLISHED = Path("/run/netns")
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceUnavailableError(OSError):
    """The kernel does not let this process make namespaces."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (unshare(2)). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int) -> None:
    """Move the calling thread into the network namespace behind a descriptor (setns(2)). Raises OSError."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def become_root_of_own_namespace() -> None:
    """Make this process root of a user namespace of its own, with a network namespace that belongs to it.

    For the life of the process; needs no privilege but a kernel (and its security modules) that permits it,
    and a process with one thread. Raises NamespaceUnavailableError where it is forbidden; nothing has changed
    then.
    """
    # A failure half-way would leave this process in namespaces of no use, so a child goes first.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _enter_own_namespaces()
            OwnedNamespace.make("probe").close()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        raise NamespaceUnavailableError(errno.EPERM, "unprivileged user namespaces are not permitted")
    _enter_own_namespaces()


def _enter_own_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def may_make_namespaces() -> bool:
    """Returns whether this process can make network namespaces as it is. Leaves nothing behind."""
    try:
        OwnedNamespace.make("probe").close()
    except NamespaceUnavailableError:
        return False
    return True


class OwnedNamespace:
    """One network namespace, held by a descriptor. The code that made it closes it."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self._descriptor = descriptor
        self._published: Path | None = None

    @classmethod
    def make(cls, name: str) -> OwnedNamespace:
        """Make an empty namespace (its loopback is down). Raises NamespaceUnavailableError."""
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                unshare(CLONE_NEWNET)
            except OSError as error:
                raise NamespaceUnavailableError(error.errno, str(error.strerror)) from error
            try:
                return cls(name, os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
            finally:
                setns(home)
        finally:
            os.close(home)

    @property
    def published(self) -> Path | None:
        """Where `ip netns exec` finds it, None when it has no name."""
        return self._published

    @property
    def descriptor(self) -> int:
        """The open descriptor, valid until `close`. The CNI's protocol hands out duplicates of it."""
        return self._descriptor

    @property
    def inode(self) -> int:
        """The number by which ``/proc/<pid>/ns/net`` names this namespace."""
        return os.fstat(self._descriptor).st_ino

    def publish(self) -> Path | None:
        """Bind the namespace to ``/run/netns/<name>``. Returns the path, None where that is not allowed."""
        target = PUBLISHED / self.name
        try:
            PUBLISHED.mkdir(mode=0o755, exist_ok=True)
            target.touch(mode=0o444, exist_ok=False)
        except OSError:
            return None
        source = f"/proc/self/fd/{self._descriptor}".encode()
        try:
            _check(_libc.mount(source, bytes(target), b"none", MS_BIND, None), "mount")
        except OSError:
            target.unlink()
            return None
        self._published = target
        return target

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the ``with``, the calling thread is in the namespace. No await inside."""
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self._descriptor)
            try:
                yield
            finally:
                setns(home)
        finally:
            os.close(home)

    def close(self) -> None:
        """Close the descriptor and remove the published name. It may be called twice."""
        if self._published is not None:
            unpublish(self._published)
            self._published = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def unpublish(path: Path) -> None:
    """Undo `OwnedNamespace.publish`, also for what another process published. Never raises OSError."""
    _libc.umount2(bytes(path), MNT_DETACH)
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass
