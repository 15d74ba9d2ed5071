"""`ztunnel explain` and `ztunnel what-if`: on dumps, and on an admin server that is made up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from tests.explain.meshes import dump_text, store_of
from tests.support.fake_mesh import HBONE, FakeMesh
from ztunnel import cli
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, explain
from ztunnel.state.store import MeshStore

POLICY = """
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: default}
spec: {}
"""


@pytest.fixture
def store() -> MeshStore:
    mesh = FakeMesh()
    web = mesh.add_service("web", "10.96.0.1", ports={80: 8080}, hostname="web.default.svc.cluster.local")
    mesh.add_workload("client", "10.0.0.1", HBONE)
    mesh.add_workload("web-1", "10.0.0.2", HBONE, behind=web)
    return store_of(mesh)


@pytest.fixture
def dump(store: MeshStore, tmp_path: Path) -> str:
    held = json.loads(dump_text(store))
    held["workloadState"] = {
        "uid-of-the-pod": {
            "info": {"name": "web-1", "namespace": "default", "serviceAccount": "web-1"},
            "state": "Up",
            "connections": {
                "inbound": [
                    {
                        "src": "10.0.0.1:4000",
                        "originalDst": None,
                        "actualDst": "10.0.0.2:8080",
                        "protocol": "HBONE",
                    }
                ],
                "outbound": [],
            },
        }
    }
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(held))
    return str(path)


def run(*arguments: str) -> int:
    return cli.main(arguments, {})


def test_explain_on_a_dump(dump, capsys):
    assert run("explain", "--dump", dump, "default/client", "web") == 0
    out = capsys.readouterr().out
    assert "=> default/client reaches service default/web.default.svc.cluster.local" in out
    assert run("explain", "--dump", dump, "default/client", "web", "--json") == 0
    assert json.loads(capsys.readouterr().out)["plan"]["next_hop"] == "10.0.0.2:15008"


def test_explain_says_no_by_its_exit_status(dump, capsys):
    assert run("explain", "--dump", dump, "default/client", "web:81") == 1
    assert "ZT-RTE-002" in capsys.readouterr().out
    assert run("explain", "--dump", dump, "default/cleint", "web") == 2
    assert "  default/client\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["explain", "--dump", "/nowhere/dump", "a/b", "c"], "cannot read /nowhere/dump"),
        (["explain", "--admin", "127.0.0.1:9", "a/b", "c"], "No ztunnel answers at 127.0.0.1:9"),
        (["explain"], "FROM and TO are needed"),
        (["what-if"], "-f or --without is needed"),
        (["what-if", "-f", "/nowhere/policy.yaml"], "cannot read /nowhere/policy.yaml"),
    ],
)
def test_what_cannot_be_asked_is_told_with_status_2(arguments, part, capsys):
    assert run(*arguments) == 2
    assert part in capsys.readouterr().err


def test_what_if_on_dumps_of_several_nodes(dump, tmp_path, capsys):
    policy = tmp_path / "policies" / "nobody.yaml"
    policy.parent.mkdir()
    policy.write_text(POLICY)
    (tmp_path / "policies" / "readme.txt").write_text("no policy")
    assert run("what-if", "-f", str(policy.parent), "--dump", dump, "--dump", dump) == 1
    out = capsys.readouterr().out
    assert "2 would be cut:" in out
    assert "note: A dump has no connections that have ended" in out
    assert "10.0.0.1:4000 (spiffe://cluster.local/ns/default/sa/client) → default/web-1 10.0.0.2:8080" in out
    assert "=> Of 2 open and 0 remembered connections, 2 would be cut" in out
    policy.write_text(POLICY.replace("spec: {}", "spec: {rules: [{}]}"))
    assert run("what-if", "-f", str(policy), "--dump", dump, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"changes": [], "notes": [], "open": 1, "remembered": 0}


def test_what_if_does_not_take_a_wrong_path_or_a_dump_without_connections_for_no_change(
    dump, store, tmp_path, capsys
):
    policies = tmp_path / "policies"
    policies.mkdir()
    assert run("what-if", "-f", str(policies), "--dump", dump) == 2
    other = policies / "other.yaml"
    other.write_text("kind: ConfigMap")
    assert run("what-if", "-f", str(other), "--dump", dump) == 2
    refused = capsys.readouterr().err.splitlines()
    assert refused == [
        f"Error: {path} has no AuthorizationPolicy and no PeerAuthentication. (ZT-EXP-005)"
        for path in (policies, other)
    ]
    other.write_text(POLICY)
    dedicated = tmp_path / "dedicated.json"
    dedicated.write_bytes(dump_text(store))
    assert run("what-if", "-f", str(other), "--dump", str(dedicated), "--json") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [
        f"{dedicated} has no connections: a ztunnel in dedicated mode dumps none."
    ]


def test_a_question_of_two_kinds_is_refused_and_not_half_of_it_answered(dump, capsys):
    for more in (("--dump", dump), ("default/client", "web")):
        assert run("explain", "--connection", "a-1", *more) == 2
        assert "--connection is asked of a running ztunnel, and without FROM" in capsys.readouterr().err


@pytest.fixture
def admin(store: MeshStore) -> Iterator[str]:
    """An admin server with one mesh, an open connection and one that was refused."""
    view = {
        "direction": "inbound",
        "pod": "default/web-1",
        "client": "10.0.0.1:4000",
        "destination": "10.0.0.2:8080",
        "peerIdentity": "spiffe://cluster.local/ns/default/sa/client",
        "protocol": "HBONE",
        "ageSeconds": 1.5,
    }
    views = [
        {**view, "id": "a-1", "state": "open"},
        {**view, "id": "a-2", "state": "closed", "error": "denied", "code": "ZT-POL-001"},
        {**view, "id": "a-3", "state": "closed"},
        {**view, "id": "a-4", "state": "closed", "error": "down", "code": "ZT-NET-012"},
        {**view, "id": "a-5", "state": "open", "direction": "outbound"},
        {**view, "id": "a-6", "state": "open", "protocol": "", "waitsFor": "the TLS handshake"},
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, body = 200, b""
            if parts.path == "/config_dump":
                body = dump_text(store)
            elif parts.path == "/connections":
                body = json.dumps(views).encode()
            elif "connection" in query:
                found = [one for one in views if one["id"] == query["connection"]]
                status, body = (200, json.dumps(found[0]).encode()) if found else (404, b"There is none.\n")
            else:
                question = Question(query["from"], query["to"])
                answer = explain(StoreCatalogue(store), question, Setting())
                body = msgspec.json.encode(answer)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_explain_asks_a_running_ztunnel(admin, capsys):
    assert run("explain", "--admin", admin, "default/client", "web") == 0
    assert "and no policy forbids it." in capsys.readouterr().out
    assert run("explain", "--admin", admin, "--connection", "a-2") == 1
    assert "=> denied (ZT-POL-001)" in capsys.readouterr().out
    assert run("explain", "--admin", admin, "--connection", "a-9") == 2
    assert capsys.readouterr().err == "There is none.\n"


def test_what_if_asks_a_running_ztunnel(admin, tmp_path, capsys):
    policy = tmp_path / "nobody.yaml"
    policy.write_text(POLICY)
    assert run("what-if", "-f", str(policy), "--admin", admin, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert [(one["effect"], one["connection"]) for one in answer["changes"]] == [
        ("cut", "a-1"),
        ("refused", "a-2"),
        ("refused", "a-3"),
    ]
    assert answer["remembered"] == 2
