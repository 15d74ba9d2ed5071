"""A tunnel's stream as a Trio stream, for the inner TLS of double HBONE."""

from __future__ import annotations

from operator import index

import trio

from ztunnel.hbone import ErrorCode, code_text
from ztunnel.tunnel.carrier import StreamClosedError
from ztunnel.tunnel.tunnel_stream import TunnelStream

_CHUNK = 64 * 1024


class StreamTransport(trio.abc.HalfCloseableStream):
    """Wraps a stream without an attached socket; `aclose` closes the stream.

    A reset by the peer and the loss of the tunnel raise BrokenResourceError.
    """

    def __init__(self, stream: TunnelStream) -> None:
        self._stream = stream
        self._closed = False
        self._sending = False
        self._receiving = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, as fast as the windows allow."""
        self._check("sending" if self._sending else None)
        if self._stream.end_sent:
            raise trio.ClosedResourceError("the end has been sent")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            view = memoryview(bytes(data))
            while view:
                room = await self._stream.wait_room()
                part = view[: min(room, _CHUNK)]
                self._stream.send(part)
                view = view[len(part) :]
                if view:
                    await trio.lowlevel.checkpoint()
        except StreamClosedError as error:
            raise self._broken() from error
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the windows have room."""
        self._check("sending" if self._sending else None)
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            if not self._stream.end_sent:
                await self._stream.wait_room()
        except StreamClosedError as error:
            raise self._broken() from error
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Half-close."""
        self._check("sending" if self._sending else None)
        await trio.lowlevel.checkpoint()
        self._stream.send_end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return them, ``b""`` after the peer's end."""
        limit = _CHUNK if max_bytes is None else index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        self._check("receiving" if self._receiving else None)
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            return bytes(await self._stream.receive_some(limit))
        except StreamClosedError as error:
            raise self._broken() from error
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """End our direction, and tell the peer that we no longer read (RST_STREAM). Never blocks."""
        self._closed = True
        self._stream.send_end()
        self._stream.reset(ErrorCode.NO_ERROR)
        self._stream.close()
        self._stream.wake()
        await trio.lowlevel.checkpoint()

    def _check(self, busy: str | None) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        if busy is not None:
            raise trio.BusyResourceError(f"another task is already {busy} on this stream")

    def _broken(self) -> trio.BrokenResourceError | trio.ClosedResourceError:
        if self._closed:
            return trio.ClosedResourceError("this stream was closed meanwhile")
        code = self._stream.reset_code
        return trio.BrokenResourceError("the tunnel was lost" if code is None else code_text(code))
