"""Reads YAML text into plain values, with the rules of the Rust ztunnel's parser.

PyYAML's own loaders follow YAML 1.1, where ``no`` is false, ``1:30`` is a number and a key may come twice.
This one follows the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): a plain scalar is
null, a boolean or a number only in the common spellings, and otherwise a string. Local tags (``!Exact foo``)
are kept as `Tagged`.

It uses PyYAML's events and not its trees, so neither nesting nor aliases can make it recurse. It counts the
values that aliases repeat.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.state.local_reader import Tagged

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_MAX_DIGITS = 40  # beyond this nothing is a number that anybody means, and int() refuses some thousands


class YamlError(ValueError):
    """The text is not YAML, or uses a part of YAML that is not supported. ``str()`` says what and where."""


class _Open:
    """A list or mapping that is being read."""

    __slots__ = ("anchor", "key", "size", "tag", "value")

    def __init__(self, value: list[Any] | dict[Any, Any], event: Any) -> None:
        self.value = value
        self.tag = event.tag
        self.anchor = event.anchor
        self.key: Any = _NO_KEY
        self.size = 1


_NO_KEY = object()


def read_yaml(text: str, bounds: ControlBounds = DEFAULTS.control) -> Any:
    """Returns the one document of the text, None for an empty one.

    Values are dicts, lists, str, int, float, bool, None and `Tagged`. Raises YamlError.
    """
    try:
        return _build(text, bounds)
    except yaml.MarkedYAMLError as error:
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise _error(what or "not YAML", error.problem_mark) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(" ".join(str(error).split())) from None


def _build(text: str, bounds: ControlBounds) -> Any:
    anchors: dict[str, tuple[Any, int]] = {}
    stack: list[_Open] = []
    root: Any = None
    documents = 0
    for event in yaml.parse(text, Loader=_LOADER):
        value: Any
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise _error("expected a single document", event.start_mark)
                continue
            case yaml.ScalarEvent():
                value, size, anchor = _tagged(event, _scalar(event)), 1, event.anchor
            case yaml.AliasEvent():
                if event.anchor not in anchors:
                    raise _error(f"found undefined alias {event.anchor!r}", event.start_mark)
                (value, size), anchor = anchors[event.anchor], None
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(stack) >= bounds.local_file_depth:
                    raise _error("nested too deeply", event.start_mark)
                stack.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}, event))
                continue
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = stack.pop()
                value, size, anchor = _tagged(done, done.value), done.size, done.anchor
            case _:
                continue
        if anchor is not None:
            anchors[anchor] = value, size
        if not stack:
            root = value
            continue
        _add(stack[-1], value, event)
        stack[-1].size += size
        if stack[-1].size > bounds.local_file_values:
            raise _error("too many values; aliases multiply what they stand for", event.start_mark)
    return root


def _add(into: _Open, value: Any, event: Any) -> None:
    if isinstance(into.value, list):
        into.value.append(value)
    elif into.key is _NO_KEY:
        if isinstance(value, dict | list | Tagged):
            raise _error("the key of a mapping must be a plain value", event.start_mark)
        if value in into.value:
            raise _error(f"duplicate field `{value}`", event.start_mark)
        into.key = value
    else:
        into.value[into.key] = value
        into.key = _NO_KEY


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if len(text) <= _MAX_DIGITS:
        if _INTEGER.fullmatch(text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def _tagged(event: Any, value: Any) -> Any:
    tag = event.tag
    if tag is None or tag == "!" or not tag.startswith("!"):
        return value
    return Tagged(tag[1:], value)


def _error(what: str, mark: Any) -> YamlError:
    return YamlError(what if mark is None else f"{what} at line {mark.line + 1} column {mark.column + 1}")
