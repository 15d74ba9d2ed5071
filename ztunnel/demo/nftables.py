"""nftables rules without the program ``nft``: text becomes netlink messages, which are sent as one batch.

How it works. `compile_rules` reads only the words that `redirection.nftables_rules` uses, and turns each
phrase into what the kernel runs: load something into a register, compare or change it there, act.
`apply_rules` sends all of it between a begin and an end, so that either all rules are in force or none, and
reads the answers.

Sources: nft(8) for the text, linux/netfilter/nf_tables.h for the messages (pyroute2 has their layout).
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pyroute2.netlink import nlmsg
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg

from ztunnel.demo.namespaces import OwnedNamespace

_FAMILIES: Final = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
_HOOKS: Final = {"prerouting": 0, "output": 3}
_PRIORITIES: Final = {"mangle": -150, "dstnat": -100, "raw": -300}
_PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_ERROR: Final = 0x2
_HEADER: Final = struct.Struct("=IHHII")
_REGISTER: Final = 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_ADDRESSES: Final = {
    ("ip", "saddr"): (12, 4),
    ("ip", "daddr"): (16, 4),
    ("ip6", "saddr"): (8, 16),
    ("ip6", "daddr"): (24, 16),
}
_PORTS: Final = {"sport": 0, "dport": 2}
_META: Final = {"mark": 3, "iifname": 6, "oifname": 7, "l4proto": 16}
_CT: Final = {"mark": 3, "zone": 17}
_NAME_LENGTH: Final = 16
_TIMEOUT_SECONDS: Final = 5.0

Expression = tuple[str, list[tuple[str, Any]]]


class NetlinkRefusedError(OSError):
    """The kernel refuses the rules."""


def apply_rules(namespace: OwnedNamespace, text: str) -> None:
    """Put rules into force in a namespace. Raises OSError, and then none of them is."""
    messages = list(compile_rules(text))
    with namespace.entered():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    with sock:
        sock.settimeout(_TIMEOUT_SECONDS)
        batch = _control(_BATCH_BEGIN, 0)
        for number, (kind, family, message) in enumerate(messages, 1):
            batch += _encode(
                message, _SUBSYSTEM << 8 | kind, family, number, _REQUEST | _ACK | _CREATE | _APPEND
            )
        sock.sendto(batch + _control(_BATCH_END, len(messages) + 1), (0, 0))
        _await_answers(sock, len(messages))


def _await_answers(sock: socket.socket, count: int) -> None:
    waiting = set(range(1, count + 1))
    while waiting:
        data = sock.recv(1 << 16)
        while len(data) >= _HEADER.size:
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, _HEADER.size)
                if code:
                    raise NetlinkRefusedError(-code, f"nf_tables: {os.strerror(-code)}")
                waiting.discard(sequence)
            data = data[(length + 3) & ~3 :]


def _control(kind: int, sequence: int) -> bytes:
    message = nfgen_msg()
    message["res_id"] = _SUBSYSTEM
    return _encode(message, kind, 0, sequence, _REQUEST)


def _encode(message: nlmsg, kind: int, family: int, sequence: int, flags: int) -> bytes:
    message["nfgen_family"] = family
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = sequence
    message.encode()
    return bytes(message.data)


def compile_rules(text: str) -> Iterator[tuple[int, int, nlmsg]]:
    """Returns type, family and content of each message, in order. Raises ValueError for unknown words."""
    family = table = chain = ""
    for line in (line.strip() for line in text.splitlines()):
        if match := re.fullmatch(r"table (ip6?) (\S+) \{", line):
            family, table = match.groups()
            yield _NEW_TABLE, _FAMILIES[family], _message(nft_table_msg, {"NFTA_TABLE_NAME": table})
        elif match := re.fullmatch(r"chain (\S+) \{", line):
            chain = match[1]
        elif match := re.fullmatch(r"type (\w+) hook (\w+) priority (\S+); policy accept;", line):
            kind, hook, priority = match.groups()
            number = _PRIORITIES.get(priority)
            place = [
                ("NFTA_HOOK_HOOKNUM", _HOOKS[hook]),
                ("NFTA_HOOK_PRIORITY", int(priority) if number is None else number),
            ]
            values: dict[str, Any] = {
                "NFTA_CHAIN_TABLE": table,
                "NFTA_CHAIN_NAME": chain,
                "NFTA_CHAIN_HOOK": {"attrs": place},
            }
            yield _NEW_CHAIN, _FAMILIES[family], _message(nft_chain_msg, values | {"NFTA_CHAIN_TYPE": kind})
        elif line not in {"", "}"}:
            expressions = [_expression(*one) for one in compile_rule(line)]
            values = {
                "NFTA_RULE_TABLE": table,
                "NFTA_RULE_CHAIN": chain,
                "NFTA_RULE_EXPRESSIONS": expressions,
            }
            yield _NEW_RULE, _FAMILIES[family], _message(nft_rule_msg, values)


def _message(kind: Callable[[], nlmsg], values: Mapping[str, Any]) -> nlmsg:
    message = kind()
    message["attrs"] = [list(item) for item in values.items()]
    return message


def _expression(name: str, values: list[tuple[str, Any]]) -> dict[str, Any]:
    attributes = [(f"NFTA_{name.upper()}_{key}", value) for key, value in values]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}


def compile_rule(line: str) -> list[Expression]:
    """Returns what the kernel runs for one rule: names of expressions with their attributes.

    Raises ValueError.
    """
    rest, expressions = line, list[Expression]()
    while rest:
        for pattern, make in _PHRASES:
            if match := pattern.match(rest):
                expressions += make(*match.groups())
                rest = rest[match.end() :].lstrip()
                break
        else:
            raise ValueError(f"not known in a rule: {rest}")
    return expressions


# -- what phrases mean -------------------------------------------------------------------------------------


def _data(value: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _host(number: int, length: int = 4) -> bytes:
    """Returns a number in the byte order of a kernel register: marks and zones use the machine's order."""
    return number.to_bytes(length, sys.byteorder)


def _load(source: str, key: int) -> Expression:
    return source, [("DREG", _REGISTER), ("KEY", key)]


def _store(source: str, key: int) -> Expression:
    return source, [("KEY", key), ("SREG", _REGISTER)]


def _payload(base: int, offset: int, length: int) -> Expression:
    return "payload", [("DREG", _REGISTER), ("BASE", base), ("OFFSET", offset), ("LEN", length)]


def _compare(value: bytes, *, equal: bool = True) -> Expression:
    return "cmp", [("SREG", _REGISTER), ("OP", 0 if equal else 1), ("DATA", _data(value))]


def _bitwise(mask: int, xor: int) -> Expression:
    values = [("SREG", _REGISTER), ("DREG", _REGISTER), ("LEN", 4)]
    return "bitwise", [*values, ("MASK", _data(_host(mask))), ("XOR", _data(_host(xor)))]


def _immediate(value: bytes) -> Expression:
    return "immediate", [("DREG", _REGISTER), ("DATA", _data(value))]


def _protocol(name: str) -> list[Expression]:
    return [_load("meta", _META["l4proto"]), _compare(bytes([_PROTOCOLS[name]]))]


def _address(family: str, field: str, negation: str | None, address: str) -> list[Expression]:
    packed = socket.inet_pton(_FAMILIES[family], address)
    load = _payload(_NETWORK_HEADER, *_ADDRESSES[family, field])
    return [load, _compare(packed, equal=negation is None)]


def _port(protocol: str, field: str, negation: str | None, port: str) -> list[Expression]:
    compare = _compare(int(port).to_bytes(2, "big"), equal=negation is None)
    return [*_protocol(protocol), _payload(_TRANSPORT_HEADER, _PORTS[field], 2), compare]


def _interface(key: str, negation: str | None, name: str) -> list[Expression]:
    compare = _compare(name.encode().ljust(_NAME_LENGTH, b"\0"), equal=negation is None)
    return [_load("meta", _META[key]), compare]


def _mark(source: str, mask: str, operator: str, value: str) -> list[Expression]:
    compare = _compare(_host(int(value, 0)), equal=operator == "==")
    return [
        _load(source, _META["mark"] if source == "meta" else _CT["mark"]),
        _bitwise(int(mask, 0), 0),
        compare,
    ]


def _redirect(port: str) -> list[Expression]:
    flags = frozenset({"NF_NAT_RANGE_PROTO_SPECIFIED"})
    return [
        _immediate(int(port).to_bytes(2, "big")),
        ("redir", [("REG_PROTO_MIN", _REGISTER), ("FLAGS", flags)]),
    ]


def _accept() -> list[Expression]:
    verdict = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", 1)]})]}
    return [("immediate", [("DREG", 0), ("DATA", verdict)])]


def _change_ct_mark(mask: str, xor: str) -> list[Expression]:
    return [_load("ct", _CT["mark"]), _bitwise(int(mask, 0), int(xor, 0)), _store("ct", _CT["mark"])]


def _restore_mark() -> list[Expression]:
    return [_load("ct", _CT["mark"]), _store("meta", _META["mark"])]


def _zone(number: str) -> list[Expression]:
    return [_immediate(_host(int(number), 2)), _store("ct", _CT["zone"])]


_PHRASES: Final[list[tuple[re.Pattern[str], Callable[..., list[Expression]]]]] = [
    (re.compile(pattern + r"(?= |$)"), make)
    for pattern, make in (
        (r"(ip6?) (saddr|daddr) (!= )?([\da-f.:]+)", _address),
        (r"(tcp|udp) (sport|dport) (!= )?(\d+)", _port),
        (r'(iifname|oifname) (!= )?"([^"]{1,15})"', _interface),
        (r"meta l4proto (tcp|udp)", _protocol),
        (r"meta mark set ct mark", _restore_mark),
        (r"ct mark set ct mark & (\w+) \^ (\w+)", _change_ct_mark),
        (r"ct zone set (\d+)", _zone),
        (r"(meta|ct) mark & (\w+) (==|!=) (\w+)", _mark),
        (r"redirect to :(\d+)", _redirect),
        (r"accept", _accept),
    )
]
