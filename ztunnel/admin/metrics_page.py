"""The metrics page: collects the values, writes the page in pieces, compresses it on request."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import TypeAlias

from ztunnel.admin.http import Request, Response
from ztunnel.observe.exposition import Exposition, content_encoding, content_type

Totals: TypeAlias = Mapping[str, Mapping[tuple[str, ...], float]]
_PATHS = ("/metrics", "/stats/prometheus")
_WINDOW = {"gzip": 31, "deflate": 15}


class MetricsPage:
    """Serves scrapes.

    ``collect``: returns all present values by sample name and labels, for this call only.
    """

    def __init__(self, collect: Callable[[], Awaitable[Totals]]) -> None:
        self._collect = collect
        self._exposition = Exposition()

    async def handle(self, request: Request) -> Response:
        """Serve both paths, with any method."""
        if request.path not in _PATHS:
            return Response(404)
        totals = await self._collect()
        encoding = content_encoding(request.headers.get("accept-encoding"))
        headers = [("vary", "accept-encoding")]
        if encoding is not None:
            headers.append(("content-encoding", encoding))
        pieces = self._exposition.page(totals)
        body = _gathered(pieces) if encoding is None else _compressed(pieces, encoding)
        return Response(200, body, content_type(request.headers.get("accept")), headers)


def _gathered(pieces: Iterator[bytes], size: int = 32 * 1024) -> Iterator[bytes]:
    """Returns the same in pieces of at least ``size`` bytes, so that a small page is one write."""
    gathered: list[bytes] = []
    length = 0
    for piece in pieces:
        gathered.append(piece)
        length += len(piece)
        if length >= size:
            yield b"".join(gathered)
            gathered, length = [], 0
    yield b"".join(gathered)


async def _compressed(pieces: Iterator[bytes], encoding: str) -> AsyncGenerator[bytes, None]:
    compressor = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[encoding])
    for piece in _gathered(pieces, 128 * 1024):
        # what is compressed so far goes out piece by piece, and with each of them others run
        yield compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
