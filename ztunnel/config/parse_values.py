"""Parsers of single values. Pure; each raises ValueError with what would be valid."""

from __future__ import annotations

import math
import re
from urllib.parse import urlsplit

_NANOSECONDS = {
    "y": 365 * 86_400 * 10**9,
    "mon": 30 * 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
    "d": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
_TERM = re.compile(r"\s*(\d{1,18})\s*([a-z]*)\s*", re.ASCII)
_LONGEST = 100 * _NANOSECONDS["y"]
_DURATION_EXPECTED = (
    "expected a duration such as 90s, 5m or 1h30m: whole numbers with the units y, mon, w, d, h, m, s, ms, "
    "us, ns, or seconds alone; at most 100y"
)
_CPU_EXPECTED = "expected a CPU quantity such as 2, 1.5 or 500m"


def parse_bool(text: str) -> bool:
    """Exactly ``true`` or ``false``."""
    if text == "true":
        return True
    if text == "false":
        return False
    raise ValueError("provided string was not `true` or `false`")


def parse_integer(text: str, low: int, high: int) -> int:
    """Returns a decimal number from low to high."""
    if text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high:
        return int(text)
    raise ValueError(f"expected a whole number from {low} to {high}")


def parse_duration(text: str) -> float:
    """Returns seconds.

    ``1h30m``, ``1h 5s``, ``90``; a number alone is seconds; units in any case; no decimals.
    """
    lowered = text.lower()
    total = position = terms = 0
    bare = False
    while position < len(lowered):
        match = _TERM.match(lowered, position)
        if match is None:
            raise ValueError(_DURATION_EXPECTED)
        number, unit = match.groups()
        bare = bare or not unit
        if unit and unit not in _NANOSECONDS:
            raise ValueError(_DURATION_EXPECTED)
        total += int(number) * _NANOSECONDS[unit or "s"]
        position = match.end()
        terms += 1
    if terms == 0 or (bare and terms > 1) or total > _LONGEST:
        raise ValueError(_DURATION_EXPECTED)
    return total / 1e9


def parse_address(text: str) -> str:
    """Returns the URI of a gRPC server, normalised to ``https://host:port``.

    Without a scheme https is meant, and without a port 443. Only TLS is ever spoken, so ``http://`` is
    taken as https; a path is ignored.
    """
    expected = "expected an address such as https://istiod.istio-system.svc:15012"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(expected) from error
    if not host or parts.scheme not in ("https", "http") or parts.username is not None or port == 0:
        raise ValueError(expected)
    if not host.isascii() or any(c.isspace() or not c.isprintable() for c in host):
        raise ValueError(expected)
    return f"https://{authority(parts.geturl())}"


def authority(address: str) -> str:
    """Returns ``host:port`` of an ``https://`` address, as gRPC dials it. A path is ignored."""
    host, port = host_and_port(address)
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def host_and_port(address: str) -> tuple[str, int]:
    """Returns the host of an ``https://`` address, IPv6 without brackets, and its port."""
    parts = urlsplit(address)
    return parts.hostname or "", 443 if parts.port is None else parts.port


def parse_cpu_quantity(text: str) -> int:
    """Returns a Kubernetes CPU quantity (``2``, ``1.5``, ``500m``) in whole CPUs, rounded up, at least 1."""
    match = re.fullmatch(r"(\d{1,9})(?:\.(\d{1,9}))?(m?)", text, re.ASCII)
    if match is None or (match[2] and match[3]):
        raise ValueError(_CPU_EXPECTED)
    if match[3]:
        cpus = math.ceil(int(match[1]) / 1000)
    else:
        fraction = match[2] is not None and int(match[2]) > 0
        cpus = int(match[1]) + (1 if fraction else 0)
    if cpus == 0:
        raise ValueError(_CPU_EXPECTED + ", above 0")
    return cpus


def parse_worker_threads(text: str, cpus: int) -> int:
    """Returns a number of workers (0: one a CPU), or a percentage of the CPUs, rounded up, at least 1."""
    expected = (
        "expected a number of workers, 0 for one a CPU, or a percentage above 0 and up to 100 such as 50%"
    )
    if not text.endswith("%"):
        try:
            return parse_integer(text, 0, 4096) or cpus
        except ValueError as error:
            raise ValueError(expected) from error
    match = re.fullmatch(r"\d{1,3}(\.\d{1,9})?", text[:-1], re.ASCII)
    percent = float(match[0]) if match else 0.0
    if not 0 < percent <= 100:
        raise ValueError(expected)
    return max(1, math.ceil(cpus * percent / 100))


_HEADER_NAME = re.compile(r"[0-9a-z_.-]+", re.ASCII)


def parse_header(key: str, value: str) -> tuple[str, str]:
    """Returns a pair of gRPC metadata: a lower-case key without ``-bin``, and a value of printable ASCII."""
    lowered = key.lower()
    if not _HEADER_NAME.fullmatch(lowered) or lowered.endswith("-bin") or lowered.startswith("grpc-"):
        raise ValueError(
            "expected a gRPC metadata key of the characters a-z, 0-9, '_', '-' and '.' in the name"
        )
    if not all(0x20 <= ord(c) <= 0x7E for c in value):
        raise ValueError("expected a value of printable ASCII characters; the value is not shown")
    return lowered, value
