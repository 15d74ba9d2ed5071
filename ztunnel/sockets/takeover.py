"""Hands listening sockets over to a successor without losing a connection.

During an upgrade two processes listen on the same port of a pod (SO_REUSEPORT), and the kernel distributes
new connections to both by a hash. When the old process closes its socket, the kernel resets the connections
that were assigned to it and not accepted yet, and those in the middle of their handshake: the client had a
connection and loses it. Accepting until the queue is empty and closing right after is not enough, because
there is a moment in between, and a handshake takes a round trip.

So the old socket must get no new connections for a while before it closes. The successor does that: it
attaches a program to the group of sockets that always picks the second socket, which is the successor's. From
then on new connections come to it, before it is ready, and so before anybody tells the old process to end. A
new socket joins the group at its end, and when one leaves, the last takes its place. So after the end of the
old process the successor is the first of a group of one; there is no second socket, the kernel falls back to
the hash, and the next successor will be the second again. If the successor dies instead, the old process is
alone and gets everything again.

If a third process joins while two still listen, the program picks the second of three, and the third gets
connections only when one of the others has ended. Nothing is lost, because all of them accept. The old
process also accepts what is left in its queue before it closes (`ztunnel.sockets.accept.accept_waiting`).
That covers this case, and a kernel that refuses the program, except for the moment in between.

The alternative ``net.ipv4.tcp_migrate_req`` moves the queue of a closing socket to another one. But it is a
setting of the pod's namespace, visible to its applications, and an unprivileged container cannot set it.
Tested in tests/e2e/test_inpod_upgrade.py.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from ztunnel.observe.logging import get_logger

log = get_logger("socket")

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
_RETURN_CONSTANT = 0x06  # BPF_RET | BPF_K
_SECOND = 1

# struct sock_filter: code, jump if true, jump if false, constant.
_PROGRAM = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN_CONSTANT, 0, 0, _SECOND), 8)
# struct sock_fprog: number of instructions, pointer to them.
_ATTACH = struct.pack("@HP", 1, ctypes.addressof(_PROGRAM))


def steer_to_newest(sock: socket.socket) -> None:
    """Direct new connections of the port to this socket, which was bound last (and listens, if it is TCP).

    A socket that is alone on its port is not affected. If the kernel refuses, it distributes connections to
    all sockets.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, _ATTACH)
    except OSError as error:
        log.debug("new connections cannot be steered to the newest listener", error=error)
