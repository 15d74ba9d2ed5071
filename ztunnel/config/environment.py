"""Reads environment variables by type. Errors name the variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ztunnel.config.config_errors import InvalidVariableError, UnreadableFileError
from ztunnel.config.parse_values import parse_bool, parse_duration, parse_integer

T = TypeVar("T")
ReadFile = Callable[[str], str | None]


class Environment:
    """Reads variables by type. Errors name the variable.

    known, prefixes: the names, and the beginnings of names, that were asked for.
    """

    def __init__(self, variables: Mapping[str, str], read_file: ReadFile) -> None:
        self.variables = variables
        self._read_file = read_file
        self.known: set[str] = set()
        self.prefixes: set[str] = set()

    def text(self, name: str) -> str | None:
        """Returns the value, None if the variable is not set."""
        self.known.add(name)
        return self.variables.get(name)

    def nonempty(self, name: str) -> str | None:
        """Returns the value, None for an empty one too."""
        return self.text(name) or None

    def parsed(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Returns the value parsed by a function that raises ValueError with what would be valid."""
        value = self.text(name)
        if value is None:
            return default
        try:
            return parse(value)
        except ValueError as error:
            raise InvalidVariableError(name, value, str(error)) from error

    def flag(self, name: str, default: bool) -> bool:  # noqa: FBT001 - the default of a flag is a flag
        """Returns a bool; the value is ``true`` or ``false``."""
        return self.parsed(name, parse_bool, default)

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """Returns a whole number within limits."""
        return self.parsed(name, lambda text: parse_integer(text, low, high), default)

    def seconds(self, name: str, default: float) -> float:
        """Returns a duration in seconds."""
        return self.parsed(name, parse_duration, default)

    def prefixed(self, prefix: str) -> list[tuple[str, str]]:
        """Returns (rest of the name, value) of each variable with this prefix, sorted by name."""
        self.prefixes.add(prefix)
        names = sorted(name for name in self.variables if name.startswith(prefix) and name != prefix)
        return [(name[len(prefix) :], self.variables[name]) for name in names]

    def read(self, path: str) -> str | None:
        """Returns a file's text, None when there is no such file."""
        try:
            return self._read_file(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableFileError(f"cannot read {path}: {error}") from error

    def exists(self, path: str) -> bool:
        """Returns whether a path exists, readable or not."""
        try:
            return self._read_file(path) is not None
        except (OSError, UnicodeDecodeError):
            return True
