"""What two ztunnels say to one another on the wire, told by tshark: with their keys, and without.

ztunnel writes no keys and has no setting for it. Here each is started by a program of the test that first
gives OpenSSL's contexts a key log (NSS's format, draft-ietf-tls-keylogfile), so what is decrypted is the real
traffic between the real processes.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.needs import needs_programs
from tests.support.mesh import Mesh
from tests.support.namespaces import needs_namespaces
from tests.support.node_deployment import NodeDeployment
from tests.support.pod import MeshPod
from tests.support.traffic import read_all, serve

pytestmark = [needs_namespaces, needs_programs("tshark")]

WITH_KEY_LOG = """
import os
import sys

from OpenSSL import SSL

made = SSL.Context.__init__


def with_key_log(self, *arguments, **options):
    made(self, *arguments, **options)

    def note(connection, line):
        with open(os.environ["TEST_KEY_LOG"], "ab") as file:
            file.write(line + b"\\n")

    self.set_keylog_callback(note)


SSL.Context.__init__ = with_key_log
from ztunnel.start import main

sys.exit(main())
"""
HBONE_PORT = 15008
TLS_1_3 = "0x0304"
PCAP_HEAD = struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
"""A capture file's head: version 2.4, packets of up to 256 KiB, Ethernet."""
REQUEST = b"what the client has to say, word for word " * 500
ANSWER = b"what the server answers to that " * 700


class Wire:
    """Two pods of two nodes, and the keys of their ztunnels."""

    def __init__(self, mesh: Mesh, client: MeshPod, server: MeshPod, keys: Path) -> None:
        self.mesh, self.client, self.server, self.keys = mesh, client, server, keys

    async def conversation(self) -> list[bytes]:
        """Question and answer over HBONE; gives the packets that went over the wire."""

        async def answer(stream: trio.SocketStream) -> None:
            assert await read_all(stream) == REQUEST
            await stream.send_all(ANSWER)

        with self.mesh.capture(self.mesh.node("b")) as capture:
            async with (
                serve(self.server, 8080, answer) as application,
                await self.client.connect(self.server.ipv4, 8080) as stream,
            ):
                await stream.send_all(REQUEST)
                await stream.send_eof()
                assert await read_all(stream) == ANSWER
            assert application.failures == []
            await self.server.logged(direction="inbound", bytes_recv=len(REQUEST))
            capture.read()
            assert capture.lost() == 0
            return list(capture.packets)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    keys = tmp_path / "keys"
    command = [sys.executable, "-c", WITH_KEY_LOG, "proxy", "ztunnel"]
    deployment = NodeDeployment(commands={"a": command, "b": command})
    with Mesh.open(deployment=deployment, environment={"TEST_KEY_LOG": str(keys)}) as mesh:
        client = mesh.node("a").pod("client")
        server = mesh.node("b").pod("server")
        mesh.start()
        yield Wire(mesh, client, server, keys)


class Tshark:
    """A capture in a file, as tshark reads it. keys: of the sessions in it."""

    def __init__(self, packets: list[bytes], file: Path, keys: Path | None = None) -> None:
        body = (struct.pack("=IIII", 0, 0, len(packet), len(packet)) + packet for packet in packets)
        file.write_bytes(PCAP_HEAD + b"".join(body))
        self._command = ["tshark", "-n", "-r", str(file), "-d", f"tcp.port=={HBONE_PORT},tls"]
        self._command += ["-T", "fields", "-E", "separator=/t", "-E", "aggregator=|"]
        if keys is not None:
            self._command += ["-o", f"tls.keylog_file:{keys}"]

    async def rows(self, filter_: str, *fields: str) -> list[list[list[str]]]:
        """Of each packet that a display filter lets through the values of these fields."""
        command = [*self._command, "-Y", filter_]
        for field in fields:
            command += ["-e", field]
        run = partial(subprocess.run, command, capture_output=True, text=True, timeout=120, check=False)
        done = await trio.to_thread.run_sync(run)
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        return [[cell.split("|") if cell else [] for cell in row] for row in rows]


async def test_without_keys_there_is_tls_and_nothing_else(wire: Wire, tmp_path: Path) -> None:
    """Neither a byte of the application, nor HTTP/2, nor who the two are: certificates are encrypted too."""
    packets = await wire.conversation()
    on_wire = b"".join(packets)
    for secret in (REQUEST[:20], ANSWER[:20], b"CONNECT", b"spiffe://", b"PRI * HTTP/2.0"):
        assert secret not in on_wire
    seen = Tshark(packets, tmp_path / "pcap")
    assert await seen.rows("http2 or http", "frame.number") == []
    assert await seen.rows("tls.handshake.type == 11", "frame.number") == []
    [[version]] = await seen.rows("tls.handshake.type == 2", "tls.handshake.extensions.supported_version")
    assert version == [TLS_1_3]
    # Of TLS records: the two hellos, what keeps middleboxes content, and from there on all is encrypted.
    kinds = {kind for [row] in await seen.rows("tls", "tls.record.content_type") for kind in row}
    assert kinds <= {"20", "22"}
    assert await seen.rows("tls.record.opaque_type == 23", "frame.number")
    assert await seen.rows(f"tcp.len > 0 and not tcp.port == {HBONE_PORT}", "frame.number") == []


async def test_with_the_keys_it_is_hbone(wire: Wire, tmp_path: Path) -> None:
    """Both certificates, the CONNECT with its headers, the answer, every byte both ways, both ends."""
    packets = await wire.conversation()
    seen = Tshark(packets, tmp_path / "pcap", wire.keys)
    client, server = wire.client, wire.server
    certificates = await seen.rows("tls.handshake.type == 11", "ip.src", "x509ce.uniformResourceIdentifier")
    assert {row[0][0]: row[1] for row in certificates} == {
        client.ipv4: [client.identity],
        server.ipv4: [server.identity],
    }
    [[chosen]] = await seen.rows("tls.handshake.type == 8", "tls.handshake.extensions_alpn_str")
    assert chosen == ["h2"]

    headers = await seen.rows(
        "http2.type == 1", "ip.src", "http2.streamid", "http2.header.name", "http2.header.value"
    )
    [[source, stream, names, values], [responder, answered, told, what]] = headers
    assert (source, responder, stream, answered) == ([client.ipv4], [server.ipv4], ["1"], ["1"])
    request = dict(zip(names, values, strict=True))
    assert request[":method"] == "CONNECT"
    assert request[":authority"] == f"{server.ipv4}:8080"
    assert not {":path", ":scheme"} & request.keys()
    assert f"k8s.namespace.name={client.namespace}" in request["baggage"]
    assert request["forwarded"].startswith(f'for="{client.ipv4}:')
    assert request["traceparent"].startswith("00-")
    assert dict(zip(told, what, strict=True))[":status"] == "200"

    sent = {client.ipv4: b"", server.ipv4: b""}
    for who, data in await seen.rows("http2.type == 0", "ip.src", "http2.data.data"):
        sent[who[0]] += b"".join(bytes.fromhex(piece) for piece in data if piece != "<MISSING>")
    assert sent == {client.ipv4: REQUEST, server.ipv4: ANSWER}
    ends = await seen.rows("http2.type == 0 and http2.flags.end_stream == 1", "ip.src")
    assert sorted(row[0][0] for row in ends) == sorted(sent)
    wrong = "_ws.malformed or tls.alert_message or http2.type == 3 or http2.type == 7"
    assert await seen.rows(wrong, "frame.number") == []
