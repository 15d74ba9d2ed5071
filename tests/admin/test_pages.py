from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import pytest

from ztunnel.admin.config_dump import AdminProviders, config_dump
from ztunnel.admin.http import Request, Response
from ztunnel.admin.levels import LogLevelControl
from ztunnel.admin.page import Page
from ztunnel.admin.pages import Admin
from ztunnel.config.config_view import config_view
from ztunnel.config.model import Config
from ztunnel.observe.task_tree import TaskAges
from ztunnel.version import build_info

WORKLOAD = {"uid": "u1", "name": "pod", "workloadIps": ["10.0.0.1"], "services": [], "capacity": 1}


async def items(*parts: Iterable[Any]) -> AsyncIterator[Iterable[Any]]:
    for part in parts:
        yield part


def providers(**other: Any) -> AdminProviders:
    return AdminProviders(config_view(Config()), build_info("1.99").view(), **other)


async def dumped(wanted: AdminProviders) -> str:
    return b"".join([piece async for piece in config_dump(wanted)]).decode()


def admin(wanted: AdminProviders | None = None, **other: Any) -> Admin:
    return Admin(wanted or providers(), levels=LogLevelControl(), shutdown=lambda: None, **other)


async def ask(server: Admin, path: str, method: str = "GET", **query: str) -> tuple[Response, bytes]:
    response = await server.handle(Request(method, path, query))
    body = response.body
    if isinstance(body, bytes):
        return response, body
    if isinstance(body, Iterable):
        return response, b"".join(body)
    return response, b"".join([piece async for piece in body])


async def state() -> dict[str, Any]:
    return {"uid-1": {"state": "Pending"}}


async def test_the_dump_is_what_json_would_write_with_sorted_keys():
    text = await dumped(
        providers(
            certificates=lambda: items([{"state": "Available", "identity": "spiffe://x", "certChain": []}]),
            workloads=lambda: items(
                [msgspec.Raw(msgspec.json.encode(WORKLOAD, order="sorted"))], [], [{"uid": "u2", "a": "\n{"}]
            ),
            staged=lambda: items([("ns/a", {"b": {"x": 1}})], [msgspec.Raw(b'["ns/b",{"y":2}]')]),
            workload_state=state,
        )
    )
    document = json.loads(text)
    assert text == json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert list(document) == [
        "certificates",
        "config",
        "policies",
        "services",
        "stagedServices",
        "staticConfig",
        "version",
        "workloadState",
        "workloads",
    ]
    assert document["workloads"] == [WORKLOAD, {"uid": "u2", "a": "\n{"}]
    assert document["stagedServices"] == {"ns/a": {"b": {"x": 1}}, "ns/b": {"y": 2}}
    assert document["workloadState"] == {"uid-1": {"state": "Pending"}}
    assert document["config"]["adminAddr"] == {"Localhost": [True, 15000]}
    assert document["version"]["istioVersion"] == "1.99"


async def test_an_empty_dump_has_all_lists_and_no_workload_state():
    text = await dumped(providers())
    document = json.loads(text)
    assert text == json.dumps(document, indent=2, sort_keys=True) + "\n"
    for key in ["certificates", "policies", "services", "workloads"]:
        assert document[key] == []
    assert document["stagedServices"] == {}
    assert document["staticConfig"] == {"policies": [], "services": [], "workloads": []}
    assert "workloadState" not in document


async def test_the_dump_asks_for_items_only_as_they_are_written():
    asked: list[int] = []

    async def many() -> AsyncIterator[Iterable[Any]]:
        for number in range(100):
            asked.append(number)
            yield [{"n": number}]

    pieces = config_dump(providers(certificates=many))
    await anext(pieces)
    await anext(pieces)
    assert asked == [0]
    await pieces.aclose()


async def test_a_dump_that_is_given_up_closes_its_source():
    closed: list[bool] = []

    async def many() -> AsyncIterator[Iterable[Any]]:
        try:
            while True:
                yield [1]
        finally:
            closed.append(True)

    pieces = config_dump(providers(policies=many))
    for _ in range(5):
        await anext(pieces)
    await pieces.aclose()
    assert closed == [True]


async def test_the_index_links_all_pages():
    extra = {"/debug/sockets": Page("Sockets <all>", lambda _request: state())}  # type: ignore[arg-type,return-value]  # never called
    response, body = await ask(admin(pages=extra), "/", "POST")
    assert response.content_type == "text/html; charset=utf-8"
    text = body.decode()
    assert "<title>Ztunnel Admin</title>" in text
    for path in [
        "config_dump",
        "logging",
        "quitquitquit",
        "debug/pprof/profile",
        "debug/pprof/heap",
        "debug/tasks",
    ]:
        assert f'href="{path}"' in text
    assert "Sockets &lt;all&gt;" in text


async def test_unknown_paths_are_404s_that_list_the_pages():
    for path in ["/debug", "/stats", "/healthz", "/healthz/ready", "//"]:
        response, body = await ask(admin(), path)
        assert (response.status, response.content_type) == (404, "text/plain; charset=utf-8")
        assert b"/config_dump" in body
        assert b"/debug/tasks" in body
    _, body = await ask(admin(), "/config-dump")
    assert b"There is no page /config-dump; did you mean /config_dump? There are:" in body


async def test_quitquitquit_begins_the_drain():
    called: list[bool] = []
    server = Admin(providers(), levels=LogLevelControl(), shutdown=lambda: called.append(True))
    response, body = await ask(server, "/quitquitquit")
    assert (response.status, body, called) == (405, b"", [])
    response, body = await ask(server, "/quitquitquit", "POST")
    assert (response.status, body, called) == (200, b"shutdown now\n", [True])


async def test_logging_is_served():
    response, body = await ask(admin(), "/logging", "POST")
    assert response.status == 200
    assert body.startswith(b"current log level is ")


async def test_the_config_dump_is_json():
    response, body = await ask(admin(), "/config_dump")
    assert response.content_type == "application/json"
    assert json.loads(body)["workloads"] == []


async def test_the_task_tree_is_text():
    response, body = await ask(admin(ages=TaskAges()), "/debug/tasks")
    assert response.content_type == "text/plain; charset=utf-8"
    assert "test_the_task_tree_is_text" in body.decode()


async def test_bad_profile_parameters_are_400():
    for seconds in ["0", "301", "x", "-1", "", "1.5"]:
        response, body = await ask(admin(), "/debug/pprof/profile", seconds=seconds)
        assert (response.status, body) == (400, b"invalid seconds value; expected 1-300\n")
    for frequency in ["0", "1001", "x"]:
        response, body = await ask(admin(), "/debug/pprof/profile", frequency=frequency)
        assert (response.status, body) == (400, b"invalid frequency value; expected 1-1000\n")


async def test_a_cpu_profile_takes_as_long_as_asked(autojump_clock):
    response, body = await ask(admin(), "/debug/pprof/profile", seconds="2")
    assert response.status == 200
    assert body


async def test_heap_profiling_has_to_be_switched_on():
    assert not tracemalloc.is_tracing()
    response, body = await ask(admin(), "/debug/pprof/heap")
    assert response.status == 500
    assert body == b"heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true"
    try:
        response, body = await ask(admin(), "/debug/pprof/heap/profiling", activate="true")
        assert (response.status, body) == (200, b"heap profiling active: true\n")
        response, body = await ask(admin(), "/debug/pprof/heap")
        assert response.status == 200
        assert b"inuse_space" in body
        response, body = await ask(admin(), "/debug/pprof/heap/profiling", activate="maybe")
        assert response.status == 400
    finally:
        response, body = await ask(admin(), "/debug/pprof/heap/profiling", activate="false")
    assert body == b"heap profiling active: false\n"
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize("depth", [0, 2])
def test_text_within_a_value_keeps_its_line_breaks(depth):
    from ztunnel.admin.config_dump import laid_out

    value = {"b": "line\nbreak", "a": [1, {"c": []}]}
    laid = laid_out(value, depth).decode()
    assert json.loads(laid) == value
    assert laid == json.dumps(value, indent=2, sort_keys=True).replace("\n", "\n" + "  " * depth)
