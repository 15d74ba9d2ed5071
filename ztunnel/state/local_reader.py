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
_K = TypeVar("_K")
_E = TypeVar("_E", bound=Enum)


class LocalConfigError(ZtunnelError):
    """The local file cannot be used. The text names the place in the file and what is wrong there."""

    code = "ZT-CFG-006"


class Tagged(NamedTuple):
    """A value with a local tag (``!Exact foo``), which is without its exclamation mark."""

    tag: str
    value: Any


def mapping(value: object, place: str, known: Sequence[str] | None) -> Mapping[Any, Any]:
    """Returns the value, a mapping. known: all names that may occur, None where unknown ones are ignored."""
    members: Mapping[Any, Any] = _instance(value, Mapping, "a mapping", place)
    for name in members:
        if known is not None and name not in known:
            raise problem(place, f"unknown field `{name}`, expected {_one_of(known)}")
    return members


def problem(place: str, text: str) -> LocalConfigError:
    """Returns an error at a place, which is empty for the whole file."""
    return LocalConfigError(f"{place}: {text}" if place else text)


def wrong_type(value: object, expected: str, place: str) -> LocalConfigError:
    """Returns the error about a value of another kind than expected."""
    return problem(place, f"invalid type: {_shown(value)}, expected {expected}")


def _instance(value: object, kind: type, expected: str, place: str) -> Any:
    """Returns the value, if it is of this kind."""
    if not isinstance(value, kind):
        raise wrong_type(value, expected, place)
    return value


def text(value: Any, place: str) -> str:
    """Returns the value, which is a text."""
    found: str = _instance(value, str, "a string", place)
    try:
        found.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from an escape
        raise problem(place, "invalid value: not Unicode text") from None
    return found


def truth(value: Any, place: str) -> bool:
    """Returns the value, which is true or false."""
    return bool(_instance(value, bool, "a boolean", place))


def integer(highest: int, kind: str) -> Callable[[Any, str], int]:
    """Returns a reader of numbers from 0 to ``highest``; ``kind`` is what an error calls them."""

    def read(value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value, kind, place)
        if not 0 <= value <= highest:
            raise problem(place, f"invalid value: integer `{value}`, expected {kind}")
        return value

    return read


def listed(read: Callable[[Any, str], _T]) -> Callable[[Any, str], tuple[_T, ...]]:
    """Returns a reader of lists of what ``read`` reads."""

    def read_all(value: Any, place: str) -> tuple[_T, ...]:
        items = _instance(value, list, "a sequence", place)
        return tuple([read(item, f"{place}[{index}]") for index, item in enumerate(items)])

    return read_all


def mapped(
    read: Callable[[Any, str], _T], read_key: Callable[[Any, str], _K]
) -> Callable[[Any, str], dict[_K, _T]]:
    """Returns a reader of mappings from what ``read_key`` reads to what ``read`` reads."""

    def read_all(value: Any, place: str) -> dict[_K, _T]:
        items = _instance(value, Mapping, "a map", place)
        return {read_key(key, place): read(item, f"{place}.{key}") for key, item in items.items()}

    return read_all


def variant(names: type[_E]) -> Callable[[Any, str], _E]:
    """Returns a reader of the names of an enumeration, which are case-sensitive."""

    def read(value: Any, place: str) -> _E:
        name = text(value, place)
        try:
            return names(name)
        except ValueError:
            known = [member.value for member in names]
            raise problem(place, f"unknown variant `{name}`, expected {_one_of(known)}") from None

    return read


port = integer(0xFFFF, "u16")
number = integer(0xFFFFFFFF, "u32")


def _port_name(key: Any, place: str) -> int:
    """Returns the port that a key is; it may be a text too, as it is in the JSON of the dump."""
    return port(int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key, place)


ports = mapped(port, _port_name)


def address(value: Any, place: str) -> IPAddress:
    """Returns the IP address that a text is."""
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
