from __future__ import annotations

import resource

import pytest

from ztunnel.sockets.descriptor_limit import DescriptorBudget, DescriptorLimit, raise_descriptor_limit


@pytest.fixture
def limits():
    """Set limits during a test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_to_the_hard_one(limits):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits(200)
    assert raise_descriptor_limit() == DescriptorLimit(200, hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard


def test_the_line_for_the_log_is_the_known_one():
    assert str(DescriptorLimit(1024, 65536)) == "set file descriptor limits from 1024 to 65536"


@pytest.mark.parametrize(("soft", "reserve"), [(100, 16), (1024, 64), (20000, 256)])
def test_a_share_is_kept_from_traffic(limits, soft, reserve):
    limits(soft)
    budget = DescriptorBudget.current()
    assert budget == DescriptorBudget(soft, reserve)
    line = soft - reserve
    assert not budget.spent(line - 1)
    assert budget.spent(line)


@pytest.mark.parametrize(("soft", "reserve"), [(100, 16), (1024, 64), (20000, 256)])
def test_accepting_stops_while_descriptors_for_dials_are_left(soft, reserve):
    budget = DescriptorBudget(soft, reserve)
    assert not budget.full(budget.accept_line - 1)
    assert budget.full(budget.accept_line)
    assert not any(budget.spent(budget.accept_line + dial) for dial in range(8))


def test_a_limit_smaller_than_the_reserve_leaves_nothing_for_traffic():
    assert DescriptorBudget(limit=10, reserve=16).accept_line == 0
    assert DescriptorBudget(limit=10, reserve=16).spent(3)
    assert DescriptorBudget(limit=10, reserve=16).full(0)
