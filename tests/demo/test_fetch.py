"""The demo's own HTTP client, direct and over SOCKS5."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.closed_port import closed_port
from ztunnel.demo.fetch import main


class _Greeter(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"greetings from " + self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        pass


@pytest.fixture
def server() -> Iterator[int]:
    """An HTTP server on loopback; gives its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Greeter) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


def proxy(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A SOCKS5 proxy that serves one connection with a function."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.settimeout(5)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_it_prints_the_body(server: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"http://127.0.0.1:{server}/here"]) == 0
    assert capsys.readouterr().out == "greetings from /here"


def test_over_socks5_the_proxy_is_told_the_destination(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection.recv(3))
        connection.sendall(b"\x05\x00")
        asked.append(connection.recv(10))
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        asked.append(connection.recv(1000))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy")

    for port in proxy(answer):
        assert main(["http://10.96.0.10:81/", str(port)]) == 0
    assert capsys.readouterr().out == "proxy"
    assert asked[:2] == [b"\x05\x01\x00", b"\x05\x01\x00\x01\x0a\x60\x00\x0a\x00\x51"]
    assert asked[2].startswith(b"GET / HTTP/1.1\r\nHost: 10.96.0.10:81\r\n")


@pytest.mark.parametrize("refusal", [b"\x05\xff", b"\x05\x00\x05\x01\x00\x01" + bytes(6), b""])
def test_a_refusing_proxy_is_an_error(refusal: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(3)
        connection.sendall(refusal)

    for port in proxy(answer):
        assert main(["http://10.96.0.10/", str(port)]) == 1
    assert capsys.readouterr().err.startswith("fetch: ")


def test_nobody_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port() as port:
        assert main([f"http://127.0.0.1:{port}/"]) == 1
    assert "refused" in capsys.readouterr().err
