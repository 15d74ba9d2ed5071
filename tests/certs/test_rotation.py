"""The secret manager's judgement: order, limits, times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.certs.certificate_errors import CaChainError, CaError
from ztunnel.certs.rotation import Priority, RotationPhase, Rotations, backoff
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity


def who(number: int) -> Identity:
    return Identity("cluster.local", "default", f"sa-{number:03}")


def certificate(identity: Identity, not_before: float, not_after: float) -> Certificate:
    return Certificate(identity, b"", (), (), not_before, not_after)


ERROR = CaError("the CA is away")
LONGEST_BACKOFF = DEFAULTS.control.ca_longest_backoff


def test_eight_fetches_at_a_time_and_the_next_when_one_ends():
    rotations = Rotations()
    for number in range(20):
        assert rotations.want(who(number), Priority.WARMUP, 0)
    started = rotations.start(0)
    assert started == [who(number) for number in range(8)]
    assert rotations.start(0) == []
    rotations.failed(who(3), ERROR, 1, 0.5)
    assert rotations.start(1) == [who(8)]


def test_a_connection_comes_before_prefetch_before_renewal():
    rotations = Rotations(ControlBounds(ca_calls=1))
    rotations.want(who(9), Priority.WARMUP, 0)
    assert rotations.start(0) == [who(9)]
    rotations.want(who(0), Priority.BACKGROUND, 1)
    rotations.want(who(1), Priority.WARMUP, 2)
    rotations.want(who(2), Priority.WARMUP, 2.5)
    rotations.want(who(3), Priority.REAL_TIME, 3)
    order = []
    busy = who(9)
    for _ in range(4):
        rotations.issued(busy, certificate(busy, 0, 1e6), 4)
        (busy,) = rotations.start(4)
        order.append(busy)
    assert order == [who(3), who(1), who(2), who(0)]


def test_a_connection_moves_a_queued_first_fetch_up_but_nothing_else():
    rotations = Rotations(ControlBounds(ca_calls=1))
    rotations.want(who(0), Priority.WARMUP, 0)
    rotations.start(0)
    rotations.want(who(1), Priority.WARMUP, 0)
    rotations.want(who(2), Priority.WARMUP, 0)
    assert not rotations.want(who(2), Priority.REAL_TIME, 1)
    rotations.failed(who(0), ERROR, 1, 0.5)
    # who(0) is unavailable now, and its next attempt is nearer than what demand could bring.
    assert not rotations.want(who(0), Priority.REAL_TIME, 1)
    assert rotations.start(1) == [who(2)]
    rotations.issued(who(2), certificate(who(2), 0, 100), 1)
    assert rotations.start(1.5) == [who(1)]
    rotations.issued(who(1), certificate(who(1), 0, 100), 2)
    assert rotations.due(who(0), 1.5) == pytest.approx(0.5)
    assert rotations.start(2) == [who(0)]


def test_a_connection_does_not_wait_out_the_backoff_of_a_long_outage():
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 0)
    now = 0.0
    for _ in range(9):
        now += rotations.due(who(0), now)
        rotations.start(now)
        rotations.failed(who(0), ERROR, now, 0.5)
    assert rotations.due(who(0), now) == LONGEST_BACKOFF
    # Only a connection is in a hurry.
    rotations.want(who(0), Priority.WARMUP, now + 1)
    assert rotations.due(who(0), now + 1) == LONGEST_BACKOFF - 1
    rotations.want(who(0), Priority.REAL_TIME, now + 1)
    assert rotations.due(who(0), now + 1) == 1
    # Many connections bring one attempt in two seconds, and the backoff goes on where it was.
    now += 2
    assert rotations.start(now) == [who(0)]
    rotations.failed(who(0), ERROR, now, 0.5)
    assert rotations.due(who(0), now) == LONGEST_BACKOFF
    rotations.want(who(0), Priority.REAL_TIME, now + 50)
    assert rotations.start(now + 50) == [who(0)]


def test_a_renewal_that_fails_is_not_hastened_while_the_certificate_is_valid():
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 0)
    rotations.start(0)
    rotations.issued(who(0), certificate(who(0), 0, 1e6), 0)
    now = rotations.due(who(0), 0)
    for _ in range(9):
        rotations.start(now)
        rotations.failed(who(0), ERROR, now, 0.5)
        now += rotations.due(who(0), now)
    rotations.start(now)
    rotations.failed(who(0), ERROR, now, 0.5)
    rotations.want(who(0), Priority.REAL_TIME, now)
    assert rotations.due(who(0), now) == LONGEST_BACKOFF


@pytest.mark.parametrize("ahead", [3600.0, 86_400.0])
def test_a_clock_that_was_ahead_while_attempts_failed_delays_none_once_it_is_set_back(ahead: float):
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 0)
    rotations.start(0)
    rotations.issued(who(0), certificate(who(0), 0, 600), 0)
    # By the clock all certificates of the CA have expired.
    for _ in range(3):
        now = ahead + rotations.due(who(0), ahead)
        assert rotations.start(now) == [who(0)]
        with pytest.raises(CaChainError):
            rotations.issued(who(0), certificate(who(0), 10, 610), now)
        rotations.failed(who(0), ERROR, now, 0.5)
    assert rotations.due(who(0), 20) == 0
    assert rotations.start(20) == [who(0)]
    rotations.failed(who(0), ERROR, 20, 0.5)
    assert 0 < rotations.due(who(0), 20) <= LONGEST_BACKOFF, "what fails now has its pause"


def test_renewal_is_at_half_life_and_not_at_once_for_an_old_certificate():
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 1000)
    rotations.start(1000)
    rotations.issued(who(0), certificate(who(0), 880, 1480), 1000)
    assert rotations.due(who(0), 1000) == 180
    assert rotations.start(1179.9) == []
    assert rotations.start(1180) == [who(0)]
    # The CA answers with the same one again: not over and over.
    rotations.issued(who(0), certificate(who(0), 880, 1480), 1300)
    assert rotations.due(who(0), 1300) == 90
    # Nor for one that will be good for long, by a clock that is far ahead of the CA's.
    assert rotations.start(1390) == [who(0)]
    rotations.issued(who(0), certificate(who(0), 0, 2700), 1390)
    assert rotations.due(who(0), 1390) == 150


def test_an_issued_certificate_that_has_expired_is_a_failure():
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 1000)
    rotations.start(1000)
    with pytest.raises(CaChainError, match="already expired"):
        rotations.issued(who(0), certificate(who(0), 0, 1000), 1000)
    rotations.failed(who(0), ERROR, 1000, 0.5)
    rotation = rotations.get(who(0))
    assert rotation is not None
    assert rotation.answer(1000) is ERROR


def test_the_last_good_certificate_is_kept_to_its_end_and_tried_again_at_that_moment():
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 0)
    rotations.start(0)
    good = certificate(who(0), 0, 100)
    rotations.issued(who(0), good, 0)
    now = 50.0
    attempts = []
    rotation = rotations.get(who(0))
    assert rotation is not None
    while now < 100:
        assert rotations.start(now) == [who(0)]
        assert rotation.answer(now) is good
        renewal = rotations.failed(who(0), ERROR, now, 0.5)
        assert renewal.valid_until == 100
        assert renewal.overdue == (now > 75)
        attempts.append(now)
        now = renewal.next_attempt
    assert attempts == [50, 51, 53, 57, 65, 81]
    assert now == 100
    # Expired: the answer is why, from this instant on, though the attempt has yet to be made.
    assert rotation.answer(now) is ERROR
    assert rotations.start(now) == [who(0)]
    renewal = rotations.failed(who(0), ERROR, now, 0.5)
    assert renewal.valid_until is None
    assert renewal.next_attempt == 100 + 64
    rotations.start(164)
    rotations.issued(who(0), certificate(who(0), 160, 300), 164)
    assert rotation.failures == 0
    assert rotation.error is None


def test_an_expired_certificate_without_an_error_is_not_handed_out():
    rotations = Rotations()
    rotations.want(who(0), Priority.WARMUP, 0)
    rotations.start(0)
    rotations.issued(who(0), certificate(who(0), 0, 100), 0)
    rotation = rotations.get(who(0))
    assert rotation is not None
    assert isinstance(rotation.answer(100), CaError)
    assert rotation.valid(99.9) is not None


@given(st.integers(0, 10_000), st.floats(0, 899), st.floats(0, 1, exclude_max=True))
def test_backoff_doubles_within_a_fifth_up_to_the_cap(failures, failing_for, random):
    base = min(2.0 ** min(failures, 20), LONGEST_BACKOFF)
    assert 0.8 * base <= backoff(failures, failing_for, random) <= min(1.2 * base, LONGEST_BACKOFF)


@given(st.integers(0, 10_000), st.floats(900, 1e9), st.floats(0, 1, exclude_max=True))
def test_after_a_quarter_of_an_hour_backoff_is_constant(failures, failing_for, random):
    assert backoff(failures, failing_for, random) == LONGEST_BACKOFF


def test_what_is_forgotten_frees_its_place_and_is_gone():
    rotations = Rotations(ControlBounds(ca_calls=1))
    rotations.want(who(0), Priority.WARMUP, 0)
    rotations.want(who(1), Priority.WARMUP, 0)
    assert rotations.start(0) == [who(0)]
    assert rotations.forget(who(0))
    assert not rotations.forget(who(0))
    assert rotations.start(0) == [who(1)]
    assert who(0) not in rotations
    assert len(rotations) == 1


class AnyConversation(RuleBasedStateMachine):
    """Whatever comes in whatever order, the limits hold and nobody is lost."""

    identities = Bundle("identities")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rotations = Rotations(ControlBounds(ca_calls=3))
        self.fetching: list[Identity] = []
        self.known: set[Identity] = set()

    @rule(target=identities, number=st.integers(0, 8), priority=st.sampled_from(Priority))
    def want(self, number, priority):
        identity = who(number)
        assert self.rotations.want(identity, priority, self.now) == (identity not in self.known)
        self.known.add(identity)
        return identity

    @rule(identity=identities)
    def forget(self, identity):
        assert self.rotations.forget(identity) == (identity in self.known)
        self.known.discard(identity)
        if identity in self.fetching:
            self.fetching.remove(identity)

    @rule(seconds=st.floats(0, 300))
    def start_later(self, seconds):
        self.now += seconds
        started = self.rotations.start(self.now)
        assert not set(started) & set(self.fetching)
        assert set(started) <= self.known
        self.fetching += started

    @rule(pick=st.integers(0, 100), life=st.floats(20, 500))
    def succeed(self, pick, life):
        if self.fetching:
            identity = self.fetching.pop(pick % len(self.fetching))
            self.rotations.issued(identity, certificate(identity, self.now, self.now + life), self.now)

    @rule(pick=st.integers(0, 100), random=st.floats(0, 1, exclude_max=True))
    def fail(self, pick, random):
        if self.fetching:
            identity = self.fetching.pop(pick % len(self.fetching))
            renewal = self.rotations.failed(identity, ERROR, self.now, random)
            assert self.now <= renewal.next_attempt <= self.now + LONGEST_BACKOFF

    @invariant()
    def limits_hold(self):
        assert len(self.fetching) <= 3
        phases = {rotation.identity: rotation.phase for rotation in self.rotations.all()}
        assert set(phases) == self.known
        assert {i for i, phase in phases.items() if phase is RotationPhase.FETCHING} == set(self.fetching)
        queued = [i for i, phase in phases.items() if phase is RotationPhase.QUEUED]
        # Whoever waits does so because all places are taken, or nobody has looked yet.
        if queued and len(self.fetching) < 3:
            assert self.rotations.start(self.now)[: 3 - len(self.fetching)]
            self.fetching = [r.identity for r in self.rotations.all() if r.phase is RotationPhase.FETCHING]


TestAnyConversation = AnyConversation.TestCase
TestAnyConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
