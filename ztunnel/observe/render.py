"""Renders one log record as text: the tab-separated format, or one JSON object. Pure.

In the plain format strings are quoted, because they may come from a peer; everything else (addresses,
identities, numbers) is not. Unquoted values are checked too: a text with a line break or another control
character is quoted, so that a peer cannot forge a log line.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ztunnel.observe.filter import Level

_ROOT = "ztunnel::"
_NAMES = {level: level.name.lower() for level in Level}
_ESCAPES = {"\t": "\\t", "\r": "\\r", "\n": "\\n", '"': '\\"', "\\": "\\\\", "\0": "\\0"}
_encode = msgspec.json.Encoder().encode
_INT64 = 1 << 63

Said: TypeAlias = tuple[str, Mapping[str, Any]]  # a message and its fields


class Span(NamedTuple):
    """A span of a line: ``outbound{id=…}``. ``plain``: that text with a colon before it."""

    name: str
    fields: Mapping[str, str]
    plain: str


def make_span(name: str, fields: Mapping[str, Any]) -> Span:
    """Returns a span, its values already texts, so that each line only has to append it."""
    texts = {key: _text(value) for key, value in fields.items() if value is not None}
    pairs = " ".join(f"{key}={_bare(text)}" for key, text in texts.items())
    return Span(name, texts, f":{name}{{{pairs}}}")


def quoted(text: str) -> str:
    """Returns a text in double quotes, with everything escaped that could end the quotes or the line."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"


def _bare(text: str) -> str:
    return text if text.isprintable() else quoted(text)


def _text(value: Any) -> str:
    """Returns ``str()`` of a value, and never raises; an exception without text gets its class name."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    try:
        return str(value) or (type(value).__name__ if isinstance(value, BaseException) else "")
    except Exception:  # noqa: BLE001 - a value that cannot be printed must not end a connection
        return f"<unprintable {type(value).__name__}>"


class Clock:
    """Writes times as RFC 3339 in UTC; the part down to the second is kept from line to line."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def text(self, time_ns: int) -> str:
        """``2026-11-23T04:19:02.356350Z`` for nanoseconds since the epoch."""
        second, rest = divmod(time_ns, 1_000_000_000)
        if second != self._second:
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        return f"{self._prefix}.{rest // 1000:06d}Z"


def plain_line(time: str, level: Level, path: str, spans: tuple[Span, ...], said: Said) -> str:
    """Returns the line with its line break. Fields whose value is None are left out."""
    message, fields = said
    scope = path.removeprefix(_ROOT)
    for span in spans:
        scope += span.plain
    pairs = []
    for key, value in fields.items():
        if value.__class__ is str:
            pairs.append(f"{key}={quoted(value)}")
        elif value is not None:
            pairs.append(f"{key}={_bare(_text(value))}")
    return f"{time}\t{_NAMES[level]}\t{scope}\t{message}\t{' '.join(pairs)}\n"


def json_line(time: str, level: Level, path: str, spans: tuple[Span, ...], said: Said) -> str:
    """Returns the object with its line break.

    Integers, floats and bools stay what they are, the rest is text.
    """
    message, fields = said
    line: dict[str, Any] = {"level": _NAMES[level], "time": time, "scope": path, "message": message}
    for key, value in fields.items():
        if value is not None:
            line[key] = value if value.__class__ in (str, int, bool, float) else _text(value)
    for span in spans:
        line[span.name] = span.fields
    try:
        return _encode(line).decode() + "\n"
    except (UnicodeEncodeError, OverflowError):
        return _encode(_encodable(line)).decode() + "\n"


def _encodable(value: Any) -> Any:
    """Returns the same with lone surrogates escaped, and integers beyond 64 bits as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, int) and not -_INT64 <= value < 2 * _INT64:
        return str(value)
    return value
