from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.config.parse_values import (
    authority,
    parse_address,
    parse_bool,
    parse_cpu_quantity,
    parse_duration,
    parse_header,
    parse_integer,
    parse_worker_threads,
)


@pytest.mark.parametrize("text", ["TRUE", "1", "", " true", "yes", "False"])
def test_a_bool_is_exactly_true_or_false(text):
    assert parse_bool("true") is True
    assert parse_bool("false") is False
    with pytest.raises(ValueError, match="provided string was not `true` or `false`"):
        parse_bool(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1h30m", 5400),
        ("1h 5s", 3605),
        ("1H5S", 3605),
        ("5m", 300),
        ("250ms", 0.25),
        ("1mon", 30 * 86400),
        ("1y", 365 * 86400),
        ("2w1d", 15 * 86400),
        ("1us", 1e-6),
        ("1ns", 1e-9),
        ("24h", 86400),
    ],
)
def test_durations_are_sums_of_whole_numbers_with_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "1.5h", "-1s", "h", "5 5", "1h5", "5x", "1000y", "1e3", "٣s", "1s,"]
)
def test_other_durations_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 90s, 5m or 1h30m"):
        parse_duration(text)


@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.sampled_from(["h", "m", "s", "ms"])), min_size=1, max_size=4
    )
)
def test_a_sum_of_durations_is_the_sum_of_its_terms(terms):
    text = " ".join(f"{n}{unit}" for n, unit in terms)
    assert parse_duration(text) == pytest.approx(sum(parse_duration(f"{n}{unit}") for n, unit in terms))


@given(st.text(max_size=12))
def test_a_duration_is_a_number_or_a_value_error(text):
    try:
        assert parse_duration(text) >= 0
    except ValueError:
        pass


@pytest.mark.parametrize("text", ["", "-1", "70000", "1.0", "0x10", "\uff11", "1_0", "9" * 30])
def test_integers_are_decimal_and_bounded(text):
    assert parse_integer("65535", 0, 65535) == 65535
    with pytest.raises(ValueError, match="whole number from 0 to 65535"):
        parse_integer(text, 0, 65535)


@pytest.mark.parametrize(
    ("text", "address", "dialled"),
    [
        ("istiod:15012", "https://istiod:15012", "istiod:15012"),
        (
            "https://istiod.istio-system.svc:15012/x",
            "https://istiod.istio-system.svc:15012",
            "istiod.istio-system.svc:15012",
        ),
        ("https://istiod", "https://istiod:443", "istiod:443"),
        ("[::1]:15012", "https://[::1]:15012", "[::1]:15012"),
        ("http://10.0.0.1:15010", "https://10.0.0.1:15010", "10.0.0.1:15010"),
    ],
)
def test_an_address_gets_a_scheme_and_a_port(text, address, dialled):
    assert parse_address(text) == address
    assert authority(address) == dialled
    assert parse_address(address) == address


@pytest.mark.parametrize(
    "text", ["https://", "unix:///x", "a:b:c", "a b:1", "https://u@h:1", "h:0", "h:99999", "[::1"]
)
def test_other_addresses_are_refused(text):
    with pytest.raises(ValueError, match="expected an address such as"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "cpus"), [("2", 2), ("1.5", 2), ("500m", 1), ("1001m", 2), ("2.0", 2), ("0.1", 1)]
)
def test_cpu_quantities_are_rounded_up(text, cpus):
    assert parse_cpu_quantity(text) == cpus


@pytest.mark.parametrize("text", ["", "0", "0m", "-1", "1.5m", "1k", "m", "1.", ".5"])
def test_other_cpu_quantities_are_refused(text):
    with pytest.raises(ValueError, match="500m"):
        parse_cpu_quantity(text)


@pytest.mark.parametrize(
    ("text", "workers"), [("3", 3), ("0", 10), ("50%", 5), ("1%", 1), ("12.5%", 2), ("100%", 10), ("25%", 3)]
)
def test_worker_threads_are_a_number_or_a_share_of_the_cpus(text, workers):
    assert parse_worker_threads(text, 10) == workers


@pytest.mark.parametrize("text", ["", "%", "0%", "101%", "-1", "1.5", "x%"])
def test_other_worker_threads_are_refused(text):
    with pytest.raises(ValueError, match="percentage above 0"):
        parse_worker_threads(text, 10)


def test_headers_are_lower_cased_and_checked():
    assert parse_header("X_FOO", "bar baz") == ("x_foo", "bar baz")
    for key in ["", "a b", "x-bin", "grpc-timeout", "ä"]:
        with pytest.raises(ValueError, match="metadata key"):
            parse_header(key, "v")
    with pytest.raises(ValueError, match="not shown"):
        parse_header("k", "secret\n")
