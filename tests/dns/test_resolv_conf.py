"""What is read of /etc/resolv.conf."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.dns.resolv_conf import ResolvConf, parse_resolv_conf, read_resolv_conf


def test_a_pods_file():
    conf = parse_resolv_conf(
        "# comment\n"
        "search ns1.svc.cluster.local svc.cluster.local Cluster.Local.\n"
        "nameserver 10.96.0.10\n"
        "nameserver fd00::a\n"
        "options ndots:5 timeout:2 attempts:3 rotate edns0\n"
    )
    assert conf == ResolvConf(
        (ip_address("10.96.0.10"), ip_address("fd00::a")),
        ("ns1.svc.cluster.local", "svc.cluster.local", "cluster.local"),
        timeout=2.0,
        attempts=3,
        rotate=True,
        ndots=5,
    )
    assert conf.tries == 4


def test_defaults():
    conf = parse_resolv_conf("nameserver 10.0.0.1")
    assert (conf.timeout, conf.attempts, conf.rotate, conf.ndots, conf.search) == (5.0, 2, False, 1, ())
    assert conf.tries == 3


def test_each_server_has_its_turn():
    assert (
        parse_resolv_conf(
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions attempts:0"
        ).tries
        == 3
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("options timeout:0", 1.0),
        ("options timeout:9999999999999999999999", 30.0),
        ("options timeout:-1", 5.0),
        ("options timeout:x", 5.0),
        ("options timeout", 5.0),
        ("options timeout:2\noptions timeout:3", 3.0),
    ],
)
def test_bounds(text, value):
    assert parse_resolv_conf(text).timeout == value


def test_what_is_not_understood_is_passed_over():
    text = (
        "nameserver\nnameserver x\nnonsense\n\n; c\n#c\nnameserver 1.1.1.1 #c\nsearch a\nsearch b\ndomain c"
    )
    conf = parse_resolv_conf(text)
    assert conf.nameservers == (ip_address("1.1.1.1"),)
    assert conf.search == ("c",)


def test_three_servers_count_and_doubles_once():
    text = "".join(f"nameserver 10.0.0.{number}\n" for number in (1, 1, 2, 3, 4))
    assert parse_resolv_conf(text).nameservers == (ip_address("10.0.0.1"), ip_address("10.0.0.2"))


def test_a_missing_file_is_said(tmp_path):
    path = tmp_path / "resolv.conf"
    assert read_resolv_conf(path) == ResolvConf(problem=f"{path}: No such file or directory")
    path.write_bytes(b"nameserver 10.0.0.1\n\xff\xfe")
    assert read_resolv_conf(path).nameservers == (ip_address("10.0.0.1"),)


@given(st.text(max_size=300))
@settings(deadline=None)
def test_no_text_upsets_it(text):
    conf = parse_resolv_conf(text)
    assert 1 <= conf.timeout <= 30
    assert len(conf.nameservers) <= 3
