from __future__ import annotations

import pytest

from ztunnel.observe.durations import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ns"),
        (0.01, "10ms"),
        (0.02, "20ms"),
        (0.64, "640ms"),
        (1.28, "1.28s"),
        (10.24, "10.24s"),
        (15.0, "15s"),
        (100, "100s"),
        (0.0005, "500µs"),
        (3e-9, "3ns"),
        (1, "1s"),
    ],
)
def test_durations_print_as_log_consumers_know_them(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [(1.28, 1, "1.3s"), (2.04, 1, "2s"), (0.0123, 1, "12.3ms"), (100.2, 0, "100s"), (5e-9, 1, "5ns")],
)
def test_digits_are_left_out_when_fewer_are_wanted(seconds, decimals, text):
    assert duration_text(seconds, decimals) == text
