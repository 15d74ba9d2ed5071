from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from ztunnel.config.config_errors import ConfigError
from ztunnel.config.config_view import config_view, config_yaml
from ztunnel.config.load import load_config
from ztunnel.config.load_from_machine import read_text_file
from ztunnel.config.model import (
    DEFAULT_MESH_CONFIG,
    DEFAULT_ROOT_CERT,
    DEFAULT_TOKEN,
    Config,
    LocalFile,
    Localhost,
    LocalStatic,
    ProxyMode,
    RootFile,
    RootStatic,
    RootSystem,
    SocketConfig,
    TokenFile,
    TokenStatic,
    WorkloadInfo,
)
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity


def load(
    environ: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    cpu_count: int = 8,
    args: Sequence[str] = (),
) -> Config:
    return load_config(environ or {}, read_file=(files or {}).get, cpu_count=cpu_count, args=args)


def refused(environ: Mapping[str, str], files: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(environ, files)
    return str(caught.value)


def test_an_empty_environment_gives_the_defaults():
    loaded = load({}, {DEFAULT_ROOT_CERT: "pem"}, cpu_count=4)
    assert loaded == Config()


def test_the_defaults_are_the_reference_ones():
    config = load()
    assert (config.window_size, config.connection_window_size, config.frame_size) == (
        4 << 20,
        16 << 20,
        1 << 20,
    )
    assert config.pool_max_streams_per_conn == 100
    assert config.pool_unused_release_timeout == 300
    assert config.secret_ttl == 86400
    assert config.self_termination_deadline == 5
    assert config.socket_config == SocketConfig(
        keepalive_enabled=True,
        keepalive_time=180,
        keepalive_interval=180,
        keepalive_retries=9,
        user_timeout_enabled=False,
    )
    assert config.illegal_ports == {15001, 15006, 15008}
    assert config.packet_mark == 1337
    assert config.proxy_mode is ProxyMode.SHARED
    assert config.node_id == "ztunnel~1.1.1.1~.~.svc.cluster.local"
    assert config.socks5_addr is None


EVERY_BOOL = [
    "ENABLE_PROXY",
    "FAKE_CA",
    "XDS_ON_DEMAND",
    "INPOD_PORT_REUSE",
    "ENABLE_ORIG_SRC",
    "UNSTABLE_ENABLE_SOCKS5",
    "LOCALHOST_APP_TUNNEL",
    "ENABLE_RESPONSE_BAGGAGE",
    "IPV6_ENABLED",
    "KEEPALIVE_ENABLED",
    "USER_TIMEOUT_ENABLED",
]


@pytest.mark.parametrize("name", EVERY_BOOL)
def test_a_bad_bool_names_variable_value_and_remedy(name):
    assert (
        refused({name: "TRUE"}) == f"invalid env var {name}=TRUE (provided string was not `true` or `false`)"
    )


BAD = {
    "PROXY_MODE": "both",
    "PACKET_MARK": "0x539",
    "POOL_MAX_STREAMS_PER_CONNECTION": "65536",
    "POOL_UNUSED_RELEASE_TIMEOUT": "1.5h",
    "HTTP2_STREAM_WINDOW_SIZE": "4294967296",
    "HTTP2_CONNECTION_WINDOW_SIZE": "1",
    "HTTP2_FRAME_SIZE": "100",
    "KEEPALIVE_TIME": "soon",
    "KEEPALIVE_INTERVAL": "-1s",
    "KEEPALIVE_RETRIES": "nine",
    "CONNECTION_TERMINATION_DEADLINE": "x",
    "TERMINATION_GRACE_PERIOD_SECONDS": "30s",
    "SECRET_TTL": "1d12",
    "ZTUNNEL_WORKER_THREADS": "150%",
    "ZTUNNEL_RESOURCE_CPU_LIMIT": "1k",
    "ZTUNNEL_RESOURCE_CPU_REQUEST": "-",
    "ZTUNNEL_CPU_LIMIT": "1.5",
    "XDS_ADDRESS": "unix:///x",
    "CA_ADDRESS": "https://",
    "ISTIO_META_DNS_PROXY_ADDR": "localhost",
    "ZTUNNEL_WORKLOAD_WAIT": "5 5",
    "ZTUNNEL_METRICS_MAX_SERIES": "0",
    "ZTUNNEL_METRICS_SERIES_TTL": "never",
}


@pytest.mark.parametrize("name", BAD)
def test_every_other_bad_value_is_refused_by_name(name):
    text = refused({name: BAD[name]})
    assert text.startswith(f"invalid env var {name}={BAD[name]} (")
    assert len(text) > len(f"invalid env var {name}={BAD[name]} (") + 10


def test_a_huge_bad_value_is_shortened():
    assert len(refused({"KEEPALIVE_TIME": "x" * 10_000})) < 500


def test_dedicated_mode_needs_its_workload_and_has_no_mark():
    assert "PROXY_WORKLOAD_INFO" in refused({"PROXY_MODE": "dedicated"})
    assert "PROXY_WORKLOAD_INFO=a/b" in refused({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b"})
    dedicated = {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/pod/sa"}
    config = load(dedicated)
    assert config.proxy_workload_info == WorkloadInfo(name="pod", namespace="ns", service_account="sa")
    assert config.packet_mark is None
    assert load({**dedicated, "PACKET_MARK": "7"}).packet_mark == 7
    assert load({"PACKET_MARK": "0"}).packet_mark is None


def test_shared_mode_does_not_look_at_the_workload_info():
    assert load({"PROXY_WORKLOAD_INFO": "nonsense"}).proxy_workload_info is None


def test_istiod_is_found_in_the_cluster_or_on_localhost():
    assert load().xds_address == load().ca_address == "https://localhost:15012"
    inside = load({"KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert inside.xds_address == inside.ca_address == "https://istiod.istio-system.svc:15012"


def test_an_empty_xds_address_switches_xds_off_and_an_empty_ca_is_refused():
    config = load({"XDS_ADDRESS": ""})
    assert config.xds_address is None
    assert not any("XDS_ROOT_CA" in warning for warning in config.warnings)
    assert refused({"CA_ADDRESS": ""}).startswith("invalid env var CA_ADDRESS= (a CA is needed")


def test_the_fake_ca_needs_no_address_and_is_refused_in_kubernetes():
    config = load({"FAKE_CA": "true", "CA_ADDRESS": ""})
    assert config.fake_ca
    assert config.ca_address is None
    assert "KUBERNETES_SERVICE_HOST" in refused({"FAKE_CA": "true", "KUBERNETES_SERVICE_HOST": "10.96.0.1"})


def test_roots_are_a_file_the_system_or_text():
    config = load({"XDS_ROOT_CA": "/r.pem", "CA_ROOT_CA": "SYSTEM"}, {"/r.pem": "x"})
    assert config.xds_root_cert == RootFile("/r.pem")
    assert config.ca_root_cert == RootSystem()
    assert config.warnings == ()
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    inline = load({"CA_ROOT_CA": pem}, {DEFAULT_ROOT_CERT: pem})
    assert inline.ca_root_cert == RootStatic(pem)
    assert inline.warnings == ()


def test_a_missing_root_file_is_no_error_but_a_warning():
    config = load({"CA_ROOT_CA": "/missing"}, {DEFAULT_ROOT_CERT: "x"})
    assert config.ca_root_cert == RootStatic("/missing")
    assert len(config.warnings) == 1
    assert "CA_ROOT_CA" in config.warnings[0]
    assert "/missing" in config.warnings[0]


def test_the_token_is_a_file_or_itself_and_never_shown():
    assert load().auth is None
    assert load({}, {DEFAULT_TOKEN: "t"}).auth == TokenFile(DEFAULT_TOKEN)
    assert load({"AUTH_TOKEN": "/t"}, {"/t": "x"}).auth == TokenFile("/t")
    static = load({"AUTH_TOKEN": "eyJhbGciOi"})
    assert static.auth == TokenStatic("eyJhbGciOi")
    assert "eyJhbGciOi" not in repr(static)
    assert "eyJhbGciOi" not in config_yaml(static)


def test_a_token_file_that_cannot_be_read_is_still_a_file():
    def read(path):
        if path == "/t":
            raise PermissionError(errno.EACCES, "denied")

    assert load_config({"AUTH_TOKEN": "/t"}, read_file=read, cpu_count=1).auth == TokenFile("/t")


def test_an_unreadable_mesh_config_is_an_error():
    def read(path):
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(ConfigError, match=r"cannot read \./etc/istio/config/mesh"):
        load_config({}, read_file=read, cpu_count=1)


def test_headers_keep_their_values_and_the_dump_does_not():
    config = load({"CA_HEADER_X_FOO": "s3cret", "CA_HEADER_a": "b", "XDS_HEADER_K": "v"})
    assert config.ca_headers == (("x_foo", "s3cret"), ("a", "b"))
    assert config.xds_headers == (("k", "v"),)
    assert "s3cret" not in repr(config)
    assert config_view(config)["caHeaders"] == [["x_foo", "<redacted>"], ["a", "<redacted>"]]


def test_a_bad_header_is_refused_without_its_value():
    text = refused({"XDS_HEADER_a b": "s3cret"})
    assert "XDS_HEADER_a b" in text
    assert "s3cret" not in text


def test_local_xds_is_a_path_or_text_but_not_both():
    assert load({"LOCAL_XDS_PATH": "/l.yaml"}).local_xds == LocalFile("/l.yaml")
    assert load({"LOCAL_XDS": "workloads: []"}).local_xds == LocalStatic("workloads: []")
    assert load().local_xds is None
    assert "only one of" in refused({"LOCAL_XDS_PATH": "/l", "LOCAL_XDS": "x"})


def test_nothing_to_serve_is_refused():
    off = {"ENABLE_PROXY": "false", "ISTIO_META_DNS_CAPTURE": "false"}
    assert refused(off) == "ztunnel run without any servers enabled"
    assert load({"ENABLE_PROXY": "false"}).proxy is False


def test_on_demand_and_dns_exclude_each_other():
    assert "on-demand" in refused({"XDS_ON_DEMAND": "true"})
    assert load({"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}).xds_on_demand


@pytest.mark.parametrize(
    ("text", "on"), [("true", True), ("TRUE", True), ("false", False), ("1", False), ("", False)]
)
def test_dns_capture_compares_without_case_and_anything_else_is_off(text, on):
    assert load({"ISTIO_META_DNS_CAPTURE": text}).dns_proxy is on


def test_the_dns_address_is_localhost_or_one_address():
    assert load({"ISTIO_META_DNS_PROXY_ADDR": "localhost:53"}).dns_proxy_addr == Localhost(ipv6=True, port=53)
    assert load({"ISTIO_META_DNS_PROXY_ADDR": "[::1]:53"}).dns_proxy_addr == SocketAddress.parse("[::1]:53")


def test_the_silent_switches_accept_only_their_one_value():
    for value in ["TRUE", "1", "yes"]:
        config = load(
            {"AUTHZ_POLICY_INFO_LOGGING": value, "TLS12_ENABLED": value, "COMPLIANCE_POLICY": value}
        )
        assert [config.authz_policy_info_logging, config.tls12_enabled, config.pqc] == [False] * 3
    config = load({"AUTHZ_POLICY_INFO_LOGGING": "true", "TLS12_ENABLED": "true", "COMPLIANCE_POLICY": "pqc"})
    assert config.authz_policy_info_logging
    assert config.tls12_enabled
    assert config.pqc


def test_ipv6_disabled_binds_ipv4_only():
    config = load({"IPV6_ENABLED": "false"})
    assert config.inbound_addr == SocketAddress(IPv4Address("0.0.0.0"), 15008)
    assert config.admin_addr == Localhost(ipv6=False, port=15000)
    assert load().inbound_addr == SocketAddress(IPv6Address("::"), 15008)


def test_socks5_adds_its_port_to_the_illegal_ones():
    config = load({"UNSTABLE_ENABLE_SOCKS5": "true"})
    assert str(config.socks5_addr) == "127.0.0.1:15080"
    assert config.illegal_ports == {15001, 15006, 15008, 15080}


@pytest.mark.parametrize(
    ("environ", "deadline"),
    [
        ({}, 5),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "11"}, 6),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "2m"}, 120),
    ],
)
def test_the_drain_deadline_leaves_time_before_the_kill(environ, deadline):
    assert load(environ).self_termination_deadline == deadline


@pytest.mark.parametrize(
    ("environ", "cpus", "workers"),
    [
        ({}, 2, 2),
        ({}, 16, 4),
        ({}, 17, 5),
        ({"ZTUNNEL_RESOURCE_CPU_REQUEST": "3500m"}, 8, 4),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "1"}, 16, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "2", "ZTUNNEL_RESOURCE_CPU_REQUEST": "3"}, 16, 3),
        ({"ZTUNNEL_CPU_LIMIT": "40"}, 4, 10),
        ({"ZTUNNEL_WORKER_THREADS": "0"}, 6, 6),
        ({"ZTUNNEL_WORKER_THREADS": "0", "ZTUNNEL_RESOURCE_CPU_LIMIT": "2"}, 6, 2),
        ({"ZTUNNEL_WORKER_THREADS": "50%"}, 6, 3),
        ({"PROXY_CONFIG": "{proxyMetadata: {}, concurrency: 0}"}, 6, 6),
        ({"PROXY_CONFIG": "{proxyMetadata: {}, concurrency: 3}"}, 6, 3),
        ({"PROXY_CONFIG": "{proxyMetadata: {}, concurrency: 3}", "ZTUNNEL_WORKER_THREADS": "1"}, 6, 1),
    ],
)
def test_the_number_of_workers(environ, cpus, workers):
    assert load(environ, cpu_count=cpus).num_worker_threads == workers


def test_names_and_identity_of_ztunnel_itself():
    names = {
        "POD_NAME": "z-1",
        "POD_NAMESPACE": "istio-system",
        "SERVICE_ACCOUNT": "ztunnel",
        "INSTANCE_IP": "10.0.0.1",
    }
    config = load({**names, "TRUST_DOMAIN": "td"})
    assert config.ztunnel_identity == Identity("td", "istio-system", "ztunnel")
    assert config.ztunnel_workload == WorkloadInfo("z-1", "istio-system", "ztunnel")
    assert config.node_id == "ztunnel~10.0.0.1~z-1.istio-system~istio-system.svc.cluster.local"
    for missing in ["POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"]:
        assert load({k: v for k, v in names.items() if k != missing}).ztunnel_workload is None


def test_the_cluster_id_of_the_metadata_wins():
    assert load({"CLUSTER_ID": "b"}).cluster_id == "b"
    assert load({"CLUSTER_ID": "b", "ISTIO_META_CLUSTER_ID": "a"}).cluster_id == "a"


def test_metadata_is_merged_with_the_environment_on_top():
    mesh = "defaultConfig: {proxyMetadata: {ISTIO_META_A: file, B: file, C: file}, unknown: 1}"
    env = {
        "PROXY_CONFIG": '{"proxyMetadata": {"B": "env", "ISTIO_META_DNS_CAPTURE": "false"}}',
        "ISTIO_META_C": "meta",
    }
    config = load(env, {DEFAULT_MESH_CONFIG: mesh})
    assert config.proxy_metadata == {"A": "file", "B": "env", "C": "meta", "DNS_CAPTURE": "false"}
    assert config.dns_proxy is False


def test_mesh_config_fields_and_their_precedence():
    mesh = "defaultConfig: {proxyMetadata: {}, discoveryAddress: 'a:1', proxyAdminPort: 1, statsPort: 2}"
    config = load({"PROXY_CONFIG": "{proxyMetadata: {}, statsPort: 3}"}, {DEFAULT_MESH_CONFIG: mesh})
    assert config.xds_address == "https://a:1"
    assert config.ca_address == "https://localhost:15012"
    assert config.admin_addr == Localhost(ipv6=True, port=1)
    assert str(config.stats_addr) == "[::]:3"
    assert load({"XDS_ADDRESS": "b:2"}, {DEFAULT_MESH_CONFIG: mesh}).xds_address == "https://b:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "failed parsing proxy config env: missing field 'proxyMetadata'"),
        ("{concurrency: 2}", "failed parsing proxy config env: missing field 'proxyMetadata'"),
        ("[1]", "failed parsing proxy config env: expected a mapping"),
        (
            "{proxyMetadata: [a]}",
            "failed parsing proxy config env: proxyMetadata: expected a mapping of strings",
        ),
        (
            "{proxyMetadata: {a: 1}}",
            "failed parsing proxy config env: proxyMetadata.a: expected a string; put the value in quotes",
        ),
        (
            "{proxyMetadata: {}, statsPort: 70000}",
            "failed parsing proxy config env: statsPort: expected a whole number from 0 to 65535",
        ),
        (
            "{proxyMetadata: {}, concurrency: true}",
            "failed parsing proxy config env: concurrency: expected a whole number from 0 to 65535",
        ),
        (
            "{proxyMetadata: {}, discoveryAddress: 5}",
            "failed parsing proxy config env: discoveryAddress: expected a string",
        ),
    ],
)
def test_a_bad_proxy_config_says_where(text, message):
    assert refused({"PROXY_CONFIG": text}) == message


def test_broken_yaml_is_refused_with_its_place():
    text = refused({"PROXY_CONFIG": "{a: b"})
    assert text.startswith("failed parsing proxy config env: ")
    assert "line 1" in text
    assert "failed parsing mesh config file" in refused({}, {DEFAULT_MESH_CONFIG: "a: [\x01"})
    assert "expected a mapping" in refused({}, {DEFAULT_MESH_CONFIG: "- 1"})


def test_a_mesh_file_without_default_config_decides_nothing():
    assert load({}, {DEFAULT_MESH_CONFIG: "rootNamespace: x"}).proxy_metadata == {}
    assert load({}, {DEFAULT_MESH_CONFIG: ""}).proxy_metadata == {}


def test_json_metadata_is_parsed_and_bad_json_only_warned_of():
    config = load({"ISTIO_METAJSON_A": '{"x": [1, null]}', "ISTIO_METAJSON_B": "{"}, {DEFAULT_ROOT_CERT: "x"})
    assert config.node_metadata_json == {"A": {"x": [1, None]}}
    assert config.warnings == ("failed to parse ISTIO_METAJSON_B={",)


def test_own_variables():
    config = load(
        {
            "ZTUNNEL_WORKLOAD_WAIT": "30s",
            "ZTUNNEL_METRICS_MAX_SERIES": "10",
            "ZTUNNEL_METRICS_SERIES_TTL": "1m",
            "ZTUNNEL_METRICS_DROP_LABELS": "source_zone, destination_zone",
        }
    )
    assert config.workload_wait == 30
    assert config.metrics_max_series == 10
    assert config.metrics_series_ttl == 60
    assert config.metrics_drop_labels == {"source_zone", "destination_zone"}


def test_the_view_has_the_names_and_shapes_of_the_dump():
    view = config_view(
        load(
            {"POD_NAMESPACE": "n", "SERVICE_ACCOUNT": "s"},
            {DEFAULT_ROOT_CERT: "x"},
            args=["proxy", "ztunnel"],
        )
    )
    assert view["adminAddr"] == {"Localhost": [True, 15000]}
    assert view["statsAddr"] == {"SocketAddr": "[::]:15020"}
    assert view["caRootCert"] == {"File": DEFAULT_ROOT_CERT}
    assert view["secretTtl"] == {"secs": 86400, "nanos": 0}
    assert view["proxyMode"] == "Shared"
    assert view["illegalPorts"] == [15001, 15006, 15008]
    assert view["ztunnelIdentity"] == "spiffe://cluster.local/ns/n/sa/s"
    assert view["packetMark"] == 1337
    assert view["proxyArgs"] == "proxy ztunnel"
    assert view["selfTerminationDeadline"] == {"secs": 5, "nanos": 0}
    assert not {"auth", "localXds", "warnings"} & view.keys()
    assert config_view(load({"CA_ROOT_CA": "x"}))["caRootCert"] == "Static"
    assert config_view(load({"CA_ROOT_CA": "SYSTEM"}))["caRootCert"] == "Default"
    assert config_view(load({"KEEPALIVE_TIME": "1500ms"}))["socketConfig"]["keepaliveTime"] == {
        "secs": 1,
        "nanos": 500_000_000,
    }


def test_the_config_is_frozen():
    config: Any = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.network = "x"


def test_the_file_reader_gives_none_for_what_cannot_be_a_file(tmp_path):
    (tmp_path / "f").write_text("hé")
    assert read_text_file(str(tmp_path / "f")) == "hé"
    assert read_text_file(str(tmp_path / "missing")) is None
    assert read_text_file(str(tmp_path / "f" / "x")) is None
    assert read_text_file("-----BEGIN " + "A" * 5000) is None
    assert read_text_file("a\0b") is None
    with pytest.raises(IsADirectoryError):
        read_text_file(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UnicodeDecodeError):
        read_text_file(str(tmp_path / "binary"))
