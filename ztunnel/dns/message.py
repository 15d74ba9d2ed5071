"""DNS messages as bytes: what is read of a query, the replies that are our own, what makes a reply valid.

By hand, because bytes must be kept. A query that is not for us goes to the real resolver exactly as it came,
and the answer comes back exactly as the resolver sent it, but for the id; a library would decode and encode
again, and lose what it does not know. So of a message only what a decision needs is read: the header, the
questions, and whether there is an OPT record. The other records are walked over, to know that the message is
what its counts say.

A message (RFC 1035, 4.1)::

    id | flags | QDCOUNT ANCOUNT NSCOUNT ARCOUNT     12 bytes
    questions     name, type, class
    records       name, type, class, TTL, length, data: answers, then authority, then additional

A name is labels of a length and as many bytes, ended by an empty label, or by a pointer (two bits set) to
where the rest of it stands. Nothing here follows a pointer, so none can lead into a circle: those of records
are stepped over, and in a first question, where there is nothing yet to point to, one is an error.

Sources: RFC 1035, 3425 (opcodes), 5452 (which replies to believe), 6891 (EDNS);
docs/protocol/state-and-xds.md#dns-server.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import dns.rdatatype

HEADER_LENGTH = 12
LONGEST_UDP_WITHOUT_EDNS = 512
"""The largest reply over UDP when the client did not announce a size (RFC 1035, 4.2.1)."""
LONGEST_TCP = 0xFFFF

TYPE_OPT = 41
TYPE_IXFR = 251
TYPE_AXFR = 252
CLASS_IN = 1
_OUR_PAYLOAD = 1232  # what passes without fragmentation anywhere (DNS flag day 2020)

_QR = 0x8000
_OPCODE = 0x7800
_TC = 0x0200
_RD = 0x0100
_CD = 0x0010
_RCODE = 0x000F
_DO = 0x8000
_OPCODE_NAMES = {1: "IQuery", 2: "Status", 4: "Notify", 5: "Update", 6: "DSO"}

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_TWO = struct.Struct("!HH")
_LONGEST_NAME = 255


class Rcode(IntEnum):
    """The response codes that are used here."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


BADVERS = 16
"""The extended response code for an unsupported version of EDNS (RFC 6891, 6.1.3)."""


class Edns(NamedTuple):
    """A query's OPT record: the UDP payload that it accepts, its version, and the DNSSEC OK flag."""

    payload: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A query with one question.

    message: the whole message as received. question: the bytes of the question section.
    name: in presentation form, in the case that was sent, with the last dot.
    """

    message: bytes
    id: int
    flags: int
    question: bytes
    name: str
    qtype: int
    edns: Edns | None

    @property
    def type_name(self) -> str:
        """``A``, ``HTTPS``; ``unknown`` for numbers without a name, which bounds how many names there are."""
        return type_name(self.qtype)

    @property
    def without_id(self) -> bytes:
        """The bytes that are equal in queries with the same answer."""
        return self.message[2:]

    def with_id(self, number: int) -> bytes:
        """Returns the message under another id."""
        return number.to_bytes(2, "big") + self.message[2:]


class Refused(NamedTuple):
    """A message that is not a valid query: the answer to it, and the reason for the log ("" for no line)."""

    reply: bytes
    why: str = ""


class _Malformed(Exception):
    """The bytes are not a valid message."""


_WITHOUT_QUESTION = {Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED}


def type_name(number: int) -> str:
    """Returns the name of a record type, ``unknown`` without one."""
    name = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(number))
    return "unknown" if name.startswith("TYPE") else name


def parse_query(message: bytes) -> Query | Refused | None:
    """Read what a client sent. Returns None if it gets no answer: it is too short, or itself a response."""
    if len(message) < HEADER_LENGTH:
        return None
    number, flags, questions, *records = _HEADER.unpack_from(message)
    if flags & _QR:
        return None
    try:
        question = _read_questions(message, questions)
        end = HEADER_LENGTH + len(question)
        edns = _find_edns(message, end, records)
    except _Malformed:
        return Refused(_header(number, flags, Rcode.FORMERR, 0))
    if edns is not None and edns.version > 0:
        return Refused(_bad_version(number, flags, questions, question, edns))
    opcode = (flags & _OPCODE) >> 11
    if opcode:
        text = f"unimplemented op_code: {_OPCODE_NAMES.get(opcode, f'Unknown({opcode})')}"
        return Refused(echo(number, flags, Rcode.NOTIMP, questions, question), text)
    if questions != 1:
        return Refused(echo(number, flags, Rcode.SERVFAIL, questions, question))
    qtype, _ = _TWO.unpack_from(question, len(question) - 4)
    return Query(message, number, flags, question, _presentation(question), qtype, edns)


def _read_questions(message: bytes, count: int) -> bytes:
    """Read the question section."""
    end = HEADER_LENGTH
    for index in range(count):
        end = _skip_name(message, end, pointers=index > 0) + 4
        if end > len(message):
            raise _Malformed
    return message[HEADER_LENGTH:end]


def _skip_name(message: bytes, position: int, *, pointers: bool) -> int:
    """Returns where the name at ``position`` ends."""
    start = position
    while True:
        if position >= len(message):
            raise _Malformed
        length = message[position]
        if length == 0:
            return position + 1
        if length >= 0xC0 and pointers:
            return position + 2
        if length > 63:
            raise _Malformed
        position += 1 + length
        if position - start >= _LONGEST_NAME:
            raise _Malformed


def _find_edns(message: bytes, position: int, counts: list[int]) -> Edns | None:
    """Walk over all records to the end. Returns the OPT record of the additional section."""
    answers, authority, additional = counts
    found: Edns | None = None
    first_additional = answers + authority
    for index in range(first_additional + additional):
        owner, position = position, _skip_name(message, position, pointers=True)
        if position + _RECORD.size > len(message):
            raise _Malformed
        kind, payload, ttl, length = _RECORD.unpack_from(message, position)
        position += _RECORD.size + length
        if position > len(message):
            raise _Malformed
        if kind == TYPE_OPT and index >= first_additional:
            if found is not None or message[owner] != 0:
                raise _Malformed  # RFC 6891, 6.1.1: one at most, owned by the root
            found = Edns(payload, (ttl >> 16) & 0xFF, bool(ttl & _DO))
    return found


def _presentation(question: bytes) -> str:
    """Returns the name at the begin of a question section as text.

    Other characters are written as a backslash and three digits.
    """
    labels = []
    position = 0
    while length := question[position]:
        label = question[position + 1 : position + 1 + length]
        position += 1 + length
        text = label.decode("latin-1")
        if not (text.isascii() and text.replace("-", "a").replace("_", "a").replace("*", "a").isalnum()):
            text = "".join(
                chr(byte) if 0x21 <= byte <= 0x7E and byte not in b'."\\' else f"\\{byte:03d}"
                for byte in label
            )
        labels.append(text)
    return ".".join(labels) + "."


def _header(number: int, flags: int, rcode: int, questions: int) -> bytes:
    return _HEADER.pack(number, _QR | (flags & (_OPCODE | _RD | _CD)) | rcode, questions, 0, 0, 0)


def echo(number: int, flags: int, rcode: int, questions: int, question: bytes) -> bytes:
    """Returns a reply with an id, a code, and the questions as received (left out if they are very long)."""
    if HEADER_LENGTH + len(question) > LONGEST_UDP_WITHOUT_EDNS:
        return _header(number, flags, rcode, 0)
    return _header(number, flags, rcode, questions) + question


def encode_opt(edns: Edns, *, rcode: int = 0) -> bytes:
    """Returns an OPT record for a reply: the query's payload and DO flag, our version, part of ``rcode``."""
    ttl = (rcode >> 4 << 24) | (_DO if edns.dnssec_ok else 0)
    return b"\0" + _RECORD.pack(TYPE_OPT, max(LONGEST_UDP_WITHOUT_EDNS, edns.payload), ttl, 0)


def _bad_version(number: int, flags: int, questions: int, question: bytes, edns: Edns) -> bytes:
    """Returns the reply to an unsupported version of EDNS. Its OPT record has our version."""
    opt = encode_opt(edns, rcode=BADVERS)
    reply = bytearray(echo(number, flags, BADVERS & _RCODE, questions, question))
    if len(reply) + len(opt) > LONGEST_UDP_WITHOUT_EDNS:
        reply = bytearray(_header(number, flags, BADVERS & _RCODE, 0))
    reply[HEADER_LENGTH - 2 : HEADER_LENGTH] = (1).to_bytes(2, "big")  # ARCOUNT
    return bytes(reply + opt)


# -- what a resolver answered ----------------------------------------------------------------------------


class Reply(NamedTuple):
    """The parts of a resolver's reply that matter."""

    rcode: int
    truncated: bool
    answers: int


def read_reply(message: bytes) -> Reply:
    """Read a message that `is_reply_to` has accepted."""
    _, flags, _, answers, _, _ = _HEADER.unpack_from(message)
    return Reply(flags & _RCODE, bool(flags & _TC), answers)


def is_reply_to(query: Query, number: int, message: bytes) -> bool:
    """Returns whether ``message`` can be the answer to ``query``, sent under the id ``number``.

    The question must be the same (RFC 5452, section 4), except for the case of its name, which some servers
    change. Servers that could not read a query answer with an error code and without a question.
    """
    if len(message) < HEADER_LENGTH:
        return False
    found, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if found != number or not flags & _QR or (flags ^ query.flags) & _OPCODE:
        return False
    if questions == 0:
        return answers == 0 and (flags & _RCODE) in _WITHOUT_QUESTION
    end = HEADER_LENGTH + len(query.question)
    return (
        questions == 1
        and message[end - 4 : end] == query.question[-4:]
        and message[HEADER_LENGTH : end - 4].lower() == query.question[:-4].lower()
    )


# -- queries of ours -------------------------------------------------------------------------------------


def encode_name(name: str) -> bytes:
    """Returns a hostname in wire format.

    Raises ValueError for an invalid one: empty or long labels, non-ASCII.
    """
    labels = name.removesuffix(".").encode("ascii").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} is no hostname")
    encoded = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(encoded) > _LONGEST_NAME:
        raise ValueError(f"{name!r} is longer than a hostname may be")
    return encoded


def make_query(name: str, qtype: int) -> Query:
    """Returns an ordinary query with EDNS and the id 0. Raises ValueError for an invalid hostname."""
    question = encode_name(name) + _TWO.pack(qtype, CLASS_IN)
    opt = b"\0" + _RECORD.pack(TYPE_OPT, _OUR_PAYLOAD, 0, 0)
    message = _HEADER.pack(0, _RD, 1, 0, 0, 1) + question + opt
    edns = Edns(_OUR_PAYLOAD, 0, dnssec_ok=False)
    return Query(message, 0, _RD, question, _presentation(question), qtype, edns)
