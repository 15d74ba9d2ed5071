from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.observe.test_labels import CLIENT, SERVER, SERVICE
from ztunnel.messages import Sample
from ztunnel.observe import families
from ztunnel.observe.labels import FLAG, TrafficLabels, end_from_workload, traffic_labels, with_flag
from ztunnel.observe.traffic import TrafficMetrics, dns_labels

LABELS = traffic_labels(
    "source",
    end_from_workload(CLIENT, CLIENT.identity),
    end_from_workload(SERVER, SERVER.identity),
    SERVICE,
    mtls=True,
)


def other(name: str) -> TrafficLabels:
    return (LABELS[0], name, *LABELS[2:])


def value(metrics: TrafficMetrics, family: str, labels: tuple[str, ...] | None = None) -> float | None:
    found = [s.value for s in metrics.samples() if s.family == family and labels in (None, s.labels)]
    assert len(found) <= 1
    return found[0] if found else None


def test_opening_makes_the_byte_series_with_zero():
    metrics = TrafficMetrics()
    metrics.opened(LABELS)
    assert [one for one in metrics.samples() if one.labels] == [
        Sample("istio_tcp_connections_opened_total", LABELS, 1),
        Sample("istio_tcp_received_bytes_total", LABELS, 0),
        Sample("istio_tcp_sent_bytes_total", LABELS, 0),
    ]


def test_counters_without_labels_begin_at_zero_and_histograms_with_a_value():
    metrics = TrafficMetrics()
    metrics.histogram(families.FIRST_BYTE, "source")
    assert metrics.samples() == [
        Sample("ztunnel_endpoint_ejections_total", (), 0),
        Sample(families.SERIES_OVERFLOW.samples[0], (), 0),
    ]
    metrics.histogram(families.FIRST_BYTE, "source").add(0.2)
    metrics.duration(families.FIRST_BYTE, 0.3, "source")
    assert value(metrics, "ztunnel_first_byte_duration_seconds_count") == 2


def test_bytes_and_a_successful_end_share_the_labels_of_the_opening():
    metrics = TrafficMetrics()
    connection = metrics.opened(LABELS)
    connection.add_received(10)
    connection.add_sent(300)
    connection.add_sent(1)
    assert (connection.received, connection.sent) == (10, 301)
    connection.closed()
    assert value(metrics, "istio_tcp_received_bytes_total", LABELS) == 10
    assert value(metrics, "istio_tcp_sent_bytes_total", LABELS) == 301
    assert value(metrics, "istio_tcp_connections_closed_total", LABELS) == 1
    assert value(metrics, "istio_tcp_connections_failed_total") is None


def test_a_failure_is_closed_and_failed_under_its_flag_only():
    metrics = TrafficMetrics()
    metrics.opened(LABELS).closed("DENY")
    denied = with_flag(LABELS, "DENY")
    assert value(metrics, "istio_tcp_connections_opened_total") == 1
    assert value(metrics, "istio_tcp_connections_closed_total", denied) == 1
    assert value(metrics, "istio_tcp_connections_failed_total", denied) == 1
    assert value(metrics, "istio_tcp_connections_closed_total", LABELS) is None


def test_a_connection_closes_once():
    metrics = TrafficMetrics()
    connection = metrics.opened(LABELS)
    connection.closed()
    connection.closed("CONNECT")
    assert value(metrics, "istio_tcp_connections_closed_total") == 1


def test_too_many_series_are_counted_as_unknown():
    metrics = TrafficMetrics(max_series=2)
    for name in ["a", "b", "c", "d", "a"]:
        connection = metrics.opened(other(name))
        connection.add_sent(5)
    assert len(metrics) == 2
    assert value(metrics, "istio_tcp_connections_opened_total", other("a")) == 2
    collapsed = traffic_labels("source", None, None, None, mtls=True)
    assert value(metrics, "istio_tcp_connections_opened_total", collapsed) == 2
    assert value(metrics, "istio_tcp_sent_bytes_total", collapsed) == 10
    assert value(metrics, "ztunnel_traffic_series_overflow_total") == 2


def test_idle_series_expire_and_others_do_not():
    time = [0.0]
    metrics = TrafficMetrics(now=lambda: time[0])
    metrics.opened(other("closed")).closed()
    metrics.opened(other("open"))
    time[0] = 50
    metrics.opened(other("recent")).closed()
    time[0] = 100
    assert metrics.expire(60) == 1
    opened = {s.labels[1] for s in metrics.samples() if s.family == "istio_tcp_connections_opened_total"}
    assert opened == {"open", "recent"}


def test_series_of_workloads_that_still_exist_are_spared():
    metrics = TrafficMetrics(now=lambda: 0.0)
    metrics.opened(LABELS).closed()
    metrics.opened(other("gone")).closed()
    known = {("ns-a", "deploy-a"), ("ns-b", "deploy-b")}
    assert metrics.expire(0, lambda namespace, workload: (namespace, workload) in known) == 1
    assert value(metrics, "istio_tcp_connections_opened_total", LABELS) == 1


def test_dropped_labels_are_unknown():
    metrics = TrafficMetrics(
        drop_labels=frozenset({"source_workload", "destination_zone", "reporter", "nonsense"})
    )
    metrics.opened(LABELS)
    metrics.opened(other("x"))
    metrics.opened(LABELS[:23])
    (first, second) = (s for s in metrics.samples() if s.family == "istio_tcp_connections_opened_total")
    assert first.value == 2
    assert first.labels[0] == "source"
    assert first.labels[1] == "unknown"
    assert len(second.labels) == 23


def test_sockets_are_counted_while_they_are_open():
    metrics = TrafficMetrics()
    with metrics.socket_open("source"), metrics.socket_open("source"):
        assert value(metrics, "istio_tcp_sockets_open", ("source",)) == 2
    assert value(metrics, "istio_tcp_sockets_open", ("source",)) == 0


def test_small_counters():
    metrics = TrafficMetrics()
    metrics.on_demand_dns(CLIENT, "example.com")
    metrics.crl_rejected("source")
    metrics.crl_untracked("destination")
    assert (
        value(
            metrics,
            "istio_on_demand_dns_total",
            ("deploy-a", "app-a", "v1", "ns-a", "unknown", "app-a", "v1", "Kubernetes", "example.com"),
        )
        == 1
    )
    assert value(metrics, "istio_crl_policy_rejections_total", ("source",)) == 1
    assert value(metrics, "istio_crl_untracked_connections_total", ("destination",)) == 1


def test_hostnames_do_not_grow_without_bound():
    metrics = TrafficMetrics(max_series=3)
    for number in range(10):
        metrics.on_demand_dns(CLIENT, f"{number}.example.com")
    assert sum(1 for s in metrics.samples() if s.family == "istio_on_demand_dns_total") == 4


def test_a_histogram_that_is_there_is_found_when_there_may_be_no_more():
    metrics = TrafficMetrics(max_series=1)
    known = metrics.histogram(families.FIRST_BYTE, "source")
    assert metrics.histogram(families.FIRST_BYTE, "source") is known
    assert metrics.histogram(families.FIRST_BYTE, "destination") is not known


def test_dns_counters_and_histogram():
    metrics = TrafficMetrics()
    labels = dns_labels("AAAA", "udp", CLIENT)
    assert labels == ("aaaa", "udp", "app-a", "v1")
    assert dns_labels("A", "tcp", None) == ("a", "tcp", "unknown", "unknown")
    metrics.dns_request(labels)
    metrics.dns_upstream_request(labels)
    metrics.dns_upstream_failure(labels)
    for seconds in [0.0005, 0.0006, 3.0, 9.0]:
        metrics.dns_upstream_duration(labels, seconds)
    name = "istio_dns_upstream_request_duration_seconds"
    assert value(metrics, "istio_dns_requests_total", labels) == 1
    assert value(metrics, f"{name}_count", labels) == 4
    buckets = [(s.labels[-1], s.value) for s in metrics.samples() if s.family == f"{name}_bucket"]
    assert buckets == [
        ("0.0005", 1),
        ("0.001", 2),
        ("0.01", 2),
        ("0.1", 2),
        ("1.0", 2),
        ("5.0", 3),
        ("+Inf", 4),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["-", "DENY", "CONNECT"]), st.booleans()),
        max_size=40,
    )
)
def test_opened_and_closed_balance_over_all_flags(connections):
    metrics = TrafficMetrics(max_series=5)
    ends = 0
    for name, flag, ended in connections:
        connection = metrics.opened(other(name))
        connection.add_received(3)
        if ended:
            connection.closed(flag)
            ends += 1
    total = dict.fromkeys(["opened", "closed", "failed"], 0.0)
    received = 0.0
    for sample in metrics.samples():
        if sample.family == "istio_tcp_received_bytes_total":
            received += sample.value
            assert sample.labels[FLAG] == "-"
        for kind in total:
            if sample.family == f"istio_tcp_connections_{kind}_total":
                total[kind] += sample.value
    assert total["opened"] == len(connections)
    assert total["closed"] == ends
    assert total["failed"] == sum(1 for _, flag, ended in connections if ended and flag != "-")
    assert received == 3 * len(connections)


def test_slices_give_the_same_as_all_at_once():
    metrics = TrafficMetrics()
    for number in range(25):
        metrics.opened(other(str(number))).closed()
    parts = list(metrics.sample_slices(10))
    assert [len(part) for part in parts] == [2, 40, 40, 20]
    assert [s for part in parts for s in part] == metrics.samples()
