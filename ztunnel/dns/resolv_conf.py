"""Reads the parts of /etc/resolv.conf that forwarding needs (resolv.conf(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ztunnel.model.address import IPAddress, parse_ip

DEFAULT_PATH = Path("/etc/resolv.conf")

# The limits of the C library (resolv.conf(5)).
_MOST_NAMESERVERS = 3
_LONGEST_TIMEOUT = 30  # not a bound: the C library's
_MOST_ATTEMPTS = 5
_MOST_DOTS = 15
_LONGEST_FILE = 65536


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """The configuration of a resolver.

    timeout: seconds to wait for one answer. attempts: further tries after the first.
    rotate: begin with another server each time. ndots: names with fewer dots are tried with ``search`` first.
    problem: why the file could not be read, None when it was.
    """

    nameservers: tuple[IPAddress, ...] = ()
    search: tuple[str, ...] = ()
    timeout: float = 5.0
    attempts: int = 2
    rotate: bool = False
    ndots: int = 1
    problem: str | None = None

    @property
    def tries(self) -> int:
        """How many times a query is sent in total; each server gets at least one."""
        return max(1 + self.attempts, len(self.nameservers))


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read the text. As in the C library, unknown parts are ignored, and the last list counts."""
    nameservers: list[IPAddress] = []
    search: tuple[str, ...] = ()
    options: dict[str, str] = {}
    for line in text.splitlines():
        if line[:1] in {"#", ";"}:
            continue
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values and len(nameservers) < _MOST_NAMESERVERS:
            try:
                nameservers.append(parse_ip(values[0]))
            except ValueError:
                continue
        elif keyword in {"search", "domain"}:
            search = tuple(value.lower().removesuffix(".") for value in values if value != ".")
        elif keyword == "options":
            for value in values:
                name, _, setting = value.partition(":")
                options[name] = setting
    return ResolvConf(
        tuple(dict.fromkeys(nameservers)),
        search,
        float(_number(options, "timeout", 5, 1, _LONGEST_TIMEOUT)),
        _number(options, "attempts", 2, 0, _MOST_ATTEMPTS),
        "rotate" in options,
        _number(options, "ndots", 1, 0, _MOST_DOTS),
    )


def _number(options: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = options.get(name, "")
    if not (text.isascii() and text.isdigit()):
        return default
    return min(max(int(text[:9]), low), high)


def read_resolv_conf(path: Path = DEFAULT_PATH) -> ResolvConf:
    """Read the file. If that fails there is no nameserver, and ``problem`` says why."""
    try:
        with path.open("rb") as file:
            return parse_resolv_conf(file.read(_LONGEST_FILE).decode("utf-8", "replace"))
    except OSError as error:
        return ResolvConf(problem=f"{path}: {error.strerror or error}")
