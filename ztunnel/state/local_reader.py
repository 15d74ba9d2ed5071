"""Reading typed values out of untyped ones, with errors that name the place: ``workloads[0].status: …``.

The texts are those that people know from the Rust ztunnel (missing field, unknown field, unknown
variant, invalid type), after the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

from ztunnel.errors import ZtunnelError
from ztunnel.model.address import IPAddress

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)

_PORT = 0xFFFF


class LocalConfigError(ZtunnelError):
    """The local file cannot be used. The text names the place in the file and what is wrong there."""

    code = "ZT-CFG-006"


class Tagged(NamedTuple):
    """A value with a local tag (``!Exact foo``), which is without its exclamation mark."""

    tag: str
    value: Any


def mapping(value: object, place: str, known: Sequence[str] | None) -> Mapping[Any, Any]:
    """Returns the value, a mapping. known: all names that may occur, None where unknown ones are ignored."""
    if not isinstance(value, Mapping):
        raise wrong_type(value, "a mapping", place)
    for name in value:
        if known is not None and name not in known:
            raise problem(place, f"unknown field `{name}`, expected {_one_of(known)}")
    return value


def problem(place: str, text: str) -> LocalConfigError:
    """An error at a place, which is empty for the whole file."""
    return LocalConfigError(f"{place}: {text}" if place else text)


def wrong_type(value: object, expected: str, place: str) -> LocalConfigError:
    """The error about a value of another kind than expected."""
    return problem(place, f"invalid type: {_shown(value)}, expected {expected}")


def text(value: Any, place: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise wrong_type(value, "a string", place)
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from an escape
        raise problem(place, "invalid value: not Unicode text") from None
    return value


def truth(value: Any, place: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_type(value, "a boolean", place)
    return value


def integer(highest: int, kind: str) -> Callable[[Any, str], int]:
    """A reader of numbers from 0 to ``highest``; ``kind`` is what an error calls them."""

    def read(value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value, kind, place)
        if not 0 <= value <= highest:
            raise problem(place, f"invalid value: integer `{value}`, expected {kind}")
        return value

    return read


def listed(read: Callable[[Any, str], _T]) -> Callable[[Any, str], tuple[_T, ...]]:
    """A reader of lists of what ``read`` reads."""

    def read_all(value: Any, place: str) -> tuple[_T, ...]:
        if not isinstance(value, list):
            raise wrong_type(value, "a sequence", place)
        return tuple([read(item, f"{place}[{index}]") for index, item in enumerate(value)])

    return read_all


def mapped(read: Callable[[Any, str], _T]) -> Callable[[Any, str], dict[str, _T]]:
    """A reader of mappings from texts to what ``read`` reads."""

    def read_all(value: Any, place: str) -> dict[str, _T]:
        if not isinstance(value, Mapping):
            raise wrong_type(value, "a map", place)
        return {text(key, place): read(item, f"{place}.{key}") for key, item in value.items()}

    return read_all


def variant(names: type[_E]) -> Callable[[Any, str], _E]:
    """A reader of the names of an enumeration, which are case-sensitive."""

    def read(value: Any, place: str) -> _E:
        name = text(value, place)
        try:
            return names(name)
        except ValueError:
            known = [member.value for member in names]
            raise problem(place, f"unknown variant `{name}`, expected {_one_of(known)}") from None

    return read


port = integer(_PORT, "u16")
number = integer(0xFFFFFFFF, "u32")


def ports(value: Any, place: str) -> dict[int, int]:
    """A map of ports. Keys may be texts too, as they are in the JSON of the dump."""
    if not isinstance(value, Mapping):
        raise wrong_type(value, "a map", place)
    return {
        port(int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key, place): port(
            target, f"{place}.{key}"
        )
        for key, target in value.items()
    }


def address(value: Any, place: str) -> IPAddress:
    """An IP address."""
    # Python takes a scope id for part of an IPv6 address; none of the addresses here has one.
    plain = text(value, place).replace("%", " ")
    try:
        return ip_address(plain)
    except ValueError:
        raise problem(place, "invalid IP address syntax") from None


def _one_of(names: Iterable[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    match quoted:
        case [only]:
            return only
        case [first, second]:
            return f"{first} or {second}"
    return f"one of {', '.join(quoted)}"


def _shown(value: object) -> str:
    match value:
        case None:
            return "unit value"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f'string "{value}"'
        case list():
            return "sequence"
        case Mapping():
            return "map"
    return "tagged value"
