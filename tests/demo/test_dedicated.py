"""What the demo and the tests ask of a ztunnel: its environment and its metrics page."""

from __future__ import annotations

from pathlib import Path

from ztunnel.config.load import load_config
from ztunnel.config.load_from_machine import read_text_file
from ztunnel.config.model import LocalFile, ProxyMode, WorkloadInfo
from ztunnel.demo.dedicated import MetricLine, dedicated_environment, parse_metrics


def environment(**extra: str) -> dict[str, str]:
    return dedicated_environment(
        namespace="shop",
        name="web",
        service_account="web-account",
        mesh_file=Path("/tmp/mesh.yaml"),
        root=Path("/tmp/root.pem"),
        inherit={"PATH": "/bin", "NETWORK": "must not leak in", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        extra=extra,
    )


def test_the_configuration_is_accepted_and_means_what_it_says() -> None:
    config = load_config(environment(), read_file=read_text_file, cpu_count=2, args=["proxy"])
    assert config.proxy_mode is ProxyMode.DEDICATED
    assert config.proxy_workload_info == WorkloadInfo(
        name="web", namespace="shop", service_account="web-account"
    )
    assert config.local_xds == LocalFile("/tmp/mesh.yaml")
    assert (config.fake_ca, config.fake_ca_root) == (True, "/tmp/root.pem")
    assert config.xds_address is None
    assert config.network == ""
    assert config.packet_mark == 1337
    assert not config.dns_proxy


def test_extra_variables_win() -> None:
    assert environment(PACKET_MARK="0")["PACKET_MARK"] == "0"


def test_samples_are_read_with_their_labels() -> None:
    text = (
        "# HELP a_total Some help.\n# TYPE a counter\n"
        'a_total{x="1",y="with \\"quotes\\", comma and \\\\ and \\n"} 2\n'
        "plain_gauge 1.5e3\n"
        "# EOF\n"
    )
    assert list(parse_metrics(text)) == [
        MetricLine("a_total", {"x": "1", "y": 'with "quotes", comma and \\ and \n'}, 2.0),
        MetricLine("plain_gauge", {}, 1500.0),
    ]
