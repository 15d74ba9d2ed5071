"""Messages over a socketpair: a length, MessagePack, and descriptors.

A frame is four bytes of length (big-endian) and a message encoded by msgspec. The descriptors of a pod (its
network namespace and its listeners) travel as SCM_RIGHTS with the first byte of its frame. The kernel never
merges bytes across such a boundary, so descriptors arrive in the order of their messages.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Generic, TypeVar, cast

import msgspec
import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.errors import ZtunnelError
from ztunnel.messages import FromDataPlane, PodAdded, ToDataPlane

_READ = 256 * 1024
_LENGTH = 4
_Message = TypeVar("_Message")


class FrameError(ZtunnelError):
    """The other end of the socketpair sent an invalid frame."""

    code = "ZT-INT-004"


class MessageSocket(
    trio.abc.SendChannel[ToDataPlane | FromDataPlane], trio.abc.ReceiveChannel[_Message], Generic[_Message]
):
    """One end of a socketpair between the control side and a worker: messages in both directions.

    decoder: for the union of messages that come in. largest: the most bytes that a message may have. The
        socket is closed by `aclose`.
    """

    def __init__(
        self,
        sock: socket.socket,
        decoder: msgspec.msgpack.Decoder[_Message],
        largest: int = DEFAULTS.control.worker_message,
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003  # the standard library has no other way
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._decoder = decoder
        self._largest = largest
        # A response's resources are in a lazy sequence that msgspec does not know.
        self._encoder = msgspec.msgpack.Encoder(enc_hook=list)
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._sending = trio.Lock()

    async def send(self, value: ToDataPlane | FromDataPlane) -> None:
        """Send a message. The descriptors of a PodAdded are sent with it and closed here.

        Raises BrokenResourceError when the other end is closed.
        """
        body = self._encoder.encode(value)
        frame = memoryview(len(body).to_bytes(_LENGTH, "big") + body)
        descriptors = value.descriptors() if isinstance(value, PodAdded) else []
        try:
            async with self._sending:
                if descriptors:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                    sent = await self._sock.sendmsg([frame], rights)
                    frame = frame[sent:]
                while frame:
                    sent = await self._sock.send(frame)
                    frame = frame[sent:]
        except OSError as error:
            raise trio.BrokenResourceError from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def receive(self) -> _Message:
        """Wait for the next message and return it.

        Raises EndOfChannel when the other end is closed, FrameError for an invalid frame.
        """
        while True:
            message = self._next()
            if message is not None:
                return message
            try:
                data, ancillary, _, _ = await self._sock.recvmsg(
                    _READ, socket.CMSG_SPACE(16 * _LENGTH), socket.MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise trio.EndOfChannel from error
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                    self._descriptors.extend(received)
            if not data:
                raise trio.EndOfChannel
            self._buffer += data

    def _next(self) -> _Message | None:
        buffer = self._buffer
        if len(buffer) < _LENGTH:
            return None
        length = int.from_bytes(buffer[:_LENGTH], "big")
        if length > self._largest:
            raise FrameError(f"A frame of {length} bytes was announced by the other process.")
        end = _LENGTH + length
        if len(buffer) < end:
            return None
        try:
            message = self._decoder.decode(bytes(buffer[_LENGTH:end]))
        except msgspec.MsgspecError as error:
            raise FrameError(f"The other process sent a message that cannot be read: {error}.") from error
        del buffer[:end]
        if isinstance(message, PodAdded):
            return cast("_Message", self._with_descriptors(message))
        return message

    def _with_descriptors(self, message: PodAdded) -> PodAdded:
        """Returns the message with the descriptors that came beside it."""
        wanted = len(message.descriptors())
        if len(self._descriptors) < wanted:
            raise FrameError(f"The other process announced {wanted} descriptors and sent fewer.")
        came = [self._descriptors.popleft() for _ in range(wanted)]
        netns = None if message.netns is None else came.pop(0)
        listeners = message.listeners
        if listeners is not None:
            replace = msgspec.structs.replace
            listeners = tuple(replace(one, descriptor=own) for one, own in zip(listeners, came, strict=True))
        return msgspec.structs.replace(message, netns=netns, listeners=listeners)

    async def aclose(self) -> None:
        """Close the socket, and every descriptor that came and was not taken."""
        self._sock.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        await trio.lowlevel.checkpoint()


def worker_end(
    sock: socket.socket, largest: int = DEFAULTS.control.worker_message
) -> MessageSocket[ToDataPlane]:
    """Returns the data plane's end."""
    return MessageSocket(sock, msgspec.msgpack.Decoder(ToDataPlane), largest)


def control_end(
    sock: socket.socket, largest: int = DEFAULTS.control.worker_message
) -> MessageSocket[FromDataPlane]:
    """Returns the control side's end. largest: the most bytes that a message may have."""
    return MessageSocket(sock, msgspec.msgpack.Decoder(FromDataPlane), largest)
