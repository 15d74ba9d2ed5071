"""Forwards a port of this machine to a port in a pod of the demo.

``python -m ztunnel.demo.port_forward DESCRIPTOR PORT``: the descriptor is a listening socket of the machine,
and the process runs in the network namespace of a pod. So a browser outside reaches the admin server, which
listens on the pod's loopback only. It ends with the demo.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from functools import partial

import trio

from ztunnel.demo.machine import Machine
from ztunnel.demo.namespaces import OwnedNamespace

MOST_CONNECTIONS = 64
_CHUNK = 1 << 16


class PortForward:
    """A port of the machine's loopback, opened before the demo changes namespaces. Close it at the end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        """The address for a browser."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def lead(self, machine: Machine, namespace: OwnedNamespace | None, port: int) -> None:
        """Forward connections to a port of a namespace's loopback, as long as the machine exists."""
        descriptor = self._listener.fileno()
        command = [sys.executable, "-m", __spec__.name, str(descriptor), str(port)]
        machine.spawn("port-forward", command, namespace=namespace, descriptors=[descriptor])

    def close(self) -> None:
        """Close the port; the process that `lead` started keeps it open."""
        self._listener.close()


async def serve(listener: trio.SocketListener, port: int) -> None:
    """Forward connections to a port of this namespace's loopback until cancelled."""
    limiter = trio.CapacityLimiter(MOST_CONNECTIONS)

    async def handle(outside: trio.SocketStream) -> None:
        async with outside, limiter:
            try:
                inside = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                return
            async with inside, trio.open_nursery() as nursery:
                nursery.start_soon(copy, outside, inside)
                await copy(inside, outside)
                nursery.cancel_scope.cancel()

    await trio.serve_listeners(handle, [listener])


async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    """Copy the bytes of one direction, and its end."""
    try:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()
    except trio.BrokenResourceError:
        pass


def main(arguments: Sequence[str]) -> None:
    """Serve on the descriptor in the first argument, for the port in the second."""
    descriptor, port = map(int, arguments)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
    trio.run(partial(serve, listener, port))


if __name__ == "__main__":
    main(sys.argv[1:])
