"""A running ztunnel's metrics as OpenMetrics, read by the parser of Prometheus's own client library."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.namespaces import needs_namespaces
from tests.support.traffic import echo, read_exactly, serve
from tests.support.two_nodes import TwoNodes
from ztunnel.demo.dedicated import METRICS_PORT, Ztunnel, connect

pytestmark = needs_namespaces

CONNECTIONS = 3
BYTES = 1000


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes.open() as mesh:
        yield mesh


def scrape(ztunnel: Ztunnel) -> tuple[str, str]:
    """Content type and text of its metrics page, asked for as Prometheus does."""
    connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=60)
    connection.sock = connect("127.0.0.1", METRICS_PORT, namespace=ztunnel.namespace)
    try:
        accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


async def test_a_scrape_is_openmetrics(nodes: TwoNodes) -> None:
    """The strict parser takes all of it, and finds the connections and bytes that there were."""
    server, client = nodes.server, nodes.client
    async with serve(server, 8080, echo):
        for _ in range(CONNECTIONS):
            async with await client.connect(server.ipv4, 8080, timeout=60) as stream:
                await stream.send_all(b"x" * BYTES)
                await read_exactly(stream, BYTES, timeout=60)
    await server.logged(count=CONNECTIONS, timeout=60, direction="inbound")
    kind, text = scrape(server.ztunnel)
    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.endswith("# EOF\n")
    for name, expected in (
        ("istio_tcp_connections_opened", CONNECTIONS),
        ("istio_tcp_connections_closed", CONNECTIONS),
        ("istio_tcp_received_bytes", CONNECTIONS * BYTES),
        ("istio_tcp_sent_bytes", CONNECTIONS * BYTES),
    ):
        family = families[name]
        assert family.type == "counter"
        assert family.documentation
        samples: list[Sample] = [
            sample for sample in family.samples if sample.labels["reporter"] == "destination"
        ]
        assert sum(sample.value for sample in samples) == expected, samples
        assert {sample.labels["source_principal"] for sample in samples} == {client.identity}
