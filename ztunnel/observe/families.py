"""The catalogue of metrics: names, types, labels and help texts, in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztunnel.observe.labels import TRAFFIC_LABELS


class MetricKind(Enum):
    """The OpenMetrics type of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One family, of which there is one object. ``name``: as in its TYPE line, without ``_total``.

    help: as printed; those of the Rust ztunnel end in a full stop.
    labels: names in order; the last ones may be missing from a series.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of the family's samples, in order."""
        if self.kind is MetricKind.COUNTER:
            return (f"{self.name}_total",)
        if self.kind is MetricKind.HISTOGRAM:
            return (f"{self.name}_sum", f"{self.name}_count", f"{self.name}_bucket")
        return (self.name,)


_SOURCE_LABELS = TRAFFIC_LABELS[1:9]
_DNS_LABELS = (
    "request_query_type",
    "request_protocol",
    "source_canonical_service",
    "source_canonical_revision",
)
DNS_BUCKETS = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

OPEN_FDS = Family("process_open_fds", _G, "Number of open file descriptors")
MAX_FDS = Family("process_max_fds", _G, "Maximum number of file descriptors (soft limit)")
NUM_WORKERS = Family("tokio_num_workers", _G, "The number of processes that carry traffic")
QUEUE_DEPTH = Family("tokio_global_queue_depth", _G, "The number of tasks that are ready to run")
ALIVE_TASKS = Family("tokio_num_alive_tasks", _G, "The number of tasks that have not ended")
BUILD = Family("istio_build", _G, "Istio component build info.", ("component", "tag"))
XDS_TERMINATIONS = Family(
    "istio_xds_connection_terminations",
    _C,
    "The total number of completed connections to xds server (unstable).",
    ("reason",),
)
XDS_MESSAGES = Family("istio_xds_message", _C, "Total number of messages received (unstable).", ("url",))
XDS_BYTES = Family(
    "istio_xds_message_bytes", _C, "Total number of bytes received (unstable).", ("url",), "bytes"
)
OPENED = Family(
    "istio_tcp_connections_opened", _C, "The total number of TCP connections opened.", TRAFFIC_LABELS
)
CLOSED = Family(
    "istio_tcp_connections_closed", _C, "The total number of TCP connections closed.", TRAFFIC_LABELS
)
RECEIVED = Family(
    "istio_tcp_received_bytes",
    _C,
    "The size of total bytes received during request in case of a TCP connection.",
    TRAFFIC_LABELS,
)
SENT = Family(
    "istio_tcp_sent_bytes",
    _C,
    "The size of total bytes sent during response in case of a TCP connection.",
    TRAFFIC_LABELS,
)
ON_DEMAND_DNS = Family(
    "istio_on_demand_dns",
    _C,
    "The total number of requests that used on-demand DNS (unstable).",
    (*_SOURCE_LABELS, "hostname"),
)
FAILED = Family(
    "istio_tcp_connections_failed",
    _C,
    "The total number of TCP connections that failed to establish (unstable).",
    TRAFFIC_LABELS,
)
SOCKETS_OPEN = Family(
    "istio_tcp_sockets_open", _G, "The current number of open TCP sockets (unstable).", ("reporter",)
)
CRL_REJECTIONS = Family(
    "istio_crl_policy_rejections",
    _C,
    "The total number of connections rejected due to CRL certificate revocation (unstable).",
    ("reporter",),
)
CRL_UNTRACKED = Family(
    "istio_crl_untracked_connections",
    _C,
    "The total number of connections not tracked for CRL enforcement (unstable).",
    ("reporter",),
)
DNS_REQUESTS = Family("istio_dns_requests", _C, "Total number of DNS requests (unstable).", _DNS_LABELS)
DNS_UPSTREAM_REQUESTS = Family(
    "istio_dns_upstream_requests",
    _C,
    "Total number of DNS requests forwarded to upstream (unstable).",
    _DNS_LABELS,
)
DNS_UPSTREAM_FAILURES = Family(
    "istio_dns_upstream_failures",
    _C,
    "Total number of DNS requests that failed to forward upstream (unstable).",
    _DNS_LABELS,
)
DNS_UPSTREAM_DURATION = Family(
    "istio_dns_upstream_request_duration_seconds",
    _H,
    "Total time in seconds Istio takes to get DNS response from upstream (unstable).",
    _DNS_LABELS,
    "seconds",
)
ACTIVE_PROXIES = Family(
    "workload_manager_active_proxy_count",
    _G,
    "The total number current workloads with active proxies (unstable).",
)
PENDING_PROXIES = Family(
    "workload_manager_pending_proxy_count",
    _G,
    "The total number current workloads with pending proxies (unstable).",
)
PROXIES_STARTED = Family(
    "workload_manager_proxies_started", _C, "The total number of proxies that were started (unstable)."
)
PROXIES_STOPPED = Family(
    "workload_manager_proxies_stopped", _C, "The total number of proxies that were stopped (unstable)."
)
# ours, after all those that dashboards know
SERIES_OVERFLOW = Family(
    "ztunnel_traffic_series_overflow",
    _C,
    "Connections counted under labels of all unknown, since the limit of traffic series was reached.",
)
_POD_LABELS = ("pod_namespace", "pod_name")
DRAIN_CONNECTIONS = Family(
    "ztunnel_drain_connections",
    _G,
    "Connections of a pod that are still open while this process drains; absent otherwise.",
    _POD_LABELS,
)
DRAIN_OLDEST = Family(
    "ztunnel_drain_oldest_connection_seconds",
    _G,
    "Age of a pod's oldest connection while this process drains; absent otherwise.",
    _POD_LABELS,
)
DRAIN_REMAINING = Family(
    "ztunnel_drain_remaining_seconds",
    _G,
    "Seconds until what is still open is cut, while this process drains; absent otherwise.",
)
FAILURES = Family(
    "ztunnel_connection_failures",
    _C,
    "Connections that were refused or failed, by the code of docs/errors.md.",
    ("direction", "code"),
)
DRY_RUN = Family(
    "ztunnel_dry_run_verdicts",
    _C,
    "Connections that a dry-run policy matched, and what it would have said: allow or deny.",
    ("policy", "verdict"),
)
STALLED_STREAMS = Family(
    "ztunnel_stalled_streams",
    _G,
    "Streams that cannot move now: the peer's window is closed, or the application does not read.",
)
HELD_BYTES = Family(
    "ztunnel_held_bytes", _G, "Bytes that arrived for applications which have not read them.", unit="bytes"
)
LENT_WINDOW = Family(
    "ztunnel_lent_window_bytes",
    _G,
    "Held bytes that tunnels' peers may send again, so that stalled streams stop no others; bounded.",
    unit="bytes",
)
TCP_CONNECT = Family(
    "ztunnel_tcp_connect_duration_seconds",
    _H,
    "Time until a next hop took our TCP connection.",
    unit="seconds",
)
TLS_HANDSHAKE = Family(
    "ztunnel_tls_handshake_duration_seconds",
    _H,
    "Time of a TLS handshake that came to a good end; reporter source: we dialled.",
    ("reporter",),
    "seconds",
)
HANDSHAKES_DELAYED = Family(
    "ztunnel_handshakes_delayed",
    _C,
    "Clients' handshakes that had to wait, since many before them from the same address came to nothing.",
)
CONNECT_ANSWER = Family(
    "ztunnel_connect_answer_duration_seconds",
    _H,
    "Time from our CONNECT on a tunnel to its answer, whatever that was.",
    unit="seconds",
)
FIRST_BYTE = Family(
    "ztunnel_first_byte_duration_seconds",
    _H,
    "Time from the begin of a connection to the first byte that came back from its server.",
    ("reporter",),
    "seconds",
)
LOOP_LAG = Family(
    "ztunnel_event_loop_lag_seconds",
    _H,
    "How much later than asked for a task woke that sleeps half a second: others kept the loop so long.",
    unit="seconds",
)
RETRIES = Family(
    "ztunnel_connection_retries",
    _C,
    "Attempts to reach another endpoint after one failed, by its code.",
    ("code",),
)
EJECTIONS = Family(
    "ztunnel_endpoint_ejections", _C, "How often an endpoint was avoided from then on, since it failed."
)
EJECTED = Family("ztunnel_endpoints_ejected", _G, "Endpoints that are avoided now, summed over our pods.")
CERTIFICATE_EXPIRY = Family(
    "ztunnel_certificate_expiry_timestamp_seconds",
    _G,
    "When the certificate of an identity expires, in seconds since the epoch.",
    ("identity",),
    "seconds",
)
CERTIFICATE_FAILURES = Family(
    "ztunnel_certificate_renewal_failures",
    _G,
    "Attempts in a row that failed to fetch the certificate of an identity.",
    ("identity",),
)

CATALOGUE: tuple[Family, ...] = (
    OPEN_FDS,
    MAX_FDS,
    NUM_WORKERS,
    QUEUE_DEPTH,
    ALIVE_TASKS,
    BUILD,
    XDS_TERMINATIONS,
    XDS_MESSAGES,
    XDS_BYTES,
    OPENED,
    CLOSED,
    RECEIVED,
    SENT,
    ON_DEMAND_DNS,
    FAILED,
    SOCKETS_OPEN,
    CRL_REJECTIONS,
    CRL_UNTRACKED,
    DNS_REQUESTS,
    DNS_UPSTREAM_REQUESTS,
    DNS_UPSTREAM_FAILURES,
    DNS_UPSTREAM_DURATION,
    ACTIVE_PROXIES,
    PENDING_PROXIES,
    PROXIES_STARTED,
    PROXIES_STOPPED,
    SERIES_OVERFLOW,
    DRAIN_CONNECTIONS,
    DRAIN_OLDEST,
    DRAIN_REMAINING,
    FAILURES,
    DRY_RUN,
    STALLED_STREAMS,
    HELD_BYTES,
    LENT_WINDOW,
    TCP_CONNECT,
    TLS_HANDSHAKE,
    HANDSHAKES_DELAYED,
    CONNECT_ANSWER,
    FIRST_BYTE,
    LOOP_LAG,
    RETRIES,
    EJECTIONS,
    EJECTED,
    CERTIFICATE_EXPIRY,
    CERTIFICATE_FAILURES,
)

BY_SAMPLE: dict[str, Family] = {sample: family for family in CATALOGUE for sample in family.samples}
"""The family of each sample name."""
