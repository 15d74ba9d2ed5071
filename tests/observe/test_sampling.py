"""Which access log lines are written."""

from __future__ import annotations

import pytest

from ztunnel.observe.sampling import Sampling, SamplingError, make_rule


def taken(sampling: Sampling, count: int, outcome: str = "success", direction: str = "inbound") -> int:
    return sum(sampling.takes(outcome, direction, "ns/pod") for _ in range(count))


def test_without_rules_every_line_is_written():
    assert taken(Sampling(), 100) == 100


@pytest.mark.parametrize(("share", "lines"), [("0", 0), ("0.01", 10), ("0.25", 250), ("1", 1000)])
def test_a_share_is_exact_and_its_first_line_is_written(share, lines):
    sampling = Sampling().with_rule(make_rule(share, "success", "", ""))
    assert sampling.takes("success", "inbound", "ns/pod") == (lines > 0)
    assert taken(sampling, 999) == max(lines - 1, 0)
    assert taken(sampling, 10, "failure") == 10


def test_failures_are_silenced_only_by_name():
    sampling = Sampling().with_rule(make_rule("0", "", "", ""))
    assert (taken(sampling, 10), taken(sampling, 10, "failure")) == (0, 10)
    assert taken(sampling.with_rule(make_rule("0", "failure", "", "")), 10, "failure") == 0


def test_the_most_exact_rule_decides():
    sampling = (
        Sampling()
        .with_rule(make_rule("0", "success", "", ""))
        .with_rule(make_rule("1", "success", "outbound", ""))
        .with_rule(make_rule("0.5", "", "", "ns/pod"))
    )
    assert sampling.takes("success", "outbound", "ns/other")
    assert not sampling.takes("success", "inbound", "ns/other")
    assert taken(sampling, 100) == 50
    assert taken(sampling.with_rule(make_rule("0", "", "", "ns/pod")), 100) == 0


def test_the_text_of_rules_is_read_back():
    sampling = Sampling().with_rule(make_rule("0.125", "success", "inbound", "ns/pod"))
    sampling = sampling.with_rule(make_rule("0", "", "outbound", ""))
    assert Sampling.parse(str(sampling)).rules == sampling.rules
    assert str(Sampling()) == ""


@pytest.mark.parametrize(
    ("share", "outcome", "direction", "workload"),
    [
        ("2", "", "", ""),
        ("x", "", "", ""),
        ("nan", "", "", ""),
        ("1", "good", "", ""),
        ("1", "", "up", ""),
        ("1", "", "", "pod"),
        ("1", "", "", "ns/p,x"),
    ],
)
def test_what_means_nothing_is_refused(share, outcome, direction, workload):
    with pytest.raises(SamplingError):
        make_rule(share, outcome, direction, workload)
