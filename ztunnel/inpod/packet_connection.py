"""The connection to the CNI agent: packets, and the descriptors that come with them.

A descriptor is open from the moment the kernel has put it into our table, whatever the packet contains. So
each packet owns its descriptors and closes those that were not taken.
"""

from __future__ import annotations

import array
import os
import socket
from types import TracebackType
from typing import Final, Self

import trio

from ztunnel.inpod.codec import LARGEST_PACKET
from ztunnel.inpod.zds_errors import ZdsReadError
from ztunnel.netns.namespace_thread import NamespaceIdentity

_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
# Room for one descriptor; the kernel's alignment makes it two. The kernel closes descriptors that do not fit,
# and sets MSG_CTRUNC.
_CONTROL_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTOR_BYTES)


class ReceivedNamespace:
    """A network namespace that came with a packet. It owns the descriptor. `close` may be called twice."""

    __slots__ = ("_descriptor", "identity")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.identity = NamespaceIdentity.of(descriptor)

    @property
    def descriptor(self) -> int:
        """The open descriptor, -1 after `close`. A user that needs it for longer duplicates it."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Packet:
    """One packet with its descriptors. A context manager, which closes those that were not taken."""

    __slots__ = ("_descriptors", "data", "truncated")

    def __init__(self, data: bytes, descriptors: list[int], *, truncated: bool) -> None:
        self.data = data
        self.truncated = truncated
        self._descriptors = descriptors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    @property
    def descriptors(self) -> int:
        """How many descriptors came."""
        return len(self._descriptors)

    def check_complete(self) -> None:
        """Raise `ZdsReadError` when data or descriptors of the packet were truncated."""
        if self.truncated:
            raise ZdsReadError(
                f"message is truncated, over {LARGEST_PACKET} bytes or with too much control data"
            )

    def take_namespace(self) -> ReceivedNamespace:
        """Returns the first descriptor, which the caller closes from now on."""
        namespace = ReceivedNamespace(self._descriptors[0])
        del self._descriptors[0]
        return namespace


class PacketConnection:
    """One connection to the agent. Use it as a context manager, which closes it."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected non-blocking SOCK_SEQPACKET socket."""
        self._sock = sock

    @classmethod
    def connect(cls, path: str) -> PacketConnection:
        """Connect; a Unix socket does that at once or fails. Raises OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.close()

    async def receive(self) -> Packet | None:
        """Wait for a packet and return it; the caller closes it. Returns None at the end of the connection.

        It is no checkpoint when a packet is there. An empty packet looks like the end and counts as one.
        Raises OSError.
        """
        while True:
            try:
                data, control, flags, _ = self._sock.recvmsg(
                    LARGEST_PACKET, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            packet = Packet(
                data, _descriptors(control), truncated=bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
            )
            if not data:
                with packet:
                    return None
            return packet

    async def send(self, data: bytes, seconds: float) -> None:
        """Send one packet. Raises OSError; TimeoutError when the agent does not read in time."""
        with trio.move_on_after(seconds):
            while True:
                try:
                    self._sock.send(data)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                    continue
                return
        raise TimeoutError("deadline has elapsed")


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            # A truncated message may end inside a number.
            numbers.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_BYTES])
            found.extend(numbers)
    return found
