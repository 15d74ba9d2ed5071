"""An ordinary HTTP client of the standard library, for machines without curl.

usage: python -m ztunnel.demo.fetch URL [SOCKS5-PORT]. With a port it uses the SOCKS5 proxy there on
    127.0.0.1; the URL's host must then be an IPv4 address. Prints the body; on failure it prints why and
    exits with status 1.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import sys
from urllib.parse import urlsplit

_TIMEOUT = 10.0


def _socks5(port: int, host: str, host_port: int) -> socket.socket:
    """Returns a connection to ``host:host_port`` through a SOCKS5 proxy (RFC 1928) without authentication."""
    greeting = b"\x05\x01\x00"
    address = ipaddress.IPv4Address(host).packed
    request = b"\x05\x01\x00\x01" + address + host_port.to_bytes(2, "big")
    connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
    answers = []
    try:
        for message, length in ((greeting, 2), (request, 10)):
            connection.sendall(message)
            answers.append(connection.recv(length, socket.MSG_WAITALL))
    except OSError:
        connection.close()
        raise
    # "No authentication", then "succeeded".
    if answers[0] != b"\x05\x00" or answers[1][:2] != b"\x05\x00":
        connection.close()
        raise OSError(f"the SOCKS5 proxy answered {answers}")
    return connection


def fetch(url: str, socks5_port: int | None = None) -> str:
    """Returns the body of a page. Raises OSError or http.client.HTTPException."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    if socks5_port is not None:
        connection.sock = _socks5(socks5_port, host, port)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().read().decode(errors="replace")
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """The program. Returns its exit status."""
    try:
        body = fetch(arguments[0], int(arguments[1]) if len(arguments) > 1 else None)
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"fetch: {error}\n")
        return 1
    sys.stdout.write(body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
