"""Each row of the table of ends: what is counted, logged and waited."""

import pytest

from ztunnel.bounds import DEFAULTS
from ztunnel.xds.stream_ends import (
    Closed,
    Failed,
    Reason,
    StreamPhase,
    StreamRefused,
    after,
    status_text,
)

ADDRESS = "https://istiod.istio-system.svc:15012"


def refused(code: str, message: str = "", phase: StreamPhase = StreamPhase.ESTABLISHED) -> StreamRefused:
    return StreamRefused(phase, code, message, status_text(code, message))


@pytest.mark.parametrize(
    "code", ["Unavailable", "Cancelled", "Unauthenticated", "Unknown", "DeadlineExceeded"]
)
def test_any_status_before_the_headers_is_a_connection_error_with_backoff(code):
    retry = after(refused(code, "x", StreamPhase.CONNECTING), 0.64, ADDRESS)
    assert retry.reason is Reason.CONNECTION_ERROR
    assert retry.level == "warn"
    assert retry.message == (
        f"XDS client connection error: gRPC connection error connecting to {ADDRESS}: "
        f'status: {code}, message: "x", retrying in 1.28s'
    )
    assert (retry.wait, retry.backoff) == (1.28, 1.28)


def test_connection_errors_wait_20_ms_and_double_up_to_3_s():
    backoff = DEFAULTS.control.xds_first_backoff
    waits = []
    for _ in range(11):
        retry = after(refused("Unavailable", phase=StreamPhase.CONNECTING), backoff, ADDRESS)
        backoff = retry.backoff
        waits.append(retry.wait)
    assert waits == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("Unknown", ""),
        ("Cancelled", ""),
        ("DeadlineExceeded", ""),
        ("Unavailable", "the transport is closing now"),
        ("Unavailable", "received prior goaway: code: NO_ERROR"),
        (
            "Unavailable",
            "Stream removed (Socket closed (GOAWAY received; Error code: 0; Debug Text: max_age))",
        ),
    ],
)
def test_an_orderly_end_reconnects_at_once_and_resets_the_backoff(code, message):
    retry = after(refused(code, message), 5.12, ADDRESS)
    assert retry.reason is Reason.RECONNECT
    assert retry.level == "debug"
    assert (retry.wait, retry.backoff) == (0.01, 0.01)
    assert retry.message == (
        f'XDS client terminated: gRPC error status: {code}, message: "{message}", retrying in 10ms'
    )


@pytest.mark.parametrize(
    ("code", "message"), [("Unavailable", "connection reset"), ("Internal", ""), ("ResourceExhausted", "")]
)
def test_any_other_status_after_the_headers_backs_off(code, message):
    retry = after(refused(code, message), 0.02, ADDRESS)
    assert (retry.reason, retry.level) == (Reason.ERROR, "warn")
    assert (retry.wait, retry.backoff) == (0.04, 0.04)
    assert (
        retry.message
        == f'XDS client error: gRPC error status: {code}, message: "{message}", retrying in 40ms'
    )


def test_trouble_of_our_own_backs_off_instead_of_spinning():
    retry = after(Failed("TLS Error: no such file"), 0.01, ADDRESS)
    assert (retry.reason, retry.level) == (Reason.ERROR, "warn")
    assert (retry.wait, retry.backoff) == (0.02, 0.02)
    assert retry.message == "XDS client error: TLS Error: no such file, retrying in 20ms"


def test_a_clean_end_reconnects_at_once():
    retry = after(Closed(spoke=True), 5.12, ADDRESS)
    assert (retry.reason, retry.level, retry.message) == (Reason.COMPLETE, "warn", "XDS client complete")
    assert (retry.wait, retry.backoff) == (0.0, DEFAULTS.control.xds_first_backoff)


def test_a_clean_end_without_a_word_backs_off():
    retry = after(Closed(spoke=False), 10.24, ADDRESS)
    assert retry.reason is Reason.COMPLETE
    assert (retry.wait, retry.backoff) == (
        DEFAULTS.control.xds_longest_backoff,
        DEFAULTS.control.xds_longest_backoff,
    )


def test_hints_name_the_common_causes():
    assert status_text("Unauthenticated", "authentication failure: no such pod") == (
        'status: Unauthenticated, message: "authentication failure: no such pod" '
        "(hint: check the control plane logs for more information)"
    )
    assert status_text("Unavailable", "m", source="Temporary failure in name resolution") == (
        'status: Unavailable, message: "m", source: Temporary failure in name resolution '
        "(hint: is the DNS server reachable?)"
    )
    assert status_text("Internal", "m", details="d", source="s") == (
        'status: Internal, message: "m", details: d, source: s'
    )
