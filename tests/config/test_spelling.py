"""Typing errors get a warning with the right spelling, and what is right gets none."""

from __future__ import annotations

import pytest

from tests.support.logs import capture_logs
from ztunnel.config.load import load_config
from ztunnel.config.spelling import nearest, variable_warnings
from ztunnel.observe.filter import parse_startup_filter
from ztunnel.observe.labels import unknown_labels
from ztunnel.observe.logging import get_logger, unknown_scopes, warn_regardless

BASE = {"FAKE_CA": "true", "XDS_ADDRESS": ""}


def warnings(**environ: str) -> list[str]:
    config = load_config({**BASE, **environ}, read_file=lambda _path: None, cpu_count=2)
    return [one for one in config.warnings if "no server will be trusted" not in one]


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"TLS12_ENABLED": "True"}, "TLS12_ENABLED=True counts as false: write TLS12_ENABLED=true"),
        ({"TLS12_ENABLED": "maybe"}, "expected `true` or `false`"),
        ({"AUTHZ_POLICY_INFO_LOGGING": "1"}, "write AUTHZ_POLICY_INFO_LOGGING=true"),
        ({"ISTIO_META_DNS_CAPTURE": "yes"}, "write ISTIO_META_DNS_CAPTURE=true"),
        ({"LOG_FORMAT": "yaml"}, "LOG_FORMAT=yaml is unknown, so lines are plain text"),
        ({"LOG_FORMAT": "JSON"}, "did you mean json?"),
        ({"COMPLIANCE_POLICY": "pcq"}, "so any key exchange is accepted; did you mean pqc?"),
        ({"ZTUNNEL_WORKLOAD_WIAT": "1s"}, "did you mean ZTUNNEL_WORKLOAD_WAIT?"),
        (
            {"ZTUNNEL_FROBNICATE": "1"},
            "FROBNICATE: it changes nothing; no variable of ours is like it.",
        ),
        ({"ZTUNNEL_FOO": "1"}, "ZTUNNEL_FOO: it changes nothing; no variable of ours is like it."),
        ({"XDS_ADRESS": "x"}, "unknown variable XDS_ADRESS: it changes nothing; did you mean XDS_ADDRESS?"),
        ({"KUBERNETES_SERVICE_HOTS": "x"}, "did you mean KUBERNETES_SERVICE_HOST?"),
        ({"Rust_Log": "debug"}, "did you mean RUST_LOG?"),
        ({"ISTIO_META_DNS_CAPTUR": "true"}, "changes nothing here; did you mean ISTIO_META_DNS_CAPTURE?"),
        ({"ISTIO_META_CLUSTERID": "c"}, "did you mean ISTIO_META_CLUSTER_ID?"),
        ({"POOL_MAX_STREAMS_PER_CONN": "5"}, "did you mean POOL_MAX_STREAMS_PER_CONNECTION?"),
    ],
)
def test_a_typing_error_gets_one_warning_with_the_right_spelling(environ, part):
    [warning] = warnings(**environ)
    assert part in warning


@pytest.mark.parametrize(
    "environ",
    [
        {"TLS12_ENABLED": "true", "AUTHZ_POLICY_INFO_LOGGING": "false", "COMPLIANCE_POLICY": "fips-140-2"},
        {"ISTIO_META_DNS_CAPTURE": "TRUE", "LOG_FORMAT": "json", "RUST_LOG": "debug"},
        {
            "ISTIO_META_ANYTHING": "x",
            "ISTIO_META_DNS_AUTO_ALLOCATE": "true",
            "XDS_HEADER_x-a": "b",
            "CA_HEADER_x-a": "b",
            "ISTIO_METAJSON_A": "{}",
        },
        {"PATH": "/bin", "HOME": "/root", "HOSTNAME": "a", "KUBERNETES_PORT": "tcp://10.0.0.1:443"},
        {"INPOD_ENABLED": "true", "RUST_BACKTRACE": "1", "CLUSTER_ID": "c", "ISTIO_META_CLUSTER_ID": "c"},
        # what Kubernetes sets for a Service that is called ztunnel
        {
            "ZTUNNEL_SERVICE_HOST": "10.0.0.1",
            "ZTUNNEL_SERVICE_PORT": "15008",
            "ZTUNNEL_SERVICE_PORT_HTTP": "15008",
            "ZTUNNEL_PORT": "tcp://10.0.0.1:15008",
            "ZTUNNEL_PORT_15008_TCP": "tcp://10.0.0.1:15008",
            "ZTUNNEL_PORT_15008_TCP_ADDR": "10.0.0.1",
        },
    ],
)
def test_what_is_right_or_somebody_elses_gets_no_warning(environ):
    assert warnings(**environ) == []


def test_what_kubernetes_sets_in_every_pod_gets_no_warning():
    known = {"KUBERNETES_SERVICE_HOST", "XDS_ADDRESS"}
    names = known | {
        "KUBERNETES_SERVICE_PORT",
        "KUBERNETES_SERVICE_PORT_HTTPS",
        "KUBERNETES_PORT",
        "KUBERNETES_PORT_443_TCP",
        "KUBERNETES_PORT_443_TCP_ADDR",
        "KUBERNETES_PORT_443_TCP_PORT",
        "KUBERNETES_PORT_443_TCP_PROTO",
    }
    assert variable_warnings(names, known, ()) == []
    [warning] = variable_warnings({"KUBERNETES_SERVICE_PORT"}, known, ())
    assert "did you mean KUBERNETES_SERVICE_HOST?" in warning


def test_the_nearest_word_ignores_case_and_separators():
    assert nearest("Log-Level", ["log_level", "log_format"]) == "log_level"
    assert nearest("quite different", ["log_level"]) is None
    assert nearest("x", []) is None


def test_unknown_metric_labels():
    [warning] = unknown_labels({"source_worklod", "source_zone"})
    assert "did you mean source_workload?" in warning
    [kept] = unknown_labels({"reporter"})
    assert "always kept" in kept


def test_a_level_that_is_taken_for_a_scope_is_told_of():
    held = [get_logger("proxy::outbound")]
    [warning] = unknown_scopes(parse_startup_filter("dbug"))
    assert warning == (
        "RUST_LOG: `dbug` logs nothing; it is taken for the name of a scope; did you mean the level debug?"
    )
    [warning] = unknown_scopes(parse_startup_filter("info,ztunnel::proxi=debug"))
    assert "did you mean ztunnel::proxy" in warning
    [warning] = unknown_scopes(parse_startup_filter("info,h2=off"))
    assert "no logger here has such a scope" in warning
    assert unknown_scopes(parse_startup_filter("info,ztunnel::proxy=debug,access=off,ztunnel=warn")) == []
    assert unknown_scopes(parse_startup_filter(None)) == []
    assert len(held) == 1


def test_a_warning_about_the_filter_passes_the_filter():
    with capture_logs("off") as lines:
        get_logger("app").warning("hidden")
        warn_regardless("shown")
    assert [line.message for line in lines] == ["shown"]
