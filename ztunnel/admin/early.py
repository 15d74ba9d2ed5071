"""Makes a listening socket, and opens that of the readiness server before the program's modules are loaded.

A kubelet may probe at any moment of a start, and most of the start is loading modules. A probe waits for its
answer if a socket listens; if none does, it is a warning in the pod's events. So this module imports nothing
that takes time.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

READINESS_PORT = 15021

_BACKLOG = 128


def listening(family: int, host: str, port: int) -> socket.socket:
    """Returns a non-blocking, listening socket; the IPv6 wildcard accepts IPv4 too. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_early(
    arguments: Sequence[str], environ: Mapping[str, str], port: int = READINESS_PORT
) -> socket.socket | None:
    """Returns the readiness server's sockets if the command is the proxy and the address is free.

    The caller closes them. None is no error: the configuration is read later, and errors are reported then.
    """
    if (arguments and arguments[0] != "proxy") or {"-h", "--help", "--version"} & set(arguments):
        return None
    try:
        if environ.get("IPV6_ENABLED") == "false":
            return listening(socket.AF_INET, "0.0.0.0", port)
        return listening(socket.AF_INET6, "::", port)
    except OSError:
        return None
