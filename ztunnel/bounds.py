"""All timeouts and limits that a person may want to know or a test may want to change, as one frozen value.

`Bounds` is passed down from the top; an object that is made without it uses `DEFAULTS`. What the environment
sets is in `ztunnel.config.model.Config`. The table in docs/architecture.md is made from this file (`make
bounds`); `make lint` checks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024


def seconds(value: float, what: str) -> Any:
    """Returns a field that holds seconds. what: its row in the table of bounds."""
    return field(default=value, metadata={"what": what, "unit": "s"})


def count(value: int, what: str) -> Any:
    """Returns a field that holds a number of things."""
    return field(default=value, metadata={"what": what, "unit": ""})


def fraction(value: float, what: str) -> Any:
    """Returns a field that holds a part of one."""
    return field(default=value, metadata={"what": what, "unit": ""})


def size(value: int, what: str) -> Any:
    """Returns a field that holds bytes."""
    return field(default=value, metadata={"what": what, "unit": "B"})


@dataclass(frozen=True, slots=True)
class TunnelBounds:
    """Of one HBONE tunnel and its streams."""

    ping_interval: float = seconds(10, "from an answered PING to the next")
    ping_timeout: float = seconds(20, "for the answer to a PING; then the tunnel is dead")
    linger: float = seconds(5, "when we end a tunnel: for its last bytes to arrive")
    linger_interval: float = seconds(0.02, "between two checks whether they have arrived")
    linger_closed: float = seconds(0.25, "of these, for a peer that has received everything to close its end")
    stalled_application: float = seconds(60, "an application that reads nothing, after its stream is dead")
    stalled_after_reset: float = seconds(5, "the same, for a stream that was reset before its END_STREAM")
    answer_timeout: float = seconds(20, "for the answer to CONNECT; the peer may itself wait 10 s")
    probe_after: float = seconds(
        1, "without an answer to CONNECT, until a PING asks whether the peer is alive"
    )
    probe_timeout: float = seconds(2, "for any byte after that PING; then the tunnel is dead")
    hangup_grace: float = seconds(1, "for what came before an application's reset to be read and sent on")
    reset_grace: float = seconds(1, "for an application to read what came before a reset of its peer")
    unused_tunnels: int = count(3, "tunnels that end before they are used, until a connection fails")
    turn_work: int = count(
        150, "units of work without payload in one turn of a tunnel, until others have theirs"
    )
    first_work: int = count(420, "the same for the first turn after a quiet time: eight requests")
    pause_work: int = count(500, "of them in turns that follow each other, until the tunnel has to pause")
    turn_pause: float = seconds(8e-6, "pause for each unit of that work, which is 2 µs of CPU at most")
    turn_losses: int = count(2, "connections of a lost tunnel that end until others have a turn")
    lent_bytes: int = size(128 * MIB, "window that may be lent for stalled streams, over all tunnels")
    dials: int = count(8, "dials to one next hop at a time, if its tunnels take few streams; else one")
    settings_wait: float = seconds(2, "a second stream waits for the peer's SETTINGS, then it dials")
    congestion_grace: float = seconds(0.05, "a tunnel without window has to move, then another is dialled")
    congestion_interval: float = seconds(0.02, "between two checks whether it has")


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Of one connection, from accept to its access log line."""

    dial_timeout: float = seconds(10, "to dial an endpoint, a gateway or an application")
    handshake_timeout: float = seconds(10, "for a TLS handshake, on either side")
    handshakes_owed: int = count(
        32, "handshakes of one address that came to nothing, or to no request yet; then the next one waits"
    )
    handshake_pause: float = seconds(0.05, "until one of these is forgotten")
    socks_timeout: float = seconds(10, "for a SOCKS5 greeting and request")
    demand_timeout: float = seconds(6, "on-demand xDS: for an answer, before deciding without")
    accept_pause: float = seconds(0.1, "until the next accept, after none was possible")
    accept_report: float = seconds(
        1, "between two warnings about connections that were refused, or have to wait"
    )
    attempts: int = count(3, "retry budget: endpoints that are tried for one connection")
    try_timeout: float = seconds(3, "for an endpoint to be reached while there are others")
    ejection_time: float = seconds(5, "outlier ejection: an endpoint that failed is avoided")
    tunnels: int = count(3, "tunnels to one endpoint that refuse a stream unseen, until the attempt fails")
    refused_wait: float = seconds(
        10, "for a peer that refuses a stream while others of ours are open on the tunnel"
    )
    alert_timeout: float = seconds(1, "for a peer to take the alert that says why its handshake failed")
    hangup_interval: float = seconds(1, "between two checks for connections that were reset unseen")
    inner_linger: float = seconds(30, "the last bytes of an inner tunnel (double HBONE)")
    visit_end: float = seconds(5, "for a visit to a pod's network namespace to end with the process")
    settled: float = seconds(0.2, "a socket moves no byte, until `/connections` says what it waits for")
    source_ports: int = count(64_512, "ports that a translated client is shown with, from 1024 on")
    source_entry: float = seconds(30, "a translation lives whose first packet does not come")
    source_trial: float = seconds(2, "to try, within a pod, whether clients' addresses can be translated")
    source_retrial: float = seconds(60, "after such a trial failed, until the next")


@dataclass(frozen=True, slots=True)
class DnsBounds:
    """Of the DNS proxy of a pod, and of our own lookups."""

    queries: int = count(2048, "queries of a pod over UDP that wait; then SERVFAIL at once")
    query_bytes: int = size(4 * MIB, "their bytes, and those of what is forwarded")
    forwarded: int = count(2048, "queries of a pod that are forwarded at a time")
    connections: int = count(256, "TCP connections of a pod")
    idle_timeout: float = seconds(5, "a TCP connection without a query, or that takes no reply")
    avoid: float = seconds(30, "a nameserver that did not answer is asked last")
    read_pause: float = seconds(0.1, "after an error of a socket for queries, until it is read again")
    lookup_timeout: float = seconds(15, "to resolve the hostname of a workload or network gateway")
    wrong_replies: int = count(64, "datagrams that are no reply to a query, until it is given up")
    longest_ttl: float = seconds(86_400, "such a hostname is remembered at most")
    cached_names: int = count(4096, "such hostnames that are remembered, for as long as their TTL says")


@dataclass(frozen=True, slots=True)
class AdminBounds:
    """Of the readiness, admin and metrics servers, each by itself."""

    connections: int = count(100, "connections; idle ones make room")
    head_bytes: int = size(8192, "the head of a request")
    body_bytes: int = size(64 * 1024, "the body of a request")
    head_timeout: float = seconds(2, "for the head of a request, and for its body")
    idle_timeout: float = seconds(60, "between two requests")
    write_timeout: float = seconds(10, "for a client to take a piece of an answer")
    accept_pause: float = seconds(0.1, "until the next accept, after none was possible")
    refusal_linger: float = seconds(1, "for a client whose request was refused to stop sending it")
    probe_start: float = seconds(2, "of a start, in which a readiness probe waits for its outcome")
    probe_hold: float = seconds(0.8, "for which it waits: a kubelet's `timeoutSeconds` is 1 by default")
    level_ttl: float = seconds(600, "a workload's own log level, if the request does not say how long")
    level_longest_ttl: float = seconds(86_400, "a workload's own log level at most")
    shown_connections: int = count(500, "connections in an answer, if the request does not say how many")
    shown_connections_most: int = count(20_000, "connections in an answer at most")


@dataclass(frozen=True, slots=True)
class ControlBounds:
    """Of the conversations with the control plane, the CA, the CNI agent and the data plane."""

    xds_connect: float = seconds(5, "to connect to the control plane or the CA, with TLS")
    xds_silence_warning: float = seconds(15, "without a first response on an xDS stream, until a warning")
    xds_silence_limit: float = seconds(120, "without one, until the stream is given up")
    xds_demand: float = seconds(5, "on-demand xDS: for the answer of the control plane")
    demands_waiting: int = count(10_000, "on-demand xDS: keys that are waited for")
    demands_remembered: int = count(10_000, "on-demand xDS: keys that stay subscribed")
    xds_request: int = count(4_000_000, "bytes of a request on an xDS stream; istiod takes 4 MiB")
    xds_first_backoff: float = seconds(0.01, "between two xDS streams; doubled after each failure")
    xds_longest_backoff: float = seconds(3, "between two xDS streams at most")
    ca_call: float = seconds(30, "for a certificate to be issued")
    ca_calls: int = count(8, "certificate requests at a time")
    ca_first_backoff: float = seconds(1, "until a certificate is requested again; doubled after each failure")
    ca_longest_backoff: float = seconds(150, "until a certificate is requested again at most")
    ca_jitter: float = fraction(0.2, "such a pause is made longer or shorter by up to this part of it")
    ca_patience: float = seconds(900, "of failures, after which each pause is the longest")
    ca_demanded_backoff: float = seconds(2, "the same at most, when a connection waits for the certificate")
    ca_sleep: float = seconds(3600, "until a certificate's task checks the wall clock again at most")
    cni_send: float = seconds(5, "for the CNI agent to take a message")
    cni_start: float = seconds(4, "for a pod to start; then the CNI agent is told of a failure")
    cni_first_pause: float = seconds(0.02, "between two attempts to reach the CNI agent; doubled each time")
    cni_first_lost_pause: float = seconds(0.005, "after a useless connection to it; doubled each time")
    cni_jitter: float = fraction(0.2, "that pause is made longer or shorter by up to this part of it")
    cni_longest_pause: float = seconds(15, "between two attempts to reach the CNI agent at most")
    cni_retry: float = seconds(5, "until pods that did not start, or ended by themselves, are tried again")
    process_end: float = seconds(
        10, "for the interpreter to end, after all else; then the process ends and says where threads are"
    )
    workers_end: float = seconds(5, "for worker processes to end with the control side; then they are killed")
    mesh_cache_slack: int = size(
        4 * MIB, "replaced resources in the file that keeps the mesh for new workers"
    )
    loop_hung: float = seconds(
        30, "without a turn of the event loop; then the process ends, to be started again"
    )
    worker_hung: float = seconds(60, "for a worker process to apply 2,000 resources; then it is killed")
    worker_message: int = size(256 * MIB, "a message between the control side and a worker process")
    worker_short_life: float = seconds(5, "a worker process that lives longer than this is replaced at once")
    worker_first_pause: float = seconds(0.1, "until one that ended sooner is replaced; doubled each time")
    worker_longest_pause: float = seconds(30, "until a worker process is replaced at most")
    dump_reader: float = seconds(60, "for the reader of a config dump to take the next piece")
    grpc_message: int = size(200 * MIB, "a message from the control plane or the CA")
    grpc_requests: int = count(16, "messages of one gRPC stream that wait to be sent")
    grpc_ping_interval: float = seconds(30, "from one keepalive of a gRPC connection to the next")
    grpc_ping_timeout: float = seconds(10, "for its answer; then the connection is dead")
    grpc_close: float = seconds(2, "to close a gRPC connection; then its thread is left alone")
    pod_removal: float = seconds(1, "to tell the data plane that a pod which did not start is to be removed")
    crl_file: int = size(256 * MIB, "the file of revocation lists")
    crl_quiet: float = seconds(2, "without a change of its directory, until it is read")
    local_file_quiet: float = seconds(0.2, "without a change of the local file's directory, until it is read")
    local_file_values: int = count(20_000_000, "values in the local file, with what its aliases stand for")
    local_file_depth: int = count(100, "lists and mappings of the local file within one another")
    data_plane_answer: float = seconds(5, "for a report or a piece of the dump")
    watch_retry: float = seconds(10, "until a directory that cannot be watched is tried again")


@dataclass(frozen=True, slots=True)
class ExplainBounds:
    """Of an explanation (``/explain``, ``ztunnel explain``)."""

    endpoints: int = count(200, "endpoints of a service in an explanation; the chosen one is among them")
    headless_endpoints: int = count(200, "endpoints of a headless service that are searched for an address")
    names_read: int = count(2_000, "objects that are read one by one for a name that no index has")
    names_compared: int = count(200, "names that are compared in full with an unknown one")
    names_suggested: int = count(5, "similar names in the answer about an unknown one")
    clues: int = count(32, "clauses that a refusal names, where no policy allowed a connection")
    connections: int = count(5, "past connections that an explanation shows")


@dataclass(frozen=True, slots=True)
class HistoryBounds:
    """Of what is remembered of a connection that has ended; how many are is in the configuration."""

    text: int = count(300, "characters of a text about a connection, which a peer may have caused")
    sentences: int = count(12, "reasons of a plan, or of a refusal")
    attempts: int = count(3, "failed attempts whose texts are kept")
    kinds: int = count(4_096, "distinct sets of pod, peer, service and reasons that connections share")


@dataclass(frozen=True, slots=True)
class LogBounds:
    """Of the log, and of what we measure of ourselves."""

    drain_interval: float = seconds(1, "between two looks at what a drain has left; a line if that changed")
    drain_unchanged: int = count(5, "such looks without a change, until there is a line all the same")
    loop_watch: float = seconds(0.5, "between two measurements of how late the event loop is")
    gather: float = seconds(0.02, "between two writes of access log lines, while there are many")
    queued_lines: int = count(10_000, "lines that wait for stdout; then whoever logs waits, a second at most")


@dataclass(frozen=True, slots=True)
class Bounds:
    """All of them, by who keeps them."""

    tunnel: TunnelBounds = field(default_factory=TunnelBounds)
    connection: ConnectionBounds = field(default_factory=ConnectionBounds)
    dns: DnsBounds = field(default_factory=DnsBounds)
    admin: AdminBounds = field(default_factory=AdminBounds)
    control: ControlBounds = field(default_factory=ControlBounds)
    explain: ExplainBounds = field(default_factory=ExplainBounds)
    history: HistoryBounds = field(default_factory=HistoryBounds)
    log: LogBounds = field(default_factory=LogBounds)


DEFAULTS = Bounds()
