"""The open descriptors of this process as the kernel shows them: kind, addresses, TCP state, queues."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ztunnel.sockets.tcp_info import tcp_info

_STANDARD = {0: "standard input", 1: "log", 2: "standard error"}
_INTERNAL = {
    "eventpoll": "event loop",
    "eventfd": "messages and wake-ups within ztunnel",
    "inotify": "watch of files",
    "/memfd:mesh (deleted)": "the mesh for new workers",
    "net": "network namespace",
    "netlink raw": "questions to the kernel",
    "pidfd": "end of a process",
    "pipe": "splice, or inherited",
    "unix seqpacket": "CNI agent",
    "unix socketpair": "messages and wake-ups within ztunnel",
}
"""The roles of what no pod and no server has, by kind."""

_FAMILIES = {
    socket.AF_INET: "inet",
    socket.AF_INET6: "inet6",
    socket.AF_UNIX: "unix",
    socket.AF_NETLINK: "netlink",
}
_TYPES = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_SEQPACKET: "seqpacket",
    socket.SOCK_RAW: "raw",
}

_SLICE = 50
"""Descriptors that are looked at between two pauses: some system calls each."""


_LISTED = 500
"""Descriptors that are listed between two pauses: two microseconds each."""


class Use(NamedTuple):
    """What a descriptor is for. ``since``: on trio's clock. ``connection``: its id."""

    pod: str
    role: str
    since: float | None = None
    connection: str = ""


def shown_descriptors(uses: Mapping[int, Use], now: float) -> Iterator[dict[str, Any] | None]:
    """Yields one mapping for each descriptor, by number. Those that close meanwhile are left out.

    Yields None in between, where the caller lets other tasks run. ``now`` is on trio's clock.
    """
    numbers: list[int] = []
    with os.scandir("/proc/self/fd") as entries:
        for listed, entry in enumerate(entries, 1):
            numbers.append(int(entry.name))
            if listed % _LISTED == 0:
                yield None
    for looked, number in enumerate(sorted(numbers), 1):
        shown = _descriptor(number, uses.get(number), now)
        if shown is not None:
            yield shown
        if looked % _SLICE == 0:
            yield None


def _descriptor(number: int, use: Use | None, now: float) -> dict[str, Any] | None:
    try:
        mode = os.fstat(number).st_mode
        target = str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return None
    shown: dict[str, Any] = {
        "pid": os.getpid(),
        "fd": number,
        "pod": use.pod if use else "",
        "role": use.role if use else "",
    }
    if use is not None and use.since is not None:
        shown["ageSeconds"] = round(now - use.since, 3)
    if use is not None and use.connection:
        shown["connection"] = use.connection
    if stat.S_ISSOCK(mode):
        shown.update(_socket(number))
    else:
        shown["kind"] = target if target.startswith("/") else _kernel_object(target)
    shown["role"] = shown["role"] or _STANDARD.get(number) or _INTERNAL.get(shown["kind"]) or _idle(shown)
    return shown


def _idle(shown: Mapping[str, Any]) -> str:
    """Returns the role of a TCP socket that has no connection, or none yet; "" for others."""
    return {"CLOSE": "spare, for the next dial", "SYN_SENT": "being dialled"}.get(shown.get("state", ""), "")


def _kernel_object(target: str) -> str:
    """Returns ``eventpoll`` for ``anon_inode:[eventpoll]``, and ``pipe`` for ``pipe:[123]``."""
    kind, _, name = target.partition(":")
    return name.strip("[]") if kind == "anon_inode" else kind


def _socket(number: int) -> dict[str, Any]:
    try:
        sock = socket.socket(fileno=os.dup(number))
    except OSError:
        return {"kind": "socket"}
    with sock:
        kind, family = _TYPES.get(sock.type, "other"), _FAMILIES.get(sock.family, "other")
        if family == "unix" and _is_pair(sock):
            return {"kind": "unix socketpair"}
        shown: dict[str, Any] = {"kind": f"{family} {kind}"}
        if family.startswith("inet"):
            shown["local"] = address_of(sock, peer=False)
            shown["peer"] = address_of(sock, peer=True)
            info = tcp_info(sock)
            if info is not None:
                shown |= {"state": info.state, "sendQueue": info.unsent, "receiveQueue": info.unread}
                if info.state != "CLOSE":
                    shown["idleSeconds"] = info.idle
        return shown


def _is_pair(sock: socket.socket) -> bool:
    """Whether a Unix socket is connected, and neither end has a name: ``socketpair`` makes such ones."""
    try:
        return not sock.getsockname() and not sock.getpeername()
    except OSError:
        return False


def address_of(sock: socket.socket, *, peer: bool) -> str:
    """Returns the socket's own address or its peer's as text, "" if it has none."""
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return ""
    host = str(name[0]).removeprefix("::ffff:")
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"
