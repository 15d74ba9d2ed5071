"""The pages that answer questions, with data planes made up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import trio

from tests.support.logs import capture_logs
from ztunnel.admin.http import Request, Response
from ztunnel.admin.inspection import Inspection
from ztunnel.messages import Topic
from ztunnel.observe.task_tree import TaskAges

VIEW = {
    "id": "a-1",
    "state": "closed",
    "direction": "outbound",
    "pod": "ns/a",
    "client": "10.0.0.1:5",
    "destination": "10.0.0.2:80",
    "ageSeconds": 3.0,
    "durationSeconds": 0.5,
    "error": "http status: 503 Service Unavailable",
    "code": "ZT-HBN-010",
    "why": "Nothing listens.",
    "route": ["It is a workload."],
}
EXPLANATION = {
    "asked_from": "ns/a",
    "asked_to": "web",
    "outcome": "allowed",
    "summary": "It goes.",
    "live": {"sentences": ["one"]},
}


class Planes:
    """Answers by topic, and what was asked."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[Topic, Mapping[str, str]]] = []

    async def ask(self, topic: Topic, parameters: Mapping[str, str]) -> list[Any]:
        self.asked.append((topic, parameters))
        return self.answers.get(topic.name.lower(), [])


async def page(planes: Planes, path: str, **query: str) -> tuple[Response, str]:
    inspection = Inspection(planes.ask, lambda: [{"identity": "spiffe://a"}], TaskAges())
    response = await inspection.pages()[path].handler(Request("GET", path, query))
    body = response.body
    assert isinstance(body, Iterable)
    return response, (body if isinstance(body, bytes) else b"".join(body)).decode()


async def test_explain_asks_and_writes_text_or_json():
    planes = Planes(explain=[EXPLANATION])
    response, text = await page(planes, "/explain", **{"from": "ns/a", "to": "web"})
    assert planes.asked == [(Topic.EXPLAIN, {"from": "ns/a", "to": "web"})]
    assert (response.status, text.splitlines()[-1]) == (200, "=> It goes.")
    response, text = await page(planes, "/explain", **{"from": "ns/a", "to": "web", "json": ""})
    assert response.content_type == "application/json"
    assert json.loads(text)["summary"] == "It goes."


async def test_explain_of_unknown_names_is_404_with_the_nearest():
    unknown = {**EXPLANATION, "outcome": "unknown", "summary": "There is none.", "nearest": ["ns/ab"]}
    response, text = await page(Planes(explain=[unknown]), "/explain", **{"from": "ns/b", "to": "web"})
    assert response.status == 404
    assert "  ns/ab\n" in text


async def test_explain_without_a_question_says_how_to_ask():
    response, text = await page(Planes(), "/explain", to="web")
    assert (response.status, text.startswith("usage: /explain?from=")) == (400, True)


async def test_a_connection_is_explained_by_its_id():
    planes = Planes(connections=[VIEW])
    response, text = await page(planes, "/explain", connection="a-1")
    assert planes.asked == [(Topic.CONNECTIONS, {"id": "a-1"})]
    assert response.status == 200
    assert "=> http status: 503 Service Unavailable (ZT-HBN-010)\n     Nothing listens." in text
    response, text = await page(Planes(), "/explain", connection="a-2")
    assert response.status == 404
    assert "/connections lists all" in text


async def test_an_incoming_connection_shows_its_client_and_its_application():
    incoming = {**VIEW, "direction": "inbound", "peer": "default/client", "nextHop": "10.0.0.2:8080"}
    _, text = await page(Planes(connections=[incoming]), "/explain", connection="a-1")
    assert f"  from {VIEW['client']} (default/client) to {VIEW['destination']}" in text
    assert "; the application is at 10.0.0.2:8080\n" in text
    assert "next hop" not in text


async def test_when_no_connection_matches_the_text_says_so():
    _, text = await page(Planes(), "/connections", text="1")
    assert text == "No connection matches.\n"


async def test_connections_of_several_planes_are_sorted_and_cut():
    views = [{**VIEW, "id": str(age), "ageSeconds": age, "receivedBytes": age % 3} for age in (5, 1, 4, 2)]
    _, text = await page(Planes(connections=views), "/connections")
    assert [one["id"] for one in json.loads(text)] == ["1", "2", "4", "5"]
    _, text = await page(Planes(connections=views), "/connections", sort="age", limit="2")
    assert [one["id"] for one in json.loads(text)] == ["5", "4"]
    _, text = await page(Planes(connections=views), "/connections", sort="bytes", limit="1")
    assert [one["id"] for one in json.loads(text)] in (["5"], ["2"])
    _, text = await page(Planes(connections=views), "/connections", text="1")
    assert text.count("Connection ") == 4


async def test_a_wrong_parameter_is_named():
    wrong = ({"stat": "open"}, {"state": "opened"}, {"sort": "size"}, {"limit": "0"}, {"limit": "x"})
    for query in (*wrong, {"failed": "maybe"}):
        planes = Planes()
        response, text = await page(planes, "/connections", **query)
        assert (response.status, planes.asked) == (400, [])
        assert "(ZT-EXP-003)" in text


async def test_tasks_of_this_process_and_of_others():
    other = [{"pid": 4}, {"depth": 0, "kind": "task", "name": "worker"}]
    planes = Planes(tasks=other)
    _, text = await page(planes, "/debug/tasks")
    assert "test_tasks_of_this_process_and_of_others" in text
    assert text.endswith("process 4\nworker\n")
    _, text = await page(planes, "/debug/tasks", format="json")
    first, second = json.loads(text)
    assert any("test_tasks_of_this" in node["name"] for node in first["tasks"])
    assert second == {"pid": 4, "tasks": other[1:]}


async def test_the_other_pages_are_lists():
    _, text = await page(Planes(pool=[{"a": 1}]), "/debug/pool")
    assert json.loads(text) == [{"a": 1}]
    assert (await page(Planes(), "/debug/pool"))[1] == "[]\n"
    _, text = await page(Planes(), "/debug/certificates")
    assert json.loads(text) == [{"identity": "spiffe://a"}]


async def test_the_sockets_of_the_control_process_have_their_roles():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as client, await listener.accept():
            worker = {"pid": os.getpid() + 1, "fd": 9, "role": "application"}
            shown = await sockets(port, [worker])
            roles = {one["role"] for one in shown if f":{port}" in one.get("local", "") + one.get("peer", "")}
            assert roles == {"admin server", "a client of the admin server", "dialled by the control side"}
            assert {one["fd"]: one["role"] for one in shown}[1] == "log"
            assert {"event loop", "messages and wake-ups within ztunnel"} <= {one["role"] for one in shown}
            assert [
                one
                for one in shown
                if one.get("kind") in ("eventpoll", "unix socketpair") and not one["role"]
            ] == []
            assert shown[-1] == worker
            # In one process the data plane has listed all; what is a pod's stays, the rest gets a role.
            local = {"local": f"127.0.0.1:{port}", "state": "LISTEN"}
            other = {"pid": os.getpid(), "fd": 7, "role": "", **local}
            pods = {"pid": os.getpid(), "fd": 8, "role": "tunnel of a peer", **local}
            shown = await sockets(port, [other, pods])
            assert [one["role"] for one in shown] == ["admin server", "tunnel of a peer"]
            assert client is not None


async def sockets(port: int, items: list[Any]) -> list[dict[str, Any]]:
    inspection = Inspection(Planes(sockets=items).ask, list, servers={port: "admin"})
    response = await inspection.pages()["/debug/sockets"].handler(Request("GET", "/debug/sockets", {}))
    body = response.body
    assert isinstance(body, Iterable)
    return list(json.loads(body if isinstance(body, bytes) else b"".join(body)))


async def test_the_tree_goes_into_the_log_line_by_line():
    inspection = Inspection(Planes().ask, list, TaskAges())
    with capture_logs("info") as lines:
        await inspection.log_tasks()
    tree = [line.message for line in lines if line.scope == "ztunnel::debug::tasks"]
    assert any("test_the_tree_goes_into_the_log" in line for line in tree)
    assert any("[nursery " in line for line in tree)


async def test_a_data_plane_that_does_not_answer_is_told_of():
    async def ask(topic: Topic, parameters: Mapping[str, str]) -> list[Any]:
        raise trio.TooSlowError

    with capture_logs("info") as lines:
        await Inspection(ask, list).log_tasks()
    assert lines[-1].message == "the tree of tasks cannot be had"


async def test_the_tree_is_not_lost_in_silence_where_its_level_is_off():
    planes = Planes()
    with capture_logs("warn") as lines:
        await Inspection(planes.ask, list).log_tasks()
    assert [line.message for line in lines] == [
        "the tree of tasks was asked for, and the scope ztunnel::debug::tasks is not at info"
    ]
    assert planes.asked == []
