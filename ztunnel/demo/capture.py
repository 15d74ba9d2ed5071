"""A packet capture of TCP on one interface, read from the kernel without another program.

The packets wait in the socket's buffer until `Capture.read` takes them, so a capture needs no thread: open
it, let the traffic happen, read. The buffer holds some megabytes; packets that do not fit are lost and
counted.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import Self

from ztunnel.demo.namespaces import OwnedNamespace

_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_BUFFER = 32 * 1024 * 1024
_LARGEST_PACKET = 128 * 1024  # segmentation offload hands over up to 64 KiB at once, plus headers
_ETHERNET_HEADER = 14
_TCP = 6

_TLS_TYPES = {20: "change cipher spec", 21: "alert", 22: "handshake", 23: "application data"}


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment as it passed the interface."""

    src: str
    src_port: int
    dst: str
    dst_port: int
    sequence: int
    syn: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a TCP connection."""

    src: str
    src_port: int
    dst: str
    dst_port: int


@dataclass(frozen=True, slots=True)
class TlsRecord:
    """The visible part of a TLS record: its type and the length of its body."""

    kind: str
    length: int


class Capture:
    """All TCP packets on an interface from now on. A context manager, which closes it.

    Raises OSError if packet sockets are not permitted.
    """

    def __init__(self, namespace: OwnedNamespace, interface: str) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.bind((interface, 0))
            self._socket.settimeout(0)
        except OSError:
            self._socket.close()
            raise
        self.packets: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop. What was read stays available."""
        self._socket.close()

    def read(self) -> list[Segment]:
        """Returns all TCP segments that have passed since the start."""
        while True:
            try:
                self.packets.append(self._socket.recv(_LARGEST_PACKET))
            except BlockingIOError:
                break
        return [segment for packet in self.packets if (segment := parse_segment(packet)) is not None]

    def lost(self) -> int:
        """Returns how many packets did not fit into the buffer since the last call."""
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        lost: int = struct.unpack("=II", raw)[1]
        return lost


def parse_segment(frame: bytes) -> Segment | None:
    """Returns the TCP segment in an Ethernet frame, None if it holds something else or is cut short."""
    if len(frame) < _ETHERNET_HEADER + 20:
        return None
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[_ETHERNET_HEADER:]
    if kind == 0x0800:
        header, total, protocol = (packet[0] & 0x0F) * 4, int.from_bytes(packet[2:4], "big"), packet[9]
        source, destination = packet[12:16], packet[16:20]
        # A packet made for segmentation offload can be too long for the field, which is then 0.
        packet = packet[: total or len(packet)]
    elif kind == 0x86DD and len(packet) >= 40:
        header, payload, protocol = 40, int.from_bytes(packet[4:6], "big"), packet[6]
        source, destination = packet[8:24], packet[24:40]
        packet = packet[: header + payload] if payload else packet
    else:
        return None
    tcp = packet[header:]
    if protocol != _TCP or len(tcp) < 20:
        return None
    src_port, dst_port, sequence = struct.unpack("!HHI", tcp[:8])
    return Segment(
        str(ipaddress.ip_address(source)),
        src_port,
        str(ipaddress.ip_address(destination)),
        dst_port,
        sequence,
        bool(tcp[13] & 0x02),
        tcp[(tcp[12] >> 4) * 4 :],
    )


def reassemble(segments: list[Segment]) -> dict[Flow, bytes]:
    """Returns the bytes of each direction of each connection, in order, without retransmissions.

    Starts at the first byte after SYN, or at the lowest byte seen; ends at the first gap.
    """
    pieces: dict[Flow, dict[int, bytes]] = defaultdict(dict)
    starts: dict[Flow, int] = {}
    for segment in segments:
        flow = Flow(segment.src, segment.src_port, segment.dst, segment.dst_port)
        if segment.syn:
            starts[flow] = (segment.sequence + 1) % 2**32
        if len(segment.payload) > len(pieces[flow].get(segment.sequence, b"")):
            pieces[flow][segment.sequence] = segment.payload
    streams = {}
    for flow, parts in pieces.items():
        start = starts.get(flow, min(parts, default=0))
        data = bytearray()
        for offset, payload in sorted(
            ((sequence - start) % 2**32, payload) for sequence, payload in parts.items()
        ):
            if offset > len(data):
                break
            data += payload[len(data) - offset :]
        streams[flow] = bytes(data)
    return streams


def tls_records(stream: bytes) -> list[TlsRecord] | None:
    """Returns the TLS records in one direction of a connection, with an incomplete last one.

    None if not TLS.
    """
    records = []
    position = 0
    while position + 5 <= len(stream):
        kind = _TLS_TYPES.get(stream[position])
        if kind is None or stream[position + 1] != 3:
            return None
        length = int.from_bytes(stream[position + 3 : position + 5], "big")
        records.append(TlsRecord(kind, length))
        position += 5 + length
    return records
