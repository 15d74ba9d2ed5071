"""YAML as the reader of the local file understands it."""

from __future__ import annotations

import pytest

from ztunnel.state.local_reader import Tagged
from ztunnel.xds.local_yaml import YamlError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("80", 80),
        ("+80", 80),
        ("-1", -1),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("~", None),
        ("null", None),
        ("'80'", "80"),
        ('"true"', "true"),
        ("!!str 80", "80"),
        ("1_000", "1_000"),
        ("9" * 50, "9" * 50),
        ("10.0.0.1", "10.0.0.1"),
        ("!Exact foo", Tagged("Exact", "foo")),
        ("!Exact 80", Tagged("Exact", "80")),
        ("!Presence []", Tagged("Presence", [])),
        ("a: {80: x}", {"a": {80: "x"}}),
        ("[&a {x: 1}, *a]", [{"x": 1}, {"x": 1}]),
        ("a: |\n  b\n  c\n", {"a": "b\nc\n"}),
        ("", None),
    ],
)
def test_plain_values_are_those_of_the_core_schema(text: str, value: object):
    result = read_yaml(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: 1\n---\nb: 2", "expected a single document at line 2 column 1"),
        ("a: &a [*a]", "found undefined alias 'a' at line 1 column 8"),
        ("[" * 5000, "nested too deeply"),
        ("{a: 1, a: 2}", "duplicate field `a` at line 1 column 8"),
        ("[a]: 1", "the key of a mapping must be a plain value"),
        ("!a b: 1", "the key of a mapping must be a plain value"),
        ("\x01", "control characters are not allowed"),
        ("a: b: c", "mapping values are not allowed in this context at line 1 column 5"),
    ],
)
def test_what_cannot_be_understood_is_an_error_with_its_place(text: str, error: str):
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert error in str(caught.value)


def test_aliases_cannot_multiply_without_end():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 10)]
    with pytest.raises(YamlError, match="too many values"):
        read_yaml("\n".join(lines))
