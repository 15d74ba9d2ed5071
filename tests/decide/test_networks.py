"""Membership in many networks, against the standard library's own answer."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.decide import networks as module
from ztunnel.decide.networks import contains
from ztunnel.model.address import IPAddress, IPNetwork


def network_around(ip: IPAddress, host_bits: int) -> IPNetwork:
    return ip_network((ip, ip.max_prefixlen - min(host_bits, ip.max_prefixlen)), strict=False)


networks = st.builds(network_around, st.ip_addresses(), st.integers(0, 128))


@settings(max_examples=100, deadline=None)
@given(st.lists(networks, max_size=6).map(tuple), st.ip_addresses(), st.data())
def test_the_answer_is_that_of_the_standard_library(some, anywhere, data):
    inside = [some[0][0], some[0][-1]] if some else []
    ip = data.draw(st.sampled_from([anywhere, *inside]))
    expected = any(ip in network for network in some)
    assert contains(some, ip) is expected
    # And again, now that it is remembered.
    assert contains(some, ip) is expected


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
def test_everything_contains_its_own_version_only(everything):
    some = (ip_network(everything),)
    assert contains(some, ip_address("1.2.3.4")) is (some[0].version == 4)
    assert contains(some, ip_address("fd00::1")) is (some[0].version == 6)


def test_what_is_remembered_is_bounded():
    lists = [(ip_network(f"10.{number >> 8}.{number & 0xFF}.0/24"),) for number in range(2 * module._MOST)]
    for number, some in enumerate(lists):
        assert contains(some, ip_address(f"10.{number >> 8}.{number & 0xFF}.1"))
        assert not contains(some, ip_address("11.0.0.1"))
        assert len(module._remembered) <= module._MOST
