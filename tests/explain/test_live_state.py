"""The last word on an explanation: what is live, of one data plane or several."""

from __future__ import annotations

from typing import Any

import pytest

from ztunnel.explain.explanation import Explanation, Outcome
from ztunnel.explain.live_state import judge, merged_live


def explained(outcome: Outcome = Outcome.ALLOWED, **live: Any) -> Explanation:
    made = Explanation("ns/a", "web", outcome, "It goes.", live=live)
    judge(made)
    return made


def connection(age: float, **fields: Any) -> dict[str, Any]:
    return {"id": f"c-{age:g}", "state": "closed", "ageSeconds": age, **fields}


FAILED = {"error": "http status: 503", "code": "ZT-HBN-010", "why": "Nothing listens."}


def test_without_anything_live_the_mesh_has_the_word():
    assert explained().summary == "It goes."


def test_the_last_connection_failed():
    said = explained(connections=[connection(9), connection(3, **FAILED)])
    assert (said.outcome, said.code) == (Outcome.FAILING, "ZT-HBN-010")
    assert said.summary == ("It goes. But the last one, 3.0s ago, failed: http status: 503. Nothing listens.")


@pytest.mark.parametrize(
    "connections",
    [
        [connection(9, **FAILED), connection(3)],
        [connection(9, **FAILED), connection(3, state="open", waitsFor="nobody")],
        [connection(3, error="drain", code="ZT-DRN-001")],
    ],
)
def test_what_failed_before_a_good_one_and_what_a_drain_cut_is_past(connections):
    assert explained(connections=connections).outcome is Outcome.ALLOWED


def test_a_connection_that_does_not_move():
    open_one = connection(60, state="open", waitsFor="peer's window", idleSeconds=40)
    said = explained(connections=[open_one])
    assert said.outcome is Outcome.ALLOWED
    assert "But connection c-60 does not move: for 40s it has waited for peer's window." in said.summary
    assert said.summary.endswith("The application at the other end does not read what it was sent.")
    waiting = connection(2, state="open", waitsFor="a certificate")
    assert "for 2.0s it has waited for a certificate." in explained(connections=[waiting]).summary


def test_without_a_certificate_nothing_goes():
    said = explained(certificateTrouble="there is none.", connections=[connection(3, **FAILED)])
    assert (said.outcome, said.code, said.summary) == (
        Outcome.FAILING,
        "ZT-CA-010",
        "It goes. But there is none.",
    )


def test_a_refusal_stays_one():
    assert explained(Outcome.REFUSED, connections=[connection(3, **FAILED)]).summary == "It goes."


def test_several_data_planes_know_the_latest_together():
    live = merged_live(
        [
            {"sentences": ["a"], "noTunnel": "none stands", "connections": [connection(n) for n in (4, 8)]},
            {"sentences": ["a", "b"], "tunnels": [{"streams": 1}], "connections": [connection(1)]},
            {"connections": [connection(n) for n in (2, 3, 5, 6)]},
        ]
    )
    assert live["sentences"] == ["a", "b"]
    assert live["tunnels"] == [{"streams": 1}]
    assert "noTunnel" not in live
    assert [one["ageSeconds"] for one in live["connections"]] == [1, 2, 3, 4, 5]
    assert merged_live([{"noTunnel": "none stands", "tunnels": []}])["noTunnel"] == "none stands"
