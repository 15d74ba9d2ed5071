"""Durations in the form that log queries know: ``1.28s``, ``640ms``, ``15s``, ``0ns``."""

from __future__ import annotations


def duration_text(seconds: float, decimals: int | None = None) -> str:
    """Returns a duration in s, ms, µs or ns: in the largest unit in which it is at least one.

    decimals: the most digits after the point; None for all down to the nanosecond. Zeros at the end are
        removed.
    """
    for unit, size, nanoseconds in (("s", 1.0, 9), ("ms", 1e-3, 6), ("µs", 1e-6, 3)):
        if seconds >= size:
            digits = f"{seconds / size:.{nanoseconds if decimals is None else decimals}f}"
            return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + unit
    return f"{seconds * 1e9:.0f}ns"
