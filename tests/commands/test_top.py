"""`ztunnel top`, driven by keys, on an admin server that is made up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static, TabbedContent

from tests.support.shown_node import CERTIFICATES, CONNECTION, FAILED, TUNNEL, Node
from ztunnel import cli
from ztunnel.explain.text import span
from ztunnel.tools import top
from ztunnel.tools.top_app import ExplanationScreen, Top, size


@pytest.fixture
def admin() -> Iterator[str]:
    overview = asyncio.run(Node().overview())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            pages = {
                "/node": overview,
                "/connections": [FAILED] if "failed" in query else [CONNECTION],
                "/debug/pool": [TUNNEL],
                "/debug/certificates": CERTIFICATES,
            }
            body = json.dumps(pages[parts.path]) if parts.path in pages else f"text of {self.path}"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def drive(admin: str, act: Callable[[Top, Pilot[None]], Awaitable[None]]) -> None:
    """Run the application without a terminal and do something in it."""

    async def run() -> None:
        app = Top(admin, 3600)
        async with app.run_test(size=(160, 40)) as pilot:
            await until(pilot, lambda: app.looked > 0)
            await act(app, pilot)

    asyncio.run(run())


async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await pilot.pause(0.02)


def rows(app: Top, name: str) -> list[list[str]]:
    table = app.query_one(f"#{name}-table", DataTable)
    return [table.get_row_at(index) for index in range(table.row_count)]


def glance(app: Top) -> str:
    return str(app.query_one("#glance", Static).render())


def test_the_node_and_its_parts_are_shown(admin):
    async def act(app: Top, pilot: Pilot[None]) -> None:
        assert "node-1" in glance(app)
        assert "not connected to https://istiod:15012" in glance(app)
        [connection] = rows(app, "connections")
        assert connection[0] == "shop/web"
        assert connection[-1] == "peer's window"
        for key, name, text in (
            ("2", "failures", "ZT-HBN-010"),
            ("3", "tunnels", "10.0.0.2:15008"),
            ("4", "pods", "shop/web"),
            ("5", "certificates", "spiffe://sooner"),
        ):
            await pilot.press(key)
            await until(pilot, partial(rows, app, name))
            assert app.query_one(TabbedContent).active == name
            assert any(text in cell for cell in rows(app, name)[0])
        await pilot.press("6")
        await until(pilot, lambda: "text of /debug/tasks" in str(app.query_one("#tree", Static).render()))

    drive(admin, act)


def test_enter_explains_a_connection_and_escape_goes_back(admin):
    async def act(app: Top, pilot: Pilot[None]) -> None:
        app.query_one("#connections-table").focus()
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ExplanationScreen))
        shown = str(app.screen.query_one(Static).render())
        assert "text of /explain?connection=a-1" in shown
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ExplanationScreen))

    drive(admin, act)


def test_order_and_pause(admin):
    async def act(app: Top, pilot: Pilot[None]) -> None:
        assert glance(app).endswith("by recent")
        await pilot.press("s")
        await until(pilot, lambda: glance(app).endswith("by age"))
        await pilot.press("p")
        await until(pilot, lambda: "paused" in glance(app))

    drive(admin, act)


def test_a_node_that_falls_silent_is_told_of(admin):
    async def act(app: Top, pilot: Pilot[None]) -> None:
        app._admin = "http://127.0.0.1:9"
        await app.look()
        await until(pilot, lambda: "not live" in glance(app))

    drive(admin, act)


def test_without_a_node_or_textual_it_says_so(monkeypatch, capsys):
    assert cli.main(["top", "--admin", "127.0.0.1:9"], {}) == 2
    assert "No ztunnel answers at 127.0.0.1:9" in capsys.readouterr().err
    monkeypatch.setattr(top, "find_spec", lambda _name: None)
    assert cli.main(["top"], {}) == 2
    assert "pip install 'ztunnel[top]'" in capsys.readouterr().err


def test_few_characters():
    assert [span(value) for value in (None, 0.0123, 5, 150, 90_000, -30)] == [
        "",
        "12ms",
        "5.0s",
        "2min",
        "25.0h",
        "-30s",
    ]
    assert [size(value) for value in (0, 999, 1500, 2e6, 3e9, 4e12)] == [
        "0B",
        "999B",
        "1.5kB",
        "2.0MB",
        "3.0GB",
        "4.0TB",
    ]
