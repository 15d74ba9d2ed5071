"""The server's side of SOCKS5, sans-IO: what an application needs to name its destination (RFC 1928).

Only CONNECT without authentication. As in the Rust ztunnel, every refusal is ten bytes with a code in them,
and success is answered before the destination is dialled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from ztunnel.errors import ZtunnelError
from ztunnel.model.address import SocketAddress, canonical

VERSION = 5
LONGEST_MESSAGE = 2 + 255 + 4 + 1 + 255 + 2
"""Bytes of the longest greeting and request together. A client cannot make us hold more."""

METHOD_CHOSEN = bytes((VERSION, 0))


class SocksReply(Enum):
    """The codes that we use, of RFC 1928 section 6."""

    SUCCEEDED = 0
    HOST_UNREACHABLE = 4
    COMMAND_NOT_SUPPORTED = 7


def reply(code: SocksReply) -> bytes:
    """Returns the ten bytes of a reply, without a bound address."""
    return bytes((VERSION, code.value, 0, 1, 0, 0, 0, 0, 0, 0))


class SocksError(ZtunnelError):
    """The client sent something that we do not support, or a bad request. ``reply``: the reply to it."""

    code = "ZT-NET-020"

    def __init__(self, text: str, answer: SocksReply = SocksReply.COMMAND_NOT_SUPPORTED) -> None:
        kind = "CommandNotSupported" if answer is SocksReply.COMMAND_NOT_SUPPORTED else "HostUnreachable"
        super().__init__(f"{kind}: {text}")
        self.reply = answer


@dataclass(frozen=True, slots=True)
class SocksTarget:
    """The destination that the client wants: an address, or a hostname and a port."""

    destination: SocketAddress | tuple[str, int]


class SocksServer:
    """One negotiation.

    Call `receive` with bytes until it returns a target; write what `take_output` returns.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greeted = False
        self._output = bytearray()

    def take_output(self) -> bytes:
        """Returns the bytes to write to the client."""
        output = bytes(self._output)
        self._output.clear()
        return output

    @property
    def missing(self) -> int:
        """How many bytes to read next: at least 1, and never more than belong to the negotiation."""
        buffer = self._buffer
        have = len(buffer)
        if not self._greeted:
            return max(2 if have < 2 else 2 + buffer[1], have + 1) - have
        if have < 5:
            return 5 - have
        size = {1: 4, 3: 1 + buffer[4], 4: 16}.get(buffer[3], 1)
        return max(4 + size + 2 - have, 1)

    def receive(self, data: bytes) -> SocksTarget | None:
        """Process bytes of the client. Returns the target once the request is complete, None before.

        Raises SocksError; the negotiation has failed then.
        """
        self._buffer += data
        if not self._greeted and not self._greeting():
            return None
        return self._request()

    def _greeting(self) -> bool:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError(f"unsupported version {buffer[0]}")
        if len(buffer) < 2:
            return False
        count = buffer[1]
        if count == 0:
            raise SocksError("methods cannot be zero")
        if len(buffer) < 2 + count:
            return False
        if 0 not in buffer[2 : 2 + count]:
            raise SocksError("only unauthenticated is supported")
        del buffer[: 2 + count]
        self._output += METHOD_CHOSEN
        self._greeted = True
        return True

    def _request(self) -> SocksTarget | None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError(f"unsupported version {buffer[0]}")
        if len(buffer) > 1 and buffer[1] != 1:
            raise SocksError(f"unsupported command {buffer[1]}")
        if len(buffer) < 5:
            return None
        kind = buffer[3]
        sizes = {1: 4, 3: 1 + buffer[4], 4: 16}
        size = sizes.get(kind)
        if size is None:
            raise SocksError(f"unsupported address type {kind}")
        end = 4 + size
        if len(buffer) < end + 2:
            return None
        port = int.from_bytes(buffer[end : end + 2], "big")
        address = bytes(buffer[4:end])
        del buffer[: end + 2]
        if kind == 3:
            return SocksTarget((self._name(address[1:]), port))
        ip = IPv4Address(address) if kind == 1 else IPv6Address(address)
        return SocksTarget(SocketAddress(canonical(ip), port))

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("ascii")
        except UnicodeDecodeError:
            raise SocksError("the host name is not ASCII") from None
        if not name:
            raise SocksError("the host name is empty")
        return name
