"""Headers of a CONNECT: what we write is exact, what we read may be anything."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_mesh import at
from ztunnel.decide.headers import (
    Baggage,
    HostAuthority,
    TraceParent,
    is_foreign_network,
    parse_authority,
    parse_baggage,
    parse_forwarded_host,
    parse_traceparent,
    print_baggage,
    print_forwarded,
)
from ztunnel.model.address import SocketAddress, canonical
from ztunnel.model.workload import Locality, Workload

CLIENT = Workload(
    uid="c",
    namespace="default",
    cluster_id="Kubernetes",
    workload_type="deployment",
    workload_name="client",
    canonical_name="client",
    canonical_revision="v1",
    locality=Locality("r1", "z1", "s1"),
)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.1:80", at("10.0.0.1:80")),
        ("[fd00::1]:8080", at("[fd00::1]:8080")),
        ("[::ffff:10.0.0.1]:80", at("10.0.0.1:80")),
        ("web.default.svc.cluster.local:80", HostAuthority("web.default.svc.cluster.local", 80)),
        ("web1:80", HostAuthority("web1", 80)),
        ("256.0.0.1:80", HostAuthority("256.0.0.1", 80)),
        ("*.wild.com:443", HostAuthority("*.wild.com", 443)),
        ("u@host:80", HostAuthority("host", 80)),
        ("u:p@10.0.0.1:80", at("10.0.0.1:80")),
        ("host:0", HostAuthority("host", 0)),
        ("host:65535", HostAuthority("host", 65535)),
        ("", None),
        ("host", None),
        ("host:", None),
        (":80", None),
        ("host:65536", None),
        ("host:999999", None),
        ("host:000080", None),
        ("host:-1", None),
        ("host:+1", None),
        ("host:8o", None),
        ("host:٣", None),
        ("fd00::1:80", None),
        ("[fd00::1]", None),
        ("[fd00::1", None),
        ("[fd00::1%eth0]:80", None),
        ("[10.0.0.1]:80", None),
        ("[]:80", None),
        ("ho st:80", None),
        ("host/x:80", None),
        ("höst:80", None),
        ("host\n:80", None),
        ("u@:80", None),
    ],
)
def test_authority(text, parsed):
    assert parse_authority(text) == parsed


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"[\[\]0-9a-f:.@]{0,20}:[0-9]{1,6}", fullmatch=True))
def test_any_text_is_an_authority_or_none(text):
    parsed = parse_authority(text)
    if parsed is not None:
        assert 0 <= parsed.port <= 0xFFFF
        assert parse_authority(str(parsed)) == parsed


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        SocketAddress,
        st.ip_addresses().map(canonical),
        st.integers(0, 0xFFFF),
    )
)
def test_printed_addresses_are_read_again(address):
    assert parse_authority(str(address)) == address


@pytest.mark.parametrize(
    ("client", "host", "printed"),
    [
        ("10.88.0.3:60620", "web.default", 'for="10.88.0.3:60620";host=web.default'),
        ("10.88.0.3:60620", None, 'for="10.88.0.3:60620"'),
        ("10.88.0.3:60620", "", 'for="10.88.0.3:60620"'),
        ("[fd00::1]:5", "*.wild.com", 'for="[fd00::1]:5";host=*.wild.com'),
        ("10.88.0.3:1", "a;b", 'for="10.88.0.3:1"'),
        ("10.88.0.3:1", "a\r\nx: y", 'for="10.88.0.3:1"'),
    ],
)
def test_forwarded_is_written(client, host, printed):
    assert print_forwarded(at(client), host) == printed


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b'for="10.88.0.3:60620";host=web.default', "web.default"),
        ('for="10.88.0.3:60620"; host="web.default"', "web.default"),
        ("host=web", "web"),
        ("Host=web", None),
        ("host=", None),
        ('host=""', None),
        ("for=1.2.3.4", None),
        ("", None),
        (None, None),
        (b"host=w\xc3\xa9b", None),
        ("host=wéb", None),
        ("host", None),
    ],
)
def test_forwarded_host_is_read(value, host):
    assert parse_forwarded_host(value) == host


def test_baggage_is_written_in_order():
    assert print_baggage(CLIENT) == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,"
        "service.name=client,service.version=v1,cloud.region=r1,cloud.availability_zone=z1"
    )


def test_what_is_empty_or_would_break_the_header_is_left_out():
    assert print_baggage(Workload(uid="x")) == ""
    odd = Workload(
        uid="x", namespace="n\r\nx-evil: 1", workload_type="cronjob", workload_name="é", canonical_name="a,b"
    )
    assert print_baggage(odd) == ""
    assert (
        print_baggage(Workload(uid="x", workload_type="cronjob", workload_name="j")) == "k8s.cronjob.name=j"
    )


def test_baggage_is_read_back():
    assert parse_baggage([print_baggage(CLIENT)]) == Baggage(
        "Kubernetes", "default", "client", "client", "v1", "r1", "z1"
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], Baggage()),
        ([""], Baggage()),
        (["k8s.pod.name=p"], Baggage(workload_name="p")),
        (["k8s.job.name=j"], Baggage(workload_name="j")),
        (["k8s.statefulset.name=s,unknown=1"], Baggage()),
        (["service.name=a=b=c"], Baggage(service_name="a")),
        (["service.name=,cloud.region"], Baggage()),
        (["service.name=a,service.name="], Baggage()),
        (["service.name=a", "cloud.region=r"], Baggage(service_name="a", region="r")),
        ([" service.name = a , cloud.region=r"], Baggage(service_name="a", region="r")),
        ([b"service.name=a"], Baggage(service_name="a")),
        ([b"service.name=a", b"cloud.region=\xff"], Baggage()),
    ],
)
def test_baggage_is_read(lines, expected):
    assert parse_baggage(lines) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_bytes_are_baggage(lines):
    assert isinstance(parse_baggage(lines), Baggage)


def test_traceparent_is_generated_from_the_given_randomness():
    one, two = TraceParent.generate(Random(1)), TraceParent.generate(Random(1))
    assert one == two
    assert str(one) == f"00-{one.trace_id}-{one.parent_id}-00"
    assert len(str(one)) == 55
    assert parse_traceparent(str(one)) == one


def test_generated_ids_are_never_zero():
    class Zero(Random):
        def getrandbits(self, k: int, /) -> int:
            return 0

    assert parse_traceparent(str(TraceParent.generate(Zero()))) is not None


VALID = "00-546109396c1d9b14247b18ed586ab79f-9f63b335552e33e9-01"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        VALID[:-1],
        VALID + "0",
        VALID.replace("-", "_"),
        "0" * 55,
        VALID.replace("5461", "zzzz"),
        "ff" + VALID[2:],
        f"00-{'0' * 32}-9f63b335552e33e9-00",
        f"00-546109396c1d9b14247b18ed586ab79f-{'0' * 16}-00",
        VALID.replace("-", "", 1) + "-",
        "é" + VALID[1:],
        b"\xff" + VALID[1:].encode(),
    ],
)
def test_an_invalid_traceparent_is_as_good_as_absent(value):
    assert parse_traceparent(value) is None


def test_a_valid_traceparent_is_read():
    expected = TraceParent("546109396c1d9b14247b18ed586ab79f", "9f63b335552e33e9", "01")
    assert parse_traceparent(VALID) == expected
    assert parse_traceparent(VALID.upper().encode()) == expected


@pytest.mark.parametrize(
    ("header", "ours", "foreign"),
    [
        (None, "net", False),
        ("net", "net", False),
        (b"NET", "net", False),
        ("", "", False),
        ("", "net", True),
        ("other", "net", True),
        (b"\xff", "net", True),
    ],
)
def test_a_foreign_network(header, ours, foreign):
    assert is_foreign_network(header, ours) is foreign


def test_addresses_are_of_the_standard_library():
    four, six = parse_authority("1.2.3.4:5"), parse_authority("[::1]:5")
    assert isinstance(four, SocketAddress)
    assert isinstance(six, SocketAddress)
    assert isinstance(four.ip, IPv4Address)
    assert isinstance(six.ip, IPv6Address)
