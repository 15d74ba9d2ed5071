"""Checks at start whether this process may do what in-pod mode needs, and not only with the first pod."""

from __future__ import annotations

import os
import socket
from typing import ClassVar

from ztunnel.errors import ZtunnelError, os_error_text
from ztunnel.netns.namespace import Namespace


class MissingPrivilegeError(ZtunnelError):
    """The kernel does not let this process enter network namespaces, or mark its packets."""

    code: ClassVar[str] = "ZT-NET-030"


async def verify_privileges(mark: int | None) -> None:
    """Enter our own network namespace again, and mark a socket. Raises MissingPrivilegeError."""
    try:
        descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            own = Namespace(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with own as namespace:
            [sock] = await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise MissingPrivilegeError(
            f"A network namespace cannot be entered ({os_error_text(error)}): this needs CAP_SYS_ADMIN."
        ) from error
    with sock:
        try:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        except OSError as error:
            raise MissingPrivilegeError(
                f"Packets cannot be marked ({os_error_text(error)}): this needs CAP_NET_ADMIN or CAP_NET_RAW."
            ) from error
