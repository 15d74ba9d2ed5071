from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.observe.filter import (
    Filter,
    FilterError,
    Level,
    parse_admin_levels,
    parse_filter,
    parse_startup_filter,
)

SCOPES = st.sampled_from(
    ["", "access", "ztunnel", "ztunnel::proxy", "ztunnel::proxy::inbound", "ztunnel::xds"]
)
WORKLOADS = st.sampled_from(["", "ns/a", "ns/b"])


def test_the_longest_scope_wins():
    wanted = parse_filter("info,ztunnel::proxy=debug,ztunnel::proxy::inbound=error")
    assert wanted.level("ztunnel::proxy::inbound") == Level.ERROR
    assert wanted.level("ztunnel::proxy::outbound") == Level.DEBUG
    assert wanted.level("ztunnel::xds::client") == Level.INFO


def test_without_a_global_level_everything_else_is_off():
    wanted = parse_filter("access=debug")
    assert wanted.level("access") == Level.DEBUG
    assert wanted.level("ztunnel::app") == Level.OFF


def test_a_bare_scope_means_trace_and_levels_ignore_case():
    assert parse_filter("ztunnel::app").level("ztunnel::app") == Level.TRACE
    assert parse_filter("WaRn").level("x") == Level.WARN


def test_a_later_item_replaces_an_earlier_one():
    assert parse_filter("info,access=debug,warn").level("x") == Level.WARN
    assert str(parse_filter("info,access=debug,warn")) == "access=debug,warn"


def test_the_start_up_filter_prints_as_the_reference_says():
    assert str(parse_startup_filter("info,access=debug")) == "hickory_server::server=off,access=debug,info"
    assert str(parse_startup_filter(None)) == "hickory_server::server=off,info"
    assert str(parse_startup_filter("hickory_server::server=debug")) == "hickory_server::server=debug"
    assert parse_startup_filter("").level("ztunnel::app") == Level.OFF


@pytest.mark.parametrize(
    "text", ["a=b", "a=b=info", "ztunnel[span]=info", "=", "a=", "[x]=info", "[a/b=info", "a b=info"]
)
def test_what_is_no_filter_is_refused(text):
    with pytest.raises(FilterError):
        parse_filter(text)


def test_admin_levels_take_levels_and_scopes_with_either_separator():
    assert str(parse_admin_levels("debug")) == "debug"
    assert str(parse_admin_levels("ztunnel::proxy=debug,access=trace")) == "ztunnel::proxy=debug,access=trace"
    assert parse_admin_levels("access:debug,ztunnel::proxy:warn") == parse_admin_levels(
        "access=debug,ztunnel::proxy=warn"
    )


@pytest.mark.parametrize(
    "text", ["", "DEBUG", "access", "ztunnel::proxy", "verbose", "info,", "a=verbose", "=info", ":info"]
)
def test_other_admin_levels_are_refused(text):
    with pytest.raises(FilterError):
        parse_admin_levels(text)


def test_a_workload_has_levels_of_its_own():
    wanted = parse_filter("info,access=warn").extended(parse_filter("debug").for_workload("ns/pod"))
    assert wanted.level("ztunnel::proxy", "ns/pod") == Level.DEBUG
    assert wanted.level("access", "ns/pod") == Level.DEBUG
    assert wanted.level("access", "ns/other") == Level.WARN
    assert wanted.level("ztunnel::proxy") == Level.INFO
    assert wanted.workloads == {"ns/pod"}
    assert wanted.without_workload("ns/pod") == parse_filter("info,access=warn")


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    result = Filter(())
    for _ in range(draw(st.integers(0, 4))):
        scope, level = draw(SCOPES), draw(st.sampled_from(list(Level))).name.lower()
        one, workload = parse_filter(f"{scope}={level}" if scope else level), draw(WORKLOADS)
        result = result.extended(one.for_workload(workload) if workload else one)
    return result


@given(filters())
def test_a_filter_is_read_back_from_its_text(wanted):
    assert parse_filter(str(wanted)) == wanted


@given(filters(), SCOPES, WORKLOADS)
def test_the_level_is_that_of_the_best_directive(wanted, path, workload):
    fits = [d for d in wanted.directives if path.startswith(d.scope) and d.workload in ("", workload)]
    best = max(fits, key=lambda d: (d.workload != "", len(d.scope)), default=None)
    assert wanted.level(path, workload) == (best.level if best else Level.OFF)


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_refused(text):
    try:
        parse_filter(text)
    except FilterError:
        pass
