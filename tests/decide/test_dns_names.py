"""What DNS queries are answered with (docs/protocol/state-and-xds.md#dns-answers)."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_mesh import FakeMesh
from ztunnel.decide.dns_names import (
    TYPE_A,
    TYPE_AAAA,
    DnsAnswer,
    DnsAnswerKind,
    aliases,
    answer,
    pod_search_domains,
)
from ztunnel.model.address import NetworkAddress
from ztunnel.model.service import IpFamilies, Visibility

FORWARD, NO_RECORDS, RECORDS = DnsAnswerKind.FORWARD, DnsAnswerKind.NO_RECORDS, DnsAnswerKind.RECORDS
DOMAIN = "cluster.local"


def ask(
    mesh: FakeMesh,
    name: str,
    qtype: int = TYPE_A,
    *,
    network: str = "",
    ipv6_enabled: bool = True,
    preferred_namespace: str | None = None,
    search_domains: tuple[str, ...] | None = None,
) -> DnsAnswer:
    """A question from a pod of namespace ns1."""
    client = mesh.add_workload("client", "10.0.0.1", namespace="ns1", network=network)
    return answer(
        mesh,
        client,
        name,
        qtype,
        search_domains=pod_search_domains("ns1", DOMAIN) if search_domains is None else search_domains,
        cluster_domain=DOMAIN,
        ipv6_enabled=ipv6_enabled,
        preferred_namespace=preferred_namespace,
        random=Random(1),
    )


def told(found: DnsAnswer) -> tuple[str | None, str, set[str]]:
    """The CNAME, the owner and the addresses of an answer with records."""
    assert found.kind is RECORDS, found
    assert found.result == "success"
    return found.cname, found.owner, {str(ip) for ip in found.addresses}


@pytest.fixture
def mesh() -> FakeMesh:
    """Services of each kind: by name, with a wildcard, headless, of several namespaces."""
    mesh = FakeMesh()
    mesh.add_service("productpage", "10.96.0.1 fd96::1", namespace="ns1")
    mesh.add_service("a", "10.96.0.2", namespace="ns1")
    mesh.add_service("details", "10.96.0.3", namespace="ns2", hostname="details.ns2.svc.cluster.remote")
    mesh.add_service("reviews", "10.96.0.4", namespace="ns2")
    mesh.add_service("google", "1.1.1.1", namespace="ns1", hostname="www.google.com")
    mesh.add_service("wild", "2.2.2.2", namespace="ns1", hostname="*.wild.com")
    mesh.add_service("far", "10.96.0.5", namespace="ns1", network="far")
    mesh.add_service("c", cidrs="10.97.0.0/16", namespace="ns1")
    return mesh


@pytest.mark.parametrize(
    ("name", "cname", "addresses"),
    [
        ("productpage", None, {"10.96.0.1"}),
        ("productpage.ns1", None, {"10.96.0.1"}),
        ("productpage.ns1.svc", None, {"10.96.0.1"}),
        ("productpage.ns1.svc.cluster.local", None, {"10.96.0.1"}),
        ("productpage.ns1.svc.cluster.local.", None, {"10.96.0.1"}),
        ("ProductPage.NS1.svc.cluster.local.", None, {"10.96.0.1"}),
        ("reviews.ns2", None, {"10.96.0.4"}),
        ("productpage.ns1.ns1.svc.cluster.local", "productpage.ns1.", {"10.96.0.1"}),
        (
            "productpage.ns1.svc.cluster.local.svc.cluster.local",
            "productpage.ns1.svc.cluster.local.",
            {"10.96.0.1"},
        ),
        ("www.google.com", None, {"1.1.1.1"}),
        ("www.google.com.ns1.svc.cluster.local", "www.google.com.", {"1.1.1.1"}),
        ("www.google.com.cluster.local", "www.google.com.", {"1.1.1.1"}),
        ("a.svc.cluster.local", "a.", {"10.96.0.2"}),
        ("x.wild.com", None, {"2.2.2.2"}),
        ("y.x.wild.com", None, {"2.2.2.2"}),
        ("x.wild.com.ns1.svc.cluster.local", None, {"2.2.2.2"}),
    ],
)
def test_names_of_ours(mesh, name, cname, addresses):
    requested = name.lower().removesuffix(".") + "."
    found = ask(mesh, name)
    assert found.requested == requested
    assert told(found) == (cname, cname or requested, addresses)


@pytest.mark.parametrize(
    "name",
    [
        "reviews",
        "details.ns2",
        "wild.com",
        "google.com",
        "foo.ns1.svc.cluster.local",
        "pod-0.productpage.ns1.svc.cluster.local",
        "client",
        "cluster.local",
        "svc.cluster.local",
        ".",
        "",
        "product\\.page",
        "productpage.ns1.svc.cluster.local.x",
        "1.0.96.10.in-addr.arpa",
    ],
)
def test_names_of_others_are_forwarded(mesh, name):
    found = ask(mesh, name)
    assert (found.kind, found.service, found.addresses, found.result) == (FORWARD, None, (), "")


@pytest.mark.parametrize("qtype", [2, 5, 6, 12, 15, 16, 33, 64, 65, 255])
def test_other_types_are_forwarded(mesh, qtype):
    assert ask(mesh, "productpage", qtype).kind is FORWARD


def test_each_family_has_its_own_answer(mesh):
    assert told(ask(mesh, "productpage", TYPE_AAAA)) == (None, "productpage.", {"fd96::1"})


@pytest.mark.parametrize("name", ["a", "www.google.com.ns1.svc.cluster.local"])
def test_a_family_without_addresses_is_empty_without_cname(mesh, name):
    found = ask(mesh, name, TYPE_AAAA)
    assert (found.kind, found.result, found.cname) == (NO_RECORDS, "no records", None)


def test_ipv6_can_be_off(mesh):
    found = ask(mesh, "productpage", TYPE_AAAA, ipv6_enabled=False)
    assert (found.kind, found.result) == (NO_RECORDS, "service does not support this record type")
    assert ask(mesh, "productpage", ipv6_enabled=False).kind is RECORDS


@pytest.mark.parametrize(
    ("families", "v4", "v6"),
    [
        (None, RECORDS, RECORDS),
        (IpFamilies.DUAL, RECORDS, RECORDS),
        (IpFamilies.IPV4, RECORDS, NO_RECORDS),
        (IpFamilies.IPV6, NO_RECORDS, RECORDS),
    ],
)
def test_the_services_families_decide(mesh, families, v4, v6):
    mesh.change(mesh.services_by_hostname("productpage.ns1.svc.cluster.local")[0], ip_families=families)
    assert (ask(mesh, "productpage").kind, ask(mesh, "productpage", TYPE_AAAA).kind) == (v4, v6)


def test_addresses_of_another_network_are_not_given(mesh):
    assert ask(mesh, "far").kind is NO_RECORDS
    assert told(ask(mesh, "far", network="far"))[2] == {"10.96.0.5"}
    assert ask(mesh, "a", network="far").kind is NO_RECORDS


def test_a_service_with_a_range_only_has_no_addresses_to_give(mesh):
    range_only = mesh.services_by_hostname("c.ns1.svc.cluster.local")[0]
    mesh.add_workload("c-1", "10.0.0.9", namespace="ns1", behind=range_only)
    found = ask(mesh, "c")
    assert (found.kind, found.result, found.service) == (NO_RECORDS, "no records", range_only)


def test_a_headless_service_has_one_address_an_endpoint_on_whatever_network():
    mesh = FakeMesh()
    headless = mesh.add_service("db", namespace="ns1")
    assert ask(mesh, "db").kind is NO_RECORDS
    mesh.add_workload("db-1", "10.0.0.2 10.0.0.3 fd00::2", namespace="ns1", behind=headless)
    mesh.add_workload("db-2", "10.0.0.4", namespace="ns1", network="far", behind=headless)
    mesh.add_workload("db-3", "", namespace="ns1", hostname="h", behind=headless)
    gone = mesh.add_workload("db-4", "10.0.0.5", namespace="ns1", behind=headless)
    mesh.add_workload("db-5", "10.0.0.4", namespace="ns1", behind=headless)
    del mesh.workloads[gone.uid]
    assert told(ask(mesh, "db"))[2] == {"10.0.0.2", "10.0.0.4"}
    assert len(ask(mesh, "db").addresses) == 2
    assert told(ask(mesh, "db", TYPE_AAAA))[2] == {"fd00::2"}


def test_a_headless_service_outside_the_cluster_domain_is_forwarded():
    mesh = FakeMesh()
    external = mesh.add_service("db", namespace="ns1", hostname="db.example.com")
    mesh.add_workload("db-1", "10.0.0.2", namespace="ns1", behind=external)
    assert ask(mesh, "db.example.com").kind is FORWARD


def test_a_service_we_cannot_see_is_forwarded(mesh):
    mesh.add_service("secret", "10.96.0.9", namespace="ns2", visibility=Visibility.NAMESPACE)
    mesh.add_service("ours", "10.96.0.9", namespace="ns1", visibility=Visibility.NAMESPACE)
    assert ask(mesh, "secret.ns2").kind is FORWARD
    assert ask(mesh, "ours").kind is RECORDS


def test_which_of_several_services_with_one_hostname():
    mesh = FakeMesh()
    host = "web.example.com"
    mesh.add_service("web", "1.1.1.1", namespace="x", hostname=host)
    mesh.add_service("web", "2.2.2.2", namespace="y", hostname=host)
    assert told(ask(mesh, host))[2] == {"1.1.1.1"}
    assert told(ask(mesh, host, preferred_namespace="y"))[2] == {"2.2.2.2"}
    mesh.add_service("web", "3.3.3.3", namespace="z", hostname=host, canonical=True)
    assert told(ask(mesh, host, preferred_namespace="y"))[2] == {"3.3.3.3"}
    mesh.add_service("web", "4.4.4.4", namespace="ns1", hostname=host)
    assert told(ask(mesh, host, preferred_namespace="y"))[2] == {"4.4.4.4"}


def test_a_hostname_without_address_does_not_hide_one_with():
    mesh = FakeMesh()
    mesh.add_service("web", namespace="ns1", hostname="web.example.com")
    mesh.add_service("web", "2.2.2.2", namespace="y", hostname="web.example.com")
    assert told(ask(mesh, "web.example.com"))[2] == {"2.2.2.2"}


def test_a_wildcard_of_an_early_spelling_beats_an_exact_match_of_a_later_one():
    mesh = FakeMesh()
    mesh.add_service("exact", "1.1.1.1", namespace="ns1", hostname="www.google.com")
    mesh.add_service("wild", "2.2.2.2", namespace="ns1", hostname="*.svc.cluster.local")
    assert told(ask(mesh, "www.google.com.ns1.svc.cluster.local")) == (
        None,
        "www.google.com.ns1.svc.cluster.local.",
        {"2.2.2.2"},
    )


def test_the_nearest_wildcard_wins_and_a_bare_star_is_nothing():
    mesh = FakeMesh()
    mesh.add_service("all", "1.1.1.1", namespace="ns1", hostname="*")
    assert ask(mesh, "a.b").kind is FORWARD
    mesh.add_service("com", "2.2.2.2", namespace="ns1", hostname="*.com")
    mesh.add_service("wild", "3.3.3.3", namespace="ns1", hostname="*.wild.com")
    assert told(ask(mesh, "x.wild.com"))[2] == {"3.3.3.3"}
    assert told(ask(mesh, "x.tame.com"))[2] == {"2.2.2.2"}


def test_hostnames_with_capitals_never_match():
    mesh = FakeMesh()
    mesh.add_service("web", "1.1.1.1", namespace="ns1", hostname="Web.example.com")
    assert ask(mesh, "Web.example.com").kind is FORWARD


def test_search_domains_of_a_resolv_conf(mesh):
    found = ask(mesh, "www.google.com.corp.example", search_domains=("Corp.Example.", "", "."))
    assert told(found) == ("www.google.com.", "www.google.com.", {"1.1.1.1"})
    assert ask(mesh, "corp.example", search_domains=("corp.example",)).kind is FORWARD
    assert ask(mesh, "xcorp.example", search_domains=("corp.example",)).kind is FORWARD


def test_addresses_come_in_random_order():
    mesh = FakeMesh()
    web = mesh.add_service("web", namespace="ns1")
    vips = tuple(NetworkAddress("", ip) for ip in _addresses(20))
    mesh.change(web, vips=vips)
    first = ask(mesh, "web").addresses
    assert set(first) == {vip.ip for vip in vips}
    assert first != tuple(vip.ip for vip in vips)


def _addresses(count: int):
    base = FakeMesh().add_workload("x", "10.96.1.0").addresses[0]
    return [base + number for number in range(count)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", ["a", "a.ns1.svc.cluster.local"]),
        ("a.b", ["a.b", "a.b.svc.cluster.local", "a.b.ns1.svc.cluster.local"]),
        ("a.b.c", ["a.b.c", "a.b.c.svc.cluster.local"]),
        ("a.b.svc", ["a.b.svc", "a.b.svc.cluster.local", "a.b.svc.svc.cluster.local"]),
        ("a.b.c.d", ["a.b.c.d"]),
        ("a.b.c.svc", ["a.b.c.svc", "a.b.c.svc.cluster.local"]),
        ("a.b.c.d.svc", ["a.b.c.d.svc"]),
        (
            "a.ns1.svc.cluster.local",
            [
                "a.ns1.svc.cluster.local",
                "a",
                "a.ns1",
                "a.ns1.svc.cluster.local",
                "a.ns1.ns1.svc.cluster.local",
                "a.ns1.svc",
                "a.ns1.svc.svc.cluster.local",
            ],
        ),
    ],
)
def test_the_spellings_of_a_name(name, expected):
    spelled = [alias.name for alias in aliases(name, "ns1", DOMAIN, pod_search_domains("ns1", DOMAIN))]
    assert spelled == list(dict.fromkeys(expected))


labels = st.sampled_from(
    ["a", "productpage", "ns1", "svc", "cluster", "local", "www", "google", "com", "wild", "*"]
)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.lists(labels, min_size=1, max_size=9).map(".".join), st.text(max_size=20)),
    st.sampled_from([TYPE_A, TYPE_AAAA]),
)
def test_any_name_has_an_answer_that_is_well_formed(name, qtype):
    mesh = FakeMesh()
    mesh.add_service("productpage", "10.96.0.1 fd96::1", namespace="ns1")
    mesh.add_service("a", namespace="ns1")
    mesh.add_service("google", "1.1.1.1", namespace="ns1", hostname="www.google.com")
    mesh.add_service("wild", "2.2.2.2", namespace="ns1", hostname="*.wild.com")
    found = ask(mesh, name, qtype)
    assert found.requested == found.requested.lower()
    assert found.requested.endswith(".")
    if found.kind is RECORDS:
        assert found.addresses
        assert all(ip.version == (4 if qtype == TYPE_A else 6) for ip in found.addresses)
        assert found.owner == (found.cname or found.requested)
        if found.cname is not None:
            assert found.requested.endswith("." + "cluster.local.")
            assert found.requested.startswith(found.cname.removesuffix(".") + ".")
    else:
        assert (found.addresses, found.cname) == ((), None)
    assert (found.service is None) is (found.kind is FORWARD)
