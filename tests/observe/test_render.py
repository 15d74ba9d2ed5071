from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.model.address import SocketAddress
from ztunnel.observe.filter import Level
from ztunnel.observe.render import Clock, json_line, make_span, plain_line, quoted

TIME = "2026-11-23T04:19:02.356350Z"
WORKLOAD = make_span("proxy", {"wl": "ns-a/pod-a"})


def plain(message: str, spans: Any = (), path: str = "ztunnel::proxy::inbound", **fields: Any) -> str:
    return plain_line(TIME, Level.INFO, path, spans, (message, fields))


def test_a_plain_line_is_the_reference_one():
    fields: dict[str, Any] = {
        "address": SocketAddress.parse("[::]:15008"),
        "component": "inbound",
        "transparent": True,
    }
    assert plain("listener established", **fields) == (
        f"{TIME}\tinfo\tproxy::inbound\tlistener established"
        '\taddress=[::]:15008 component="inbound" transparent=true\n'
    )


def test_a_tab_follows_the_message_even_without_fields():
    assert plain("hello", path="access") == f"{TIME}\tinfo\taccess\thello\t\n"


def test_spans_follow_the_scope():
    spans = (WORKLOAD, make_span("inbound", {"id": "be2c", "peer": SocketAddress.parse("10.9.0.2:1")}))
    assert plain("x", spans).split("\t")[2] == (
        "proxy::inbound:proxy{wl=ns-a/pod-a}:inbound{id=be2c peer=10.9.0.2:1}"
    )


def test_none_is_left_out():
    assert plain("x", a=None, b=1).endswith("\tb=1\n")
    assert "a" not in json.loads(json_line(TIME, Level.INFO, "x", (), ("m", {"a": None})))


def test_strings_are_escaped():
    assert quoted('a"b\\c\n\t\r\0\x1b\u2028') == '"a\\"b\\\\c\\n\\t\\r\\0\\u{1b}\\u{2028}"'


def test_an_exception_without_text_shows_its_class():
    assert plain("x", error=TimeoutError()).endswith("\terror=TimeoutError\n")


def test_a_value_that_cannot_be_printed_does_not_raise():
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert plain("x", v=Broken()).endswith("\tv=<unprintable Broken>\n")


class Chosen:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@given(st.text(), st.booleans())
def test_no_value_breaks_a_plain_line(text, as_object):
    line = plain("m", (make_span("inbound", {"peer": text}),), value=Chosen(text) if as_object else text)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert line.count("\t") == 4
    assert line.isprintable() is False  # the tabs
    assert all(c.isprintable() or c in "\t\n" for c in line)


@given(st.text(st.characters()), st.integers())
def test_json_survives_any_value(text, number):
    line = json_line(
        TIME,
        Level.WARN,
        "ztunnel::state",
        (make_span("proxy", {"wl": text}),),
        ("m", {"a": text, "n": number}),
    )
    assert line.count("\n") == 1
    decoded = json.loads(line)
    assert list(decoded) == ["level", "time", "scope", "message", "a", "n", "proxy"]
    if text.isascii():
        assert decoded["a"] == text
        assert decoded["proxy"] == {"wl": text}


def test_json_escapes_what_is_no_unicode():
    line = json_line(TIME, Level.WARN, "x", (), ("m", {"a": "\ud800", "n": 1 << 70}))
    assert json.loads(line)["a"] == "\\ud800"
    assert json.loads(line)["n"] == str(1 << 70)


def test_json_is_the_reference_line():
    spans = (
        make_span("proxy", {"wl": "ns-b/pod-b"}),
        make_span("inbound", {"id": "be2c", "peer": "10.9.0.2:48968"}),
    )
    line = json_line(
        TIME, Level.INFO, "ztunnel::state", spans, ("deny policy match", {"policy": "ns-b/deny-9999"})
    )
    assert line == (
        '{"level":"info","time":"2026-11-23T04:19:02.356350Z","scope":"ztunnel::state",'
        '"message":"deny policy match",'
        '"policy":"ns-b/deny-9999","proxy":{"wl":"ns-b/pod-b"},"inbound":{"id":"be2c","peer":"10.9.0.2:48968"}}\n'
    )


def test_json_keeps_types_and_dotted_names():
    fields = {
        "src.addr": SocketAddress.parse("1.2.3.4:5"),
        "bytes_sent": 75,
        "ok": True,
        "x": 0.5,
        "duration": "8ms",
    }
    decoded = json.loads(json_line(TIME, Level.ERROR, "access", (), ("m", fields)))
    assert decoded["src.addr"] == "1.2.3.4:5"
    assert decoded["bytes_sent"] == 75
    assert decoded["ok"] is True
    assert decoded["x"] == 0.5
    assert decoded["duration"] == "8ms"


def test_the_clock_writes_utc_with_microseconds():
    clock = Clock()
    assert clock.text(0) == "1970-01-01T00:00:00.000000Z"
    assert clock.text(1_795_407_542_356_350_999) == "2026-11-23T04:19:02.356350Z"
    assert clock.text(1_795_407_543_000_000_999) == "2026-11-23T04:19:03.000000Z"
