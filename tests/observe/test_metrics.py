from __future__ import annotations

import gc
import os

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.observe.test_traffic import LABELS, other
from ztunnel.messages import Sample
from ztunnel.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Exposition, content_encoding, content_type
from ztunnel.observe.families import CATALOGUE
from ztunnel.observe.labels import TRAFFIC_LABELS
from ztunnel.observe.metrics import ControlMetrics, ReportedMetrics, by_family
from ztunnel.observe.process import open_descriptors, process_samples
from ztunnel.observe.traffic import TrafficMetrics, dns_labels

OPENED = "istio_tcp_connections_opened_total"
OPEN = "istio_tcp_sockets_open"


def page(*samples: Sample) -> str:
    return b"".join(Exposition().page(by_family(samples))).decode()


def parsed(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def test_reports_of_several_data_planes_are_added_up():
    reported = ReportedMetrics()
    reported.merge(1, [Sample(OPENED, LABELS, 2), Sample(OPEN, ("source",), 3)])
    reported.merge(2, [Sample(OPENED, LABELS, 5), Sample(OPENED, other("x"), 1)])
    reported.merge(1, [Sample(OPENED, LABELS, 4), Sample(OPEN, ("source",), 1), Sample("foreign", (), 1)])
    assert reported.totals() == {OPENED: {LABELS: 9, other("x"): 1}, OPEN: {("source",): 1}}


def test_a_restarted_data_plane_makes_no_counter_go_down_and_no_gauge_stay():
    reported = ReportedMetrics()
    reported.merge(1, [Sample(OPENED, LABELS, 10), Sample(OPEN, ("source",), 3)])
    reported.restarted(1)
    assert reported.totals() == {OPENED: {LABELS: 10}}
    reported.merge(1, [Sample(OPENED, LABELS, 1)])
    assert reported.totals() == {OPENED: {LABELS: 11}}


def test_a_series_that_one_of_two_data_planes_drops_does_not_go_down():
    reported = ReportedMetrics()
    reported.merge(1, [Sample(OPENED, LABELS, 10)])
    reported.merge(2, [Sample(OPENED, LABELS, 5)])
    reported.merge(1, [])
    assert reported.totals() == {OPENED: {LABELS: 15}}
    reported.merge(2, [])
    assert reported.totals() == {}


def test_a_series_that_all_data_planes_drop_goes():
    reported = ReportedMetrics()
    reported.merge(1, [Sample(OPENED, LABELS, 10)])
    reported.merge(1, [])
    assert reported.totals() == {}


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["count", "report", "restart"])), max_size=30))
def test_a_total_never_goes_down(steps):
    reported, counts, before = ReportedMetrics(), [0, 0, 0], 0.0
    for plane, step in steps:
        if step == "count":
            counts[plane] += 1
        elif step == "restart":
            reported.restarted(plane)
            counts[plane] = 0
        else:
            reported.merge(plane, [Sample(OPENED, LABELS, counts[plane])])
        total = reported.totals().get(OPENED, {}).get(LABELS, 0.0)
        assert total >= before
        before = total


def test_control_metrics_exist_only_where_they_mean_something():
    names = {s.family for s in ControlMetrics("1.99", shared=False).samples()}
    assert names == {"istio_build"}
    metrics = ControlMetrics("", shared=True)
    metrics.xds_message("type.googleapis.com/istio.workload.Address", 100)
    metrics.xds_message("type.googleapis.com/istio.workload.Address", 5)
    metrics.xds_terminated("Reconnect")
    metrics.active_proxies.set(3)
    samples = {(s.family, s.labels): s.value for s in metrics.samples()}
    assert samples == {
        ("istio_build", ("ztunnel", "unknown")): 1,
        ("istio_xds_message_total", ("type.googleapis.com/istio.workload.Address",)): 2,
        ("istio_xds_message_bytes_total", ("type.googleapis.com/istio.workload.Address",)): 105,
        ("istio_xds_connection_terminations_total", ("Reconnect",)): 1,
        ("workload_manager_active_proxy_count", ()): 3,
        ("workload_manager_pending_proxy_count", ()): 0,
        ("workload_manager_proxies_started_total", ()): 0,
        ("workload_manager_proxies_stopped_total", ()): 0,
    }


def test_the_open_descriptors_are_those_that_the_kernel_lists():
    gc.collect()  # whatever it closes, it closes now
    before = open_descriptors()
    assert before == len(os.listdir("/proc/self/fd")) - 1  # the listing's own
    with open("/dev/null", "rb"):
        assert open_descriptors() == before + 1


async def test_process_samples_are_of_this_process():
    values = {s.family: s.value for s in process_samples()}
    assert values["process_open_fds"] >= 3
    assert values["process_max_fds"] > values["process_open_fds"]
    assert values["tokio_num_alive_tasks"] >= 1


def test_the_page_is_written_as_the_reference_has_it():
    text = page(
        Sample("istio_build", ("ztunnel", "1.99"), 1),
        Sample("process_open_fds", (), 20),
        Sample("istio_xds_message_bytes_total", ("u",), 7),
    )
    assert text == (
        "# HELP process_open_fds Number of open file descriptors\n"
        "# TYPE process_open_fds gauge\n"
        "process_open_fds 20\n"
        "# HELP istio_build Istio component build info.\n"
        "# TYPE istio_build gauge\n"
        'istio_build{component="ztunnel",tag="1.99"} 1\n'
        "# HELP istio_xds_message_bytes Total number of bytes received (unstable).\n"
        "# TYPE istio_xds_message_bytes counter\n"
        "# UNIT istio_xds_message_bytes bytes\n"
        'istio_xds_message_bytes_total{url="u"} 7\n'
        "# EOF\n"
    )


def test_without_samples_there_is_only_the_end():
    assert page() == "# EOF\n"


def test_a_traffic_line_has_its_labels_in_order():
    metrics = TrafficMetrics()
    metrics.opened(LABELS)
    line = next(line for line in page(*metrics.samples()).splitlines() if line.startswith(OPENED))
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(TRAFFIC_LABELS, LABELS, strict=True))
    assert line == f"{OPENED}{{{pairs}}} 1"


def test_the_histogram_is_written_per_series():
    metrics = TrafficMetrics()
    for kind in ["a", "aaaa"]:
        metrics.dns_upstream_duration(dns_labels(kind, "udp", None), 0.25)
    text = page(*metrics.samples())
    name = "istio_dns_upstream_request_duration_seconds"
    labels = (
        'request_query_type="aaaa",request_protocol="udp",'
        'source_canonical_service="unknown",source_canonical_revision="unknown"'
    )
    assert f"{name}_sum{{{labels}}} 0.25\n{name}_count{{{labels}}} 1\n" in text
    assert f'{name}_bucket{{{labels},le="0.1"}} 0\n{name}_bucket{{{labels},le="1.0"}} 1\n' in text
    assert f'{name}_bucket{{{labels},le="+Inf"}} 1\n' in text
    assert "_created" not in text


@given(st.lists(st.text(), min_size=27, max_size=27), st.integers(0, 1 << 53))
def test_any_label_value_survives_the_official_parser(values, number):
    labels = tuple(values)
    text = page(Sample(OPENED, labels, number))
    (family,) = parsed(text)
    assert family.name == "istio_tcp_connections_opened"
    assert family.type == "counter"
    (sample,) = family.samples
    assert sample.value == number
    assert sample.labels == dict(zip(TRAFFIC_LABELS, labels, strict=True))


def test_every_family_passes_the_official_parser():
    samples = []
    for family in CATALOGUE:
        labels = tuple("x" for _ in family.labels)
        for name in family.samples:
            if name.endswith("_bucket"):
                samples += [Sample(name, (*labels, le), 1) for le in ("0.1", "+Inf")]
            else:
                samples.append(Sample(name, labels, 1))
    families = parsed(page(*samples))
    assert [family.name for family in families] == [family.name for family in CATALOGUE]
    assert [family.documentation for family in families] == [family.help for family in CATALOGUE]


def test_large_families_come_in_pieces():
    samples = [Sample(OPENED, other(str(number)), number) for number in range(3500)]
    pieces = list(Exposition().page(by_family(samples)))
    assert [piece.count(b"\n") for piece in pieces] == [2, 1000, 1000, 1000, 500, 1]


def test_the_content_type_is_chosen_without_trimming():
    assert content_type("application/openmetrics-text;version=1.0.0;q=0.5,text/plain") == OPENMETRICS_TYPE
    assert content_type("text/html,APPLICATION/OpenMetrics-Text") == OPENMETRICS_TYPE
    assert content_type("text/html, application/openmetrics-text") == TEXT_TYPE
    assert content_type(None) == TEXT_TYPE


def test_the_encoding_is_what_is_accepted_most():
    assert content_encoding("gzip, deflate, br") == "gzip"
    assert content_encoding("deflate;q=0.5") == "deflate"
    assert content_encoding("gzip;q=0.1,deflate") == "deflate"
    assert content_encoding("gzip;q=0") is None
    assert content_encoding("br,zstd") is None
    assert content_encoding("*") == "gzip"
    assert content_encoding("gzip;q=x") is None
    assert content_encoding(None) is None
