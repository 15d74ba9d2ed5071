"""The texts that log consumers match on."""

from __future__ import annotations

import h2.errors
import pytest

from ztunnel.hbone import CannotOpenStreamError, ErrorCode, HboneSettings, code_text, error_text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "not a result of an error"),
        (1, "unspecific protocol error detected"),
        (2, "unexpected internal error encountered"),
        (3, "flow-control protocol violated"),
        (5, "received frame when stream half-closed"),
        (7, "refused stream before processing any application logic"),
        (8, "stream no longer needed"),
        (11, "detected excessive load generating behavior"),
        (14, "unknown reason"),
        (0xFFFFFFFF, "unknown reason"),
    ],
)
def test_each_code_has_its_text(code, text):
    assert code_text(code) == text
    assert error_text("stream", "received", code) == f"stream error received: {text}"
    assert error_text("connection", "sent by user", code) == f"connection error sent by user: {text}"


def test_the_codes_are_those_of_http2():
    assert {c.name: int(c) for c in ErrorCode} == {c.name: int(c) for c in h2.errors.ErrorCodes}
    assert all(code_text(c) != "unknown reason" for c in ErrorCode)


def test_an_error_says_why_no_stream_can_be_opened():
    error = CannotOpenStreamError("it is closed")
    assert (error.code, str(error)) == ("ZT-HBN-001", "No stream can be opened on this tunnel: it is closed.")


@pytest.mark.parametrize(
    "wrong",
    [
        {"stream_window": -1},
        {"stream_window": 1 << 31},
        {"connection_window": 65_534},
        {"connection_window": 1 << 31},
        {"frame_size": 16_383},
        {"frame_size": 1 << 24},
    ],
)
def test_settings_that_http2_forbids_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HboneSettings(**wrong)
