"""What every test has: see the modules that it comes from."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator

import hypothesis
import pytest
import trio.testing

from tests import needs
from tests.clock import make_patient_clock
from ztunnel.observe.logging import _hub
from ztunnel.system.memory import _Survivors

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile(
    "ztunnel", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("deep", hypothesis.settings.get_profile("ztunnel"), max_examples=10_000)
hypothesis.settings.load_profile("ztunnel")  # --hypothesis-profile=deep loads the other one


# The same variable as ztunnel's own: all tests run with TLS records in Python, as where nothing was built.
if os.environ.get("ZTUNNEL_TLS_ACCELERATOR") == "false":
    sys.modules["ztunnel.tls._accelerator"] = None  # type: ignore[assignment]  # an import of it fails


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """The log levels that one test sets up are not the next one's."""
    before, at_start = _hub.filter, _hub.startup_filter
    yield
    _hub.startup_filter = at_start
    if _hub.filter is not before:
        _hub.set_filter(before)


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """What a test hides from the garbage collector is shown to it again: a census asks the collector."""
    thresholds = gc.get_threshold()
    yield
    gc.callbacks[:] = [one for one in gc.callbacks if not isinstance(one, _Survivors)]
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """In place of pytest-trio's, which runs ahead of threads, files and sockets."""
    return make_patient_clock()


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs.check_programs(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needs.turn_into_skip(item, call, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    needs.write_summary(reasons)
    seed = getattr(terminalreporter.config.option, "randomly_seed", None)
    if seed is not None and {"failed", "error"} & set(terminalreporter.stats):
        terminalreporter.write_line(f"in the order of --randomly-seed={seed}")
    if text := needs.sum_up(reasons):
        terminalreporter.write_sep("=", "what this machine lacks")
        terminalreporter.write(text)
