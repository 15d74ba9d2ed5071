from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import trio

from tests.support.logs import capture_logs, flush_logs
from ztunnel.config.config_errors import ConfigError
from ztunnel.observe import logging
from ztunnel.observe.filter import FilterError, Level, parse_filter
from ztunnel.observe.logging import (
    current_filter,
    get_logger,
    run_log_writer,
    set_filter,
    setup_logging,
    shutdown_logging,
    startup_filter,
)


class Written(NamedTuple):
    reader: int
    writer: int

    def lines(self) -> list[str]:
        flush_logs()
        try:
            return os.read(self.reader, 1 << 20).decode().splitlines()
        except BlockingIOError:
            return []


@pytest.fixture
def out() -> Iterator[Written]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield Written(reader, writer)
    shutdown_logging()
    set_filter("info")
    os.close(reader)
    os.close(writer)


def test_a_line_has_time_level_scope_spans_message_and_fields(out):
    setup_logging({}, fd=out.writer)
    log = get_logger("proxy::outbound").bind_span("proxy", wl="ns/pod").bind_span("outbound", id="60ed")
    log.warning("pool draining", component="outbound", port=15001)
    (line,) = out.lines()
    time, rest = line.split("\t", 1)
    assert rest == (
        "warn\tproxy::outbound:proxy{wl=ns/pod}:outbound{id=60ed}\tpool draining"
        '\tcomponent="outbound" port=15001'
    )
    assert len(time) == len("2026-11-23T04:19:02.356350Z")
    assert time.endswith("Z")


def test_json_is_chosen_by_the_environment(out):
    setup_logging({"LOG_FORMAT": "json"}, fd=out.writer)
    get_logger("state").info("deny policy match", policy="ns/p")
    (line,) = out.lines()
    assert json.loads(line)["scope"] == "ztunnel::state"
    setup_logging({"LOG_FORMAT": "JSON"}, fd=out.writer)
    get_logger("state").info("x")
    assert not out.lines()[0].startswith("{")


def test_levels_below_the_filter_are_not_written(out):
    setup_logging({"RUST_LOG": "ztunnel::proxy=debug"}, fd=out.writer)
    get_logger("proxy::inbound").debug("one")
    get_logger("proxy::inbound").trace("two")
    get_logger("state").error("three")
    assert [line.split("\t")[3] for line in out.lines()] == ["one"]


def test_a_change_of_the_filter_reaches_loggers_that_exist(out):
    setup_logging({}, fd=out.writer)
    log = get_logger("proxy::inbound")
    bound = log.bind_span("inbound", id="1").bind(component="inbound")
    log.debug("no")
    set_filter("debug")
    log.debug("yes")
    bound.debug("bound")
    set_filter(startup_filter())
    log.debug("no")
    assert [line.split("\t")[3] for line in out.lines()] == ["yes", "bound"]
    assert str(current_filter()) == "hickory_server::server=off,info"


def test_a_bad_filter_is_an_error_of_the_configuration(out):
    with pytest.raises(ConfigError, match="invalid env var RUST_LOG=loud=yes"):
        setup_logging({"RUST_LOG": "loud=yes"}, fd=out.writer)
    with pytest.raises(FilterError):
        set_filter("loud=yes")


def test_one_workload_can_have_a_level_of_its_own(out):
    setup_logging({}, fd=out.writer)
    set_filter(current_filter().extended(parse_filter("debug").for_workload("ns/a")))
    for workload in ("ns/a", "ns/b"):
        get_logger("proxy::inbound").bind_span("proxy", wl=workload).bind_span("inbound", id="1").debug(
            workload
        )
        get_logger("access").for_workload(workload).debug("access " + workload)
    lines = out.lines()
    assert [line.split("\t")[3] for line in lines] == ["ns/a", "access ns/a"]
    assert lines[1].split("\t")[2] == "access"


def test_thresholds_of_departed_workloads_do_not_pile_up():
    gc.collect()
    before = len(logging._hub._thresholds)
    for number in range(1000):
        get_logger("proxy::inbound").bind_span("proxy", wl=f"ns/{number}")
    gc.collect()
    assert len(logging._hub._thresholds) <= before + 1


def test_a_disabled_call_formats_nothing(out):
    class Never:
        def __str__(self) -> str:
            raise AssertionError

    setup_logging({}, fd=out.writer)
    log = get_logger("x")
    log.debug("m", value=Never())
    assert log.is_enabled(Level.INFO)
    assert not log.is_enabled(Level.DEBUG)
    assert out.lines() == []


def test_a_traceback_is_one_field_of_one_line(out):
    setup_logging({}, fd=out.writer)
    get_logger("x").error("task crashed", exc_info=ValueError("boom"))
    (line,) = out.lines()
    assert "ValueError: boom" in line
    assert 'backtrace="ValueError' in line


def test_a_level_known_late_and_fields_in_a_mapping(out):
    setup_logging({}, fd=out.writer)
    get_logger("access").log(Level.ERROR, "m", {"src.addr": 1, "event": "x", "message": "y"})
    get_logger("access").log(Level.OFF, "m", {})
    get_logger("access").log(Level.DEBUG, "m", {})
    assert [line.partition("\t")[2] for line in out.lines()] == [
        'error\taccess\tm\tsrc.addr=1 event="x" message="y"'
    ]


async def test_a_line_that_is_rendered_later_is_the_same(out, nursery):
    setup_logging({}, fd=out.writer)
    await nursery.start(run_log_writer)
    log = get_logger("access").for_workload("ns/pod")
    collected: list[str] = []

    def fields() -> dict[str, object]:
        collected.append("now")
        return {"port": 15001, "error": "a b", "code": None}

    log.log_later(Level.DEBUG, "never", fields)
    log.log_later(Level.INFO, "later", fields)
    log.log(Level.INFO, "later", {"port": 15001, "error": "a b", "code": None})
    assert collected == []
    lines = out.lines()
    assert len(lines) == 2
    assert collected == ["now"]
    assert len({line.split("\t", 1)[1] for line in lines}) == 1
    nursery.cancel_scope.cancel()


def test_what_would_be_rendered_later_is_captured_at_once():
    with capture_logs() as records:
        get_logger("access").log_later(Level.INFO, "later", lambda: {"port": 1})
        assert [(record.message, record.fields["port"]) for record in records] == [("later", 1)]


def test_records_are_captured_for_tests():
    log = get_logger("proxy::inbound").bind_span("inbound", id="1")
    with capture_logs() as records:
        log.trace("hello", n=1)
    log.trace("later")
    (record,) = records
    assert record.level is Level.TRACE
    assert record.scope == "ztunnel::proxy::inbound"
    assert record.message == "hello"
    assert record.fields == {"n": 1}
    assert [span.name for span in record.spans] == ["inbound"]


async def test_the_writer_task_writes(out, nursery):
    setup_logging({}, fd=out.writer)
    await nursery.start(run_log_writer)
    get_logger("x").info("queued")
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(out.reader)
    assert "queued" in os.read(out.reader, 1000).decode()
    nursery.cancel_scope.cancel()


async def test_the_writer_task_ends_at_once_without_a_destination():
    with trio.fail_after(1):
        await run_log_writer()


def test_after_the_end_nothing_is_written(out):
    setup_logging({}, fd=out.writer)
    shutdown_logging()
    get_logger("x").info("lost")
    assert out.lines() == []
