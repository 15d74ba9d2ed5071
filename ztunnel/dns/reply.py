"""The replies that are our own: answers from the mesh, and error codes.

Flags as in docs/protocol/state-and-xds.md#dns-server: id, opcode, RD and CD are the
query's; answers from the mesh have AA and RA, errors neither; an OPT record is in an answer when one was in
the query, and in no error but BADVERS. Over UDP a reply has at most what its client takes: the payload of its
OPT record, 512 bytes without one or when it says less (RFC 1035, 4.2.1; RFC 6891, 6.2.3).
"""

from __future__ import annotations

import struct

from ztunnel.decide.dns_names import TTL, TYPE_A, TYPE_AAAA, DnsAnswer
from ztunnel.dns.message import (
    CLASS_IN,
    HEADER_LENGTH,
    LONGEST_TCP,
    LONGEST_UDP_WITHOUT_EDNS,
    Query,
    Rcode,
    echo,
    encode_name,
    encode_opt,
)

TYPE_CNAME = 5

_QR = 0x8000
_AA = 0x0400
_TC = 0x0200
_RD = 0x0100
_RA = 0x0080
_CD = 0x0010
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_FARTHEST_POINTER = 0x3FFF


def error_reply(query: Query, rcode: Rcode) -> bytes:
    """Returns a reply with a code and the question, without records and without EDNS."""
    return echo(query.id, query.flags, rcode, 1, query.question)


def reply_limit(query: Query, *, tcp: bool) -> int:
    """Returns how many bytes a reply of ours may have."""
    if tcp:
        return LONGEST_TCP
    payload = 0 if query.edns is None else query.edns.payload
    return max(LONGEST_UDP_WITHOUT_EDNS, payload)


def own_reply(query: Query, answer: DnsAnswer, limit: int) -> bytes:
    """Returns the reply for a decision of kind RECORDS or NO_RECORDS, of at most ``limit`` bytes.

    Records that do not fit are left out, and the reply is marked as truncated; the OPT record always fits.
    Owner names are in lower case and compressed.
    """
    opt = encode_opt(query.edns) if query.edns is not None else b""
    names = _Names(query.question)
    room = limit - HEADER_LENGTH - len(query.question) - len(opt)
    body = bytearray()
    count = 0
    truncated = False
    for kind, owner, data in _records(answer):
        mark = len(body)
        names.write(body, owner)
        body += _RECORD.pack(kind, CLASS_IN, TTL, len(data))
        if kind == TYPE_CNAME:
            before = len(body)
            names.write(body, answer.owner)
            body[before - 2 : before] = (len(body) - before).to_bytes(2, "big")
        else:
            body += data
        if len(body) > room:
            del body[mark:]
            truncated = True
            break
        count += 1
    flags = _QR | _AA | _RA | (_TC if truncated else 0) | (query.flags & (_RD | _CD))
    header = _HEADER.pack(query.id, flags, 1, count, 0, 1 if opt else 0)
    return b"".join((header, query.question, body, opt))


def _records(answer: DnsAnswer) -> list[tuple[int, str, bytes]]:
    """Returns type, owner and data of each record.

    The caller writes a CNAME's data, because it is compressed.
    """
    records = []
    if answer.cname is not None:
        records.append((TYPE_CNAME, answer.requested, b""))
    for address in answer.addresses:
        kind = TYPE_A if address.version == 4 else TYPE_AAAA
        records.append((kind, answer.owner, address.packed))
    return records


class _Names:
    """Writes names after a header and a question. A pointer replaces an ending that was written before.

    Names are compared with their case: a pointer into a question in mixed case would return mixed case.
    """

    def __init__(self, question: bytes) -> None:
        self._body_starts = HEADER_LENGTH + len(question)
        self._known: dict[bytes, int] = {}
        self._learn(question[:-4], HEADER_LENGTH)

    def _learn(self, encoded: bytes, offset: int) -> None:
        position = 0
        while position < len(encoded) and (length := encoded[position]):
            self._known.setdefault(encoded[position:], offset + position)
            position += 1 + length

    def write(self, body: bytearray, name: str) -> None:
        """Append ``name``, of plain lower-case hostname labels with a last dot, to ``body``."""
        encoded = encode_name(name)
        start = self._body_starts + len(body)
        position = 0
        while length := encoded[position]:
            known = self._known.get(encoded[position:])
            if known is not None and known <= _FARTHEST_POINTER:
                body += encoded[:position] + (0xC000 | known).to_bytes(2, "big")
                break
            position += 1 + length
        else:
            body += encoded
        self._learn(encoded, start)
