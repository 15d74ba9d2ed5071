"""Handing listening sockets over to a successor without losing a connection.

During an upgrade two processes listen on the same port of a pod (SO_REUSEPORT), and the kernel spreads new
connections over both by a hash. When the old one closes its socket, the kernel resets the connections that
were dealt to it and not accepted yet, and those whose handshake was under way: the client had a connection,
and lost it. Accepting until nothing is left and closing right after does not mend that, since there is a
moment in between, and a handshake takes a round trip.

So the old socket must be given nothing for a while before it closes. The newcomer sees to it: it attaches a
program to the group of sockets that picks the second socket, which is the newcomer. New connections come to
it from then on, before it is ready, so before anybody tells the old process to end. A socket joins the
group at its end, and when one leaves, the last takes its place. So the old one's end makes the newcomer the
first of a group of one; there is no second then, the kernel falls back to the hash, and the next newcomer
will be the second again. Should the newcomer die instead, the old one is alone, and gets all again.

Should a third process join while two still listen, it shares a group in which the second is picked, and gets
connections only when one of the others has gone; that is no loss, since all of them accept. The old process
accepts what is left in its queue before it closes (`ztunnel.sockets.accept.accept_waiting`), which covers
this case and a kernel that refuses the program, but for the moment in between.

Of the alternatives, ``net.ipv4.tcp_migrate_req`` moves the queue of a socket that closes to another, but it
is a setting of the pod's namespace, visible to its applications, and a container that is not privileged
cannot write it. Measured in tests/e2e/test_inpod_upgrade.py.
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
    """Have what arrives for the port come to this socket, which was bound (and listens, if it is TCP) last.

    Alone on its port it is not affected. Where the kernel refuses, connections are spread over all sockets.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, _ATTACH)
    except OSError as error:
        log.debug("new connections cannot be steered to the newest listener", error=error)
