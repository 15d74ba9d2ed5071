from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping

from tests.support.serving import serving
from ztunnel.admin.metrics_page import MetricsPage
from ztunnel.observe.exposition import OPENMETRICS_TYPE
from ztunnel.observe.labels import TRAFFIC_LABELS

OPENED = "istio_tcp_connections_opened_total"


def other(name: str) -> tuple[str, ...]:
    return ("source", name, *["unknown"] * (len(TRAFFIC_LABELS) - 2))


async def collect() -> Mapping[str, Mapping[tuple[str, ...], float]]:
    return {OPENED: {other(str(number)): number for number in range(5000)}}


async def test_both_paths_and_any_method_give_the_page():
    async with serving(MetricsPage(collect).handle) as served:
        answers = [
            await served.ask("GET", "/metrics"),
            await served.ask("POST", "/stats/prometheus"),
            await served.ask("GET", "/metrics?x=y", {"accept": "application/openmetrics-text;version=1.0.0"}),
        ]
        missing = await served.ask("GET", "/stats")
    for answer in answers:
        assert answer.status == 200
        assert answer.body.count(b"\n") == 5003
        assert answer.body.endswith(b"# EOF\n")
        assert answer.headers["vary"] == "accept-encoding"
    assert [answer.headers["content-type"] for answer in answers] == ["text/plain; charset=utf-8"] * 2 + [
        OPENMETRICS_TYPE
    ]
    assert (missing.status, missing.body) == (404, b"")


async def test_the_page_is_compressed_for_who_likes_it():
    async with serving(MetricsPage(collect).handle) as served:
        plain = await served.ask("GET", "/metrics")
        zipped = await served.ask("GET", "/metrics", {"accept-encoding": "br, gzip"})
        deflated = await served.ask("GET", "/metrics", {"accept-encoding": "deflate"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == plain.body
    assert deflated.headers["content-encoding"] == "deflate"
    assert zlib.decompress(deflated.body) == plain.body
    assert len(zipped.body) < len(plain.body) / 10


async def test_a_collection_that_fails_is_told():
    async def broken() -> Mapping[str, Mapping[tuple[str, ...], float]]:
        raise TimeoutError("a data plane does not answer")

    async with serving(MetricsPage(broken).handle) as served:
        answer = await served.ask("GET", "/metrics")
    assert (answer.status, answer.body) == (500, b"a data plane does not answer")
