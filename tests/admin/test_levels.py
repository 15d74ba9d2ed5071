from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from ztunnel.admin.http import Request
from ztunnel.admin.levels import USAGE, LogLevelControl
from ztunnel.observe.access_log import current_sampling
from ztunnel.observe.filter import Level, parse_startup_filter
from ztunnel.observe.logging import current_filter, set_filter

DEFAULT = "hickory_server::server=off,info"


@pytest.fixture(autouse=True)
def _filter() -> Iterator[None]:
    before = current_filter()
    set_filter(parse_startup_filter(None))
    yield
    set_filter(before)


async def post(levels: LogLevelControl, method: str = "POST", **query: str) -> tuple[int, str]:
    response = await levels.handle(Request(method, "/logging", query))
    assert isinstance(response.body, bytes)
    assert response.content_type == "text/plain"
    return response.status, response.body.decode()


async def test_without_a_level_the_filter_is_shown():
    assert await post(LogLevelControl()) == (200, f"current log level is {DEFAULT}\n")
    assert await post(LogLevelControl(), level="") == (200, f"current log level is {DEFAULT}\n")


async def test_levels_are_added_to_the_current_filter():
    levels = LogLevelControl()
    assert await post(levels, level="access=debug") == (
        200,
        "current log level is hickory_server::server=off,access=debug,info\n",
    )
    assert await post(levels, level="warn") == (
        200,
        "current log level is hickory_server::server=off,access=debug,warn\n",
    )


async def test_reset_goes_back_to_the_start_and_then_adds():
    levels = LogLevelControl()
    await post(levels, level="access=debug")
    assert await post(levels, level="warn", reset="") == (
        200,
        "current log level is hickory_server::server=off,warn\n",
    )
    assert await post(levels, reset="") == (200, f"current log level is {DEFAULT}\n")


async def test_a_bad_level_is_refused_with_the_usage():
    status, text = await post(LogLevelControl(), level="verbose")
    assert status == 400
    assert text == f"Invalid level provided: verbose\n{USAGE}"
    assert str(current_filter()) == DEFAULT


async def test_other_methods_are_405_with_the_usage():
    assert await post(LogLevelControl(), "GET") == (405, f"Invalid HTTP method\n {USAGE}")


def test_the_usage_is_the_reference_text():
    assert USAGE == (
        "\nusage: POST /logging\t\t\t\t\t\t(To list current level)\n"
        "usage: POST /logging?level=<level>\t\t\t\t(To change global levels)\n"
        "usage: POST /logging?level={mod1}:{level1},{mod2}:{level2}\t"
        "(To change specific mods' logging level)\n"
        "\nhint: loglevel:\terror|warn|info|debug|trace|off\n"
        "hint: mod_name:\tthe module name, i.e. ztunnel::proxy\n"
    )


async def test_changes_are_passed_on_once():
    seen: list[str] = []
    levels = LogLevelControl(lambda wanted: seen.append(str(wanted)))
    await post(levels, level="debug")
    await post(levels, level="debug")
    await post(levels)
    assert seen == ["hickory_server::server=off,debug"]


async def test_one_workload_gets_a_level_for_a_while(nursery, autojump_clock):
    seen: list[str] = []
    levels = LogLevelControl(lambda wanted: seen.append(str(wanted)))
    nursery.start_soon(levels.run)
    await post(levels, workload="ns/a", level="debug", ttl="10m")
    await post(levels, workload="ns/b", level="access:trace", ttl="1m")
    assert current_filter().level("ztunnel::proxy", "ns/a") == Level.DEBUG
    assert current_filter().level("access", "ns/b") == Level.TRACE
    assert current_filter().level("ztunnel::proxy", "ns/b") == Level.INFO
    await trio.sleep(61)
    assert current_filter().workloads == {"ns/a"}
    await trio.sleep(540)
    assert str(current_filter()) == DEFAULT
    assert len(seen) == 4
    nursery.cancel_scope.cancel()


async def test_a_workloads_level_can_be_prolonged_and_taken_back(nursery, autojump_clock):
    levels = LogLevelControl()
    nursery.start_soon(levels.run)
    await post(levels, workload="ns/a", level="debug", ttl="1m")
    await trio.sleep(50)
    await post(levels, workload="ns/a", level="trace", ttl="1m")
    await trio.sleep(50)
    assert current_filter().level("x", "ns/a") == Level.TRACE
    await post(levels, workload="ns/a", reset="")
    assert str(current_filter()) == DEFAULT
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "query",
    [
        {"workload": "pod", "level": "debug"},
        {"workload": "ns/pod]=off,x", "level": "debug"},
        {"workload": "ns/pod", "level": "loud"},
        {"workload": "ns/pod", "level": "debug", "ttl": "soon"},
        {"workload": "ns/pod", "level": "debug", "ttl": "0"},
        {"workload": "ns/pod", "level": "debug", "ttl": "2d"},
    ],
)
async def test_bad_workload_requests_change_nothing(query):
    assert (await post(LogLevelControl(), **query))[0] == 400
    assert str(current_filter()) == DEFAULT


async def test_access_log_lines_are_sampled_and_others_told():
    told: list[object] = []
    levels = LogLevelControl(told.append)
    try:
        status, text = await post(levels, access="0.1", outcome="success", direction="inbound")
        assert (status, text) == (200, "success:inbound:=0.1\n")
        status, text = await post(levels, access="0", workload="ns/pod")
        assert text == "::ns/pod=0,success:inbound:=0.1\n"
        assert len(told) == 2
        status, text = await post(levels, access="7")
        assert (status, text.splitlines()[0][:26]) == (400, "Invalid access provided: '")
    finally:
        assert await post(levels, access="reset") == (200, "every access log line is written\n")
    assert current_sampling().rules == ()
