"""``/config_dump``: one JSON document of the whole state, written while it is collected.

A mesh of 100,000 workloads is never built in memory as a whole: each section returns a few items at a time,
and they are formatted and sent before the next ones are made. Keys are sorted at every level, with an indent
of two spaces, as readers and their scripts expect.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

Items: TypeAlias = AsyncIterator[Iterable[Any]]
_encode = msgspec.json.Encoder(order="sorted").encode
_PAIR = msgspec.json.Decoder(tuple[str, msgspec.Raw])


async def nothing() -> Items:
    """Returns a section without items."""
    empty: tuple[Any, ...] = ()
    for items in empty:
        yield items


@dataclass(frozen=True, slots=True)
class AdminProviders:
    """The sources of the dump's sections.

    Values are JSON-ready, or `msgspec.Raw` with sorted keys.

    config_view, version: see `ztunnel.config.config_view.config_view` and `ztunnel.version.BuildInfo.view`.
    certificates, policies, services, workloads: items in order, a few at a time; may be called many times.
    staged: pairs of key and value, ordered by key, or Raw arrays of two.
    static_config, workload_state: whole values; None for workload_state leaves the section out.
    """

    config_view: Mapping[str, Any]
    version: Mapping[str, str]
    certificates: Callable[[], Items] = nothing
    policies: Callable[[], Items] = nothing
    services: Callable[[], Items] = nothing
    staged: Callable[[], Items] = nothing
    workloads: Callable[[], Items] = nothing
    static_config: Callable[[], Awaitable[Any]] | None = None
    workload_state: Callable[[], Awaitable[Any]] | None = None


async def config_dump(providers: AdminProviders) -> AsyncGenerator[bytes, None]:
    """Returns the document in pieces. Everything that may fail is done before the first piece."""
    static: Any = {"policies": [], "services": [], "workloads": []}
    if providers.static_config is not None:
        static = await providers.static_config()
    state = None if providers.workload_state is None else await providers.workload_state()
    p = providers
    parts: list[Callable[[], AsyncGenerator[bytes, None]]] = [
        lambda: _list("{\n", "certificates", p.certificates()),
        lambda: _value("config", p.config_view),
        lambda: _list(",\n", "policies", p.policies()),
        lambda: _list(",\n", "services", p.services()),
        lambda: _mapping("stagedServices", p.staged()),
        lambda: _value("staticConfig", static),
        lambda: _value("version", p.version),
        *([] if state is None else [lambda: _value("workloadState", state)]),
        lambda: _list(",\n", "workloads", p.workloads()),
    ]
    for part in parts:
        async with aclosing(part()) as pieces:
            async for piece in pieces:
                yield piece
    yield b"\n}\n"


def laid_out(value: Any, depth: int) -> bytes:
    """Returns a value as indented JSON, as it stands ``depth`` levels deep: its first line has no indent."""
    text = msgspec.json.format(_encode(value), indent=2)
    return text.replace(b"\n", b"\n" + b"  " * depth)


async def _value(key: str, value: Any) -> AsyncGenerator[bytes, None]:
    yield f',\n  "{key}": '.encode() + laid_out(value, 1)


async def _list(before: str, key: str, items: Items) -> AsyncGenerator[bytes, None]:
    yield f'{before}  "{key}": ['.encode()
    separator = b"\n    "
    async with aclosing(_flat(items)) as pieces:
        async for part in pieces:
            laid = []
            for item in part:
                laid.append(separator + laid_out(item, 2))
                separator = b",\n    "
            yield b"".join(laid)
    yield b"]" if separator == b"\n    " else b"\n  ]"


async def _mapping(key: str, items: Items) -> AsyncGenerator[bytes, None]:
    yield f',\n  "{key}": {{'.encode()
    separator = b"\n    "
    async with aclosing(_flat(items)) as pieces:
        async for part in pieces:
            laid = []
            for item in part:
                name, value = _PAIR.decode(item) if isinstance(item, msgspec.Raw) else item
                laid.append(separator + _encode(name) + b": " + laid_out(value, 2))
                separator = b",\n    "
            yield b"".join(laid)
    yield b"}" if separator == b"\n    " else b"\n  }"


async def _flat(items: Items) -> AsyncGenerator[Iterable[Any], None]:
    """Returns the same as one stream, which is closed when its reader ends early."""
    try:
        async for part in items:
            yield part
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()
