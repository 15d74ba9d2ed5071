"""The versions of TLS on the way to istiod; grpcio settles them once, so each case has its own process."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.fake_ca import FakeCertificateAuthority

CLIENT = """
import sys, trio
from pathlib import Path
from ztunnel.bounds import ControlBounds
from ztunnel.grpc.bridge import GrpcChannel
from ztunnel.grpc.status import GrpcStatusError

async def main():
    roots = Path(sys.argv[2]).read_bytes()
    tls12 = sys.argv[3] == "1"
    bounds = ControlBounds(xds_connect=1)
    async with GrpcChannel(f"localhost:{sys.argv[1]}", roots=roots, tls12=tls12, bounds=bounds) as channel:
        try:
            await channel.unary("/a/b", b"", deadline_seconds=2)
        except GrpcStatusError:
            pass

trio.run(main)
"""


def negotiated(directory: Path, version: ssl.TLSVersion, *, tls12: bool) -> str | None:
    """The version that a server of this version alone and our channel agree on; None when they do not."""
    authority = FakeCertificateAuthority()
    key, chain = authority.server("127.0.0.1", "localhost")
    for name, pem in (("key", key), ("chain", chain), ("root", authority.root)):
        (directory / name).write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "chain", directory / "key")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    agreed: list[str | None] = []

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True) as secured:
                agreed.append(secured.version())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-c", CLIENT, port, str(directory / "root"), str(int(tls12))]
        subprocess.run(command, check=True, timeout=60)
        server.join(30)
    return agreed[0] if agreed else None


@pytest.mark.parametrize(
    ("version", "tls12", "expected"),
    [
        (ssl.TLSVersion.TLSv1_3, False, "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_2, False, None),
        (ssl.TLSVersion.TLSv1_3, True, "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_2, True, "TLSv1.2"),
    ],
)
def test_tls_1_2_is_spoken_only_where_it_is_enabled(tmp_path, version, tls12, expected):
    assert negotiated(tmp_path, version, tls12=tls12) == expected
