"""The pages that answer questions: explain, connections, tasks, sockets, pool and certificates.

The data planes know the answers, so each request becomes a question to them (`ztunnel.messages.Asked`), and
their answers are merged here. Nothing shows keys, tokens or payload.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import trio

from ztunnel.admin.control_sockets import control_sockets, name_role
from ztunnel.admin.http import Request, Response
from ztunnel.admin.page import Page
from ztunnel.errors import ZtunnelError
from ztunnel.explain.connection_views import Selection, connection_lines, ordered
from ztunnel.explain.explanation import Explanation, Outcome
from ztunnel.explain.live_state import judge, merged_live
from ztunnel.explain.text import lines
from ztunnel.messages import Topic
from ztunnel.observe.filter import Level
from ztunnel.observe.logging import get_logger
from ztunnel.observe.task_tree import TaskAges, TaskNode, Words, task_nodes
from ztunnel.slices import Slices, T, batches

log = get_logger("admin")
tasks_log = get_logger("debug::tasks")

Ask = Callable[[Topic, Mapping[str, str]], Awaitable[list[Any]]]
_TEXT = "text/plain; charset=utf-8"
_SLICE = 50
_LINES = 10
_EXPLAIN_USAGE = (
    "usage: /explain?from=NAMESPACE/POD&to=SERVICE-OR-ADDRESS[:PORT] or /explain?connection=ID; "
    "&json=1 for programs\n"
)


class Inspection:
    """Serves these pages.

    ask: sends a question to all data planes and returns the items of their answers. certificates: the state
        of each identity's certificate. ages, words: for the tasks of this process. overview: the overview of
        the node.
    """

    def __init__(
        self,
        ask: Ask,
        certificates: Callable[[], list[dict[str, Any]]],
        ages: TaskAges | None = None,
        words: Words | None = None,
        overview: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        servers: Mapping[int, str] | None = None,
    ) -> None:
        self._ask = ask
        self._certificates = certificates
        self._ages = ages
        self._words = words
        self._overview = overview or _nothing
        self._servers = servers or {}

    def pages(self) -> Mapping[str, Page]:
        """Returns the pages by path."""
        return {
            "/explain": Page(
                "Explain a connection: ?from=ns/pod&to=service:port, or ?connection=ID", self.explain
            ),
            "/node": Page("Show the node at a glance (JSON)", self.node),
            "/connections": Page(
                "List connections: ?state=open|closed&pod=&peer=&failed=1&code=", self.connections
            ),
            "/debug/tasks": Page("Show the tree of nurseries and tasks (?format=json)", self.tasks),
            "/debug/sockets": Page("Show every descriptor: whose, what for, in which state", self.sockets),
            "/debug/pool": Page("Show every tunnel: identities, streams, windows, ages", self.pool),
            "/debug/certificates": Page("Show every certificate: expiry, issuer, renewal", self.certificates),
        }

    async def explain(self, request: Request) -> Response:
        """``/explain``: why a connection would go where it goes, or why one ended as it did."""
        query = request.query
        if "connection" in query:
            return await self._connection(request)
        if not (query.get("from") and query.get("to")):
            return Response(400, _EXPLAIN_USAGE.encode(), _TEXT)
        answers = await self._ask(Topic.EXPLAIN, {"from": query["from"], "to": query["to"]})
        answer = msgspec.convert(answers[0], Explanation)
        answer.live = merged_live([one.get("live", {}) for one in answers])
        judge(answer)
        status = 404 if answer.outcome is Outcome.UNKNOWN else 200
        if _wants_json(request):
            return _json(answer, status)
        return Response(status, _text(lines(answer)), _TEXT)

    async def _connection(self, request: Request) -> Response:
        found = await self._ask(Topic.CONNECTIONS, {"id": request.query["connection"]})
        if not found:
            text = (
                "There is no such connection among those of this node that are open or remembered. "
                'An id is in the log lines of its connection: connection="…"; /connections lists all. '
                "(ZT-EXP-001)\n"
            )
            return Response(404, text.encode(), _TEXT)
        if _wants_json(request):
            return _json(found[0])
        return Response(200, _text(connection_lines(found[0])), _TEXT)

    async def connections(self, request: Request) -> Response:
        """``/connections``: open and closed connections."""
        parameters = {name: value for name, value in request.query.items() if name not in ("text", "json")}
        try:
            selection = Selection.parse(parameters)
        except ZtunnelError as error:
            return Response(400, f"{error} ({error.code})\n".encode(), _TEXT)
        shown = await _with_checkpoints(ordered(await self._ask(Topic.CONNECTIONS, parameters), selection))
        if "text" in request.query:
            if not shown:
                return Response(200, b"No connection matches.\n", _TEXT)
            return Response(
                200, _in_slices(line for one in shown for line in (*connection_lines(one), "")), _TEXT
            )
        return _json_items(shown)

    async def tasks(self, request: Request) -> Response:
        """``/debug/tasks``: the tree of this process, and those of the processes that carry traffic."""
        processes = await self._trees()
        if request.query.get("format") == "json" or "json" in request.query:
            return Response(200, _json_trees(processes), "application/json")
        return Response(200, _in_slices(_tree_lines(processes)), _TEXT)

    async def log_tasks(self) -> None:
        """Log the tree, one line for each task. A data plane that does not answer is logged too.

        So is that the lines would not be written: somebody waits for them.
        """
        if not tasks_log.is_enabled(Level.INFO):
            log.warning("the tree of tasks was asked for, and the scope ztunnel::debug::tasks is not at info")
            return
        try:
            processes = await self._trees()
        except (ZtunnelError, trio.TooSlowError) as error:
            log.warning("the tree of tasks cannot be had", error=str(error) or "no answer in time")
            return
        for number, line in enumerate(_tree_lines(processes), 1):
            tasks_log.info(line)
            if number % _LINES == 0:
                await trio.lowlevel.checkpoint()

    async def _trees(self) -> list[dict[str, Any]]:
        pid = os.getpid()
        own: list[TaskNode] = []
        for number, node in enumerate(task_nodes(self._ages, words=self._words), 1):
            own.append(node)
            if number % _SLICE == 0:
                await trio.lowlevel.checkpoint()
        others = _by_process(await self._ask(Topic.TASKS, {"pid": str(pid)}))
        return [{"pid": pid, "tasks": own}, *others]

    async def node(self, _request: Request) -> Response:
        """Returns the node at a glance."""
        return _json(await self._overview())

    async def sockets(self, _request: Request) -> Response:
        """Every descriptor of this process and of those that carry traffic."""
        items = await self._ask(Topic.SOCKETS, {})
        own = [one for one in items if one.get("pid") == os.getpid()]
        for one in own:
            name_role(one, self._servers)
        if not own:
            shown: list[Any] = []
            for one in control_sockets(self._servers, trio.current_time()):
                if one is None:
                    await trio.lowlevel.checkpoint()
                else:
                    shown.append(one)
            items = [*shown, *items]
        return _json_items(items)

    async def pool(self, _request: Request) -> Response:
        """Every tunnel."""
        return _json_items(await self._ask(Topic.POOL, {}))

    async def certificates(self, _request: Request) -> Response:
        """Every certificate."""
        return _json(self._certificates())


async def _with_checkpoints(slices: Slices[T]) -> T:
    """Returns the result of long work. Other tasks run at its pauses."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
        await trio.lowlevel.checkpoint()


async def _nothing() -> dict[str, Any]:
    return {}


def _json_trees(processes: list[dict[str, Any]]) -> Iterator[bytes]:
    """Returns the trees as JSON in pieces, one line for each task; other tasks run in between."""
    for number, process in enumerate(processes):
        yield b'%b{"pid": %d, "tasks": [' % (b",\n" if number else b"[", process["pid"])
        for later, part in enumerate(batches(process["tasks"], _SLICE)):
            yield (b",\n" if later else b"\n") + b",\n".join(map(msgspec.json.encode, part))
        yield b"\n]}"
    yield b"]\n"


def _in_slices(pieces: Iterator[str]) -> Iterator[bytes]:
    while part := list(islice(pieces, _SLICE)):
        yield _text(part)


def _tree_lines(processes: list[dict[str, Any]]) -> Iterator[str]:
    for process in processes:
        if len(processes) > 1:
            yield f"process {process['pid']}"
        yield from map(str, process["tasks"])


def _by_process(items: list[Any]) -> list[dict[str, Any]]:
    """Returns the trees of other processes by their pid, which comes first in each."""
    processes: list[dict[str, Any]] = []
    for item in items:
        if "pid" in item:
            processes.append({"pid": item["pid"], "tasks": []})
        else:
            processes[-1]["tasks"].append(msgspec.convert(item, TaskNode))
    return processes


def _wants_json(request: Request) -> bool:
    return "json" in request.query or "application/json" in request.headers.get("accept", "")


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, _laid_out(value) + b"\n", "application/json")


def _laid_out(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)


def _json_items(items: Sequence[Any]) -> Response:
    """Returns many items in pieces, formatted as `_json` does; other tasks run in between."""

    def pieces() -> Iterator[bytes]:
        for later, part in enumerate(batches(items, _SLICE)):
            laid = [_laid_out(one).replace(b"\n", b"\n  ") for one in part]
            yield (b",\n  " if later else b"[\n  ") + b",\n  ".join(laid)
        yield b"\n]\n" if items else b"[]\n"

    return Response(200, pieces(), "application/json")


def _text(pieces: Iterable[str]) -> bytes:
    return ("\n".join(pieces) + "\n").encode("utf-8", "backslashreplace")
