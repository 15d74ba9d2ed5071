"""The application of ``ztunnel top``: tables that are updated every few seconds.

It asks the admin server over asyncio streams, because textual runs on asyncio: there is no thread, and the
keys work while a node does not answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Header, Static, TabbedContent, TabPane

from ztunnel.explain.text import span
from ztunnel.tools.ask import admin_address

REFRESH_TIMEOUT = 10.0
"""Seconds for one answer."""

_SORTS = ("recent", "age", "bytes", "idle")
Column = tuple[str, Callable[[Mapping[str, Any]], str]]


class NodeSilentError(Exception):
    """The node did not answer, or answered with an error."""


async def fetch(admin: str, path: str, query: Mapping[str, str] | None = None) -> str:
    """Returns one response of the admin server as text. Raises NodeSilentError."""
    target = f"{path}?{urlencode(query)}" if query else path
    try:
        async with asyncio.timeout(REFRESH_TIMEOUT):
            reader, writer = await asyncio.open_connection(*admin_address(admin))
            try:
                writer.write(f"GET {target} HTTP/1.0\r\nhost: localhost\r\n\r\n".encode())
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        raise NodeSilentError(f"{admin}: {str(error) or 'no answer in time'}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise NodeSilentError(f"{path}: {head.partition(b' ')[2][:40].decode(errors='replace')}")
    return body.decode("utf-8", "replace")


def size(count: float) -> str:
    """Returns a number of bytes in a few characters."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}TB"


def _text(name: str) -> Column:
    return name, lambda one: str(one.get(name, "") or "")


def _other(one: Mapping[str, Any]) -> str:
    return str(one.get("peer") or one.get("peerIdentity") or one.get("nextHop") or "")


CONNECTIONS: Sequence[Column] = (
    ("pod", lambda one: one["pod"]),
    ("way", lambda one: one["direction"]),
    ("other end", _other),
    ("destination", lambda one: one["destination"]),
    ("age", lambda one: span(one["ageSeconds"])),
    ("to server", lambda one: size(one.get("receivedBytes", 0))),
    ("back", lambda one: size(one.get("sentBytes", 0))),
    ("rate", lambda one: f"{size(one.get('rate', 0))}/s"),
    ("waits for", lambda one: one.get("waitsFor", "")),
)
FAILURES: Sequence[Column] = (
    ("ago", lambda one: span(one["ageSeconds"])),
    _text("code"),
    ("pod", lambda one: one["pod"]),
    ("way", lambda one: one["direction"]),
    ("destination", lambda one: one["destination"]),
    _text("error"),
)
TUNNELS: Sequence[Column] = (
    ("pod", lambda one: one["pod"]),
    ("way", lambda one: one["direction"]),
    ("peer", lambda one: one["peer"]),
    ("streams", lambda one: str(one["streams"])),
    ("stalled", lambda one: str(one["stalledStreams"])),
    ("held", lambda one: size(one["heldBytes"])),
    ("round trip", lambda one: span(one["roundTripSeconds"])),
    ("age", lambda one: span(one["ageSeconds"])),
    ("who it is", lambda one: ", ".join(one["peerIdentities"])),
)
PODS: Sequence[Column] = (
    ("pod", lambda one: one["name"]),
    ("state", lambda one: one["state"]),
    ("in", lambda one: str(one["inbound"])),
    ("out", lambda one: str(one["outbound"])),
    ("service account", lambda one: one["serviceAccount"]),
)
CERTIFICATES: Sequence[Column] = (
    ("expires in", lambda one: span(one.get("expiresInSeconds"))),
    ("next fetch", lambda one: span(one.get("nextAttemptSeconds"))),
    ("identity", lambda one: one["identity"]),
    ("last error", lambda one: one.get("lastError") or ""),
)
PARTS: Mapping[str, Sequence[Column]] = {
    "connections": CONNECTIONS,
    "failures": FAILURES,
    "tunnels": TUNNELS,
    "pods": PODS,
    "certificates": CERTIFICATES,
}


class ExplanationScreen(ModalScreen[None]):
    """An explanation over the tables; any of these keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "app.pop_screen", "Close")]
    DEFAULT_CSS = (
        "ExplanationScreen { align: center middle; } "
        "ExplanationScreen VerticalScroll { width: 90%; height: 80%; border: solid; }"
    )

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Returns the text, which may be longer than the screen."""
        with VerticalScroll():
            yield Static(self._text, markup=False)


class Top(App[None]):
    """The whole application. ``admin``: base URL of the admin server. ``every``: seconds between updates."""

    TITLE = "ztunnel"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"part('{name}')", name) for n, name in enumerate((*PARTS, "tasks"), 1)),
        Binding("s", "sort", "order"),
        Binding("p", "pause", "pause"),
        Binding("q", "quit", "end"),
    ]
    DEFAULT_CSS = "#glance { height: auto; padding: 0 1; } DataTable { height: 1fr; }"

    def __init__(self, admin: str, every: float) -> None:
        super().__init__()
        self._admin = admin
        self._every = every
        self._paused = False
        self._sort = 0
        self._seen: dict[str, tuple[float, float]] = {}
        self.looked = 0

    def compose(self) -> ComposeResult:
        """Returns the overview, the tables, and the keys."""
        yield Header()
        yield Static("…", id="glance", markup=False)
        with TabbedContent(initial="connections"):
            for name in PARTS:
                with TabPane(name, id=name):
                    yield DataTable(id=f"{name}-table", cursor_type="row", zebra_stripes=True)
            with TabPane("tasks", id="tasks"), VerticalScroll():
                yield Static("", id="tree", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        """Make the columns, and start updating."""
        for name, columns in PARTS.items():
            self._table(name).add_columns(*(title for title, _ in columns))
        self.set_interval(self._every, self.look)
        self.call_later(self.look)

    def _table(self, name: str) -> DataTable[str]:
        table: DataTable[str] = self.query_one(f"#{name}-table", DataTable)
        return table

    async def look(self) -> None:
        """Ask the node and show its answer. If it does not answer, the top line says so."""
        if self._paused:
            return
        try:
            node = json.loads(await fetch(self._admin, "/node"))
            await self._show(node)
        except (NodeSilentError, ValueError) as error:
            self._glance(f"not live: {error}")
            return
        self._glance(
            f"{node['mode'].lower()} {node['node']} {node['version']} | xds: {node['xds']} | "
            f"ca: {node['ca']} | {len(node['pods'])} pods, {node['open']} open, {node['failed']:.0f} failed, "
            f"{node['tasks']:.0f} tasks, lag {span(node['loopLagSeconds'])}, fds {node['descriptors']} | "
            f"by {_SORTS[self._sort]}"
        )
        self.looked += 1

    def _glance(self, text: str) -> None:
        self.query_one("#glance", Static).update(text)

    async def _show(self, node: Mapping[str, Any]) -> None:
        """Only the visible table is requested."""
        part = self.query_one(TabbedContent).active
        admin = self._admin
        if part == "tasks":
            self.query_one("#tree", Static).update(await fetch(admin, "/debug/tasks"))
            return
        items: list[dict[str, Any]]
        match part:
            case "connections":
                query = {"state": "open", "limit": "200", "sort": _SORTS[self._sort]}
                items = self._rated(json.loads(await fetch(admin, "/connections", query)))
            case "failures":
                items = json.loads(await fetch(admin, "/connections", {"failed": "1", "limit": "200"}))
            case "tunnels":
                items = json.loads(await fetch(admin, "/debug/pool"))
                items.sort(key=lambda one: -one["streams"])
            case "pods":
                items = list(node["pods"])
            case _:
                items = json.loads(await fetch(admin, "/debug/certificates"))
                items.sort(key=lambda one: one.get("expiresInSeconds", 0.0))
        self._fill(part, items)

    def _rated(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        now = time.monotonic()
        seen = {}
        for one in items:
            total = float(one.get("receivedBytes", 0) + one.get("sentBytes", 0))
            before = self._seen.get(one["id"])
            if before is not None and now > before[1]:
                one["rate"] = max(0.0, (total - before[0]) / (now - before[1]))
            seen[one["id"]] = (total, now)
        self._seen = seen
        return items

    def _fill(self, part: str, items: Sequence[Mapping[str, Any]]) -> None:
        table = self._table(part)
        chosen = table.cursor_row
        table.clear()
        for number, one in enumerate(items):
            cells = (make(one) for _, make in PARTS[part])
            table.add_row(*cells, key=str(one.get("id", number)))
        if items:
            table.move_cursor(row=min(chosen, len(items) - 1))

    async def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter on a connection explains it."""
        if event.data_table.id not in ("connections-table", "failures-table"):
            return
        try:
            text = await fetch(self._admin, "/explain", {"connection": str(event.row_key.value)})
        except NodeSilentError as error:
            text = str(error)
        await self.push_screen(ExplanationScreen(text))

    async def action_part(self, name: str) -> None:
        """Show a table, and request it at once."""
        self.query_one(TabbedContent).active = name
        await self.look()

    async def action_sort(self) -> None:
        """Use the next order of connections."""
        self._sort = (self._sort + 1) % len(_SORTS)
        await self.look()

    def action_pause(self) -> None:
        """Pause or continue updating."""
        self._paused = not self._paused
        if self._paused:
            self._glance("paused: p goes on")
