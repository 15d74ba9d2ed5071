"""The SOCKS5 port (15080): an application names its destination instead of being redirected."""

from __future__ import annotations

import socket

import trio

from ztunnel.model.address import SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.socks import LONGEST_MESSAGE, SocksError, SocksReply, SocksServer, SocksTarget, reply
from ztunnel.sockets.reset import set_end_on_close

log = get_logger("proxy::socks5")


async def negotiate(sock: socket.socket, client: SocketAddress, pod: PodContext) -> SocketAddress | None:
    """Negotiate SOCKS5. Returns the destination, or None when the client was refused or is gone.

    The caller closes ``sock``. Nothing is read beyond the request, so the client's first bytes stay in the
    socket.
    """
    server = SocksServer()
    with trio.move_on_after(pod.shared.bounds.connection.socks_timeout):
        try:
            target = await _negotiate(sock, server)
            if target is None:
                return None
            destination = None
            with trio.CancelScope() as resolving, pod.shared.hangups.watch(sock, resolving.cancel):
                destination = await _resolve(target, client, pod)
            if destination is None:
                return None
            sock.send(reply(SocksReply.SUCCEEDED))
        except SocksError as error:
            log.warning(f"failed to negotiate socks connection: {error}", **{"src.addr": client})
            _refuse(sock, server.take_output() + reply(error.reply))
            return None
        except OSError as error:
            log.debug(f"failed to negotiate socks connection: {error}", **{"src.addr": client})
            return None
        return destination
    log.warning("failed to negotiate socks connection: deadline has elapsed", **{"src.addr": client})
    return None


async def _negotiate(sock: socket.socket, server: SocksServer) -> SocksTarget | None:
    """Read only as many bytes as the negotiation still needs, so that no payload is read."""
    taken = 0
    while taken < LONGEST_MESSAGE:
        try:
            data = sock.recv(server.missing)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data:
            return None
        taken += len(data)
        target = server.receive(data)
        output = server.take_output()
        if output:
            # Ten bytes fit into an empty send buffer. If they block, the client does not follow the protocol,
            # and the error ends the negotiation.
            sock.send(output)
        if target is not None:
            return target
    raise SocksError("the request is too long")


async def _resolve(target: SocksTarget, client: SocketAddress, pod: PodContext) -> SocketAddress:
    destination = target.destination
    if isinstance(destination, SocketAddress):
        return destination
    name, port = destination
    names = pod.names
    if names is None:
        raise SocksError("unsupported hostname lookup, requires DNS enabled")
    address = await names.first_address(name, client.ip.version)
    if address is None:
        raise SocksError(f"{name} could not be resolved", SocksReply.HOST_UNREACHABLE)
    return SocketAddress(address, port)


def _refuse(sock: socket.socket, data: bytes) -> None:
    # The client is to read this answer, so the connection ends in order after it.
    set_end_on_close(sock)
    try:
        sock.send(data)
    except OSError as error:
        log.debug(f"could not answer a socks client: {error}")
