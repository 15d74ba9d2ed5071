"""What commands say when an admin server's answer is not understood: no traceback, and an exit status."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ztunnel import cli
from ztunnel.tools.doctor import _running
from ztunnel.tools.findings import Severity

FINE = {"identity": "spiffe://c", "expiresInSeconds": 60, "lastError": None, "lastErrorCode": None}
FAILING = FINE | {"identity": "spiffe://b", "lastError": "refused", "lastErrorCode": "ZT-2"}
EXPIRED = FINE | {"identity": "spiffe://a", "expiresInSeconds": -120, "lastError": "no answer"}


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """An HTTP server that answers everything so, until the block ends; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """It says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


COMMANDS = [
    ["explain", "default/client", "shop/web"],
    ["explain", "--connection", "1-2"],
    ["what-if"],
]
ANSWERS = [(500, b"out of order"), (200, b"<html>"), (200, b"[1, 2]")]


CASES = [(command, *answer) for command in COMMANDS for answer in ANSWERS]
CASES.append((["top"], 500, b"out of order"))  # else it shows what it is told


@pytest.mark.parametrize(("command", "status", "body"), CASES)
def test_the_answer_of_another_server(command, status, body, tmp_path, capsys):
    if command == ["what-if"]:
        policy = tmp_path / "policy.yaml"
        policy.write_text(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
            "metadata: {name: all, namespace: default}\nspec: {}\n"
        )
        command = ["what-if", "-f", str(policy)]
    with answering(status, body) as admin:
        assert cli.main([*command, "--admin", admin], {}) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.strip()
    assert "Traceback" not in told.err


@pytest.mark.parametrize(("status", "body"), [(404, b"no"), (200, b"<html>"), (200, b"{}")])
def test_the_doctor_skips_a_server_that_is_no_ztunnel(status, body):
    with answering(status, body) as admin:
        [found] = _running(admin)
    assert (found.check, found.state) == ("ztunnel", Severity.SKIPPED)
    assert "does not know /debug/certificates" in found.text


def test_the_doctor_tells_of_certificates_that_expired_or_cannot_be_renewed():
    with answering(200, json.dumps([EXPIRED, FAILING, FINE]).encode()) as admin:
        expired, failing = _running(admin)
    assert (expired.state, failing.state) == (Severity.FAILURE, Severity.WARNING)
    assert expired.text == "that of spiffe://a expired 2 minutes ago: no answer"
    assert failing.text == "that of spiffe://b cannot be renewed: refused (ZT-2)"
    with answering(200, json.dumps([FINE, FINE]).encode()) as admin:
        [fine] = _running(admin)
    assert (fine.state, fine.text) == (Severity.OK, "2, none expired, none that cannot be renewed")


@pytest.mark.parametrize("admin", ["https://127.0.0.1:15000", "http://127.0.0.1:99999"])
@pytest.mark.parametrize("command", [["explain", "a/b", "c/d"], ["top"]])
def test_an_address_of_no_admin_server_is_named_as_such(admin, command, capsys):
    assert cli.main([*command, "--admin", admin], {}) == 2
    told = capsys.readouterr().err
    assert "an admin server speaks http" in told or "Port out of range" in told
