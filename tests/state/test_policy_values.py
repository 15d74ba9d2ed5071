"""Policies from bytes: what is refused, what is left out, and that nothing left out lets more in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import mesh_messages as messages
from ztunnel.model.policy import (
    Action,
    Authorization,
    Match,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.pb.google import protobuf
from ztunnel.pb.istio import security
from ztunnel.state.convert import authorization
from ztunnel.state.kinds import RejectedError

BAD_IP = security.Address(address=b"abc", length=8)
LONG_PREFIX = security.Address(address=bytes(4), length=33)
GOOD_IP = security.Address(address=bytes([10, 1, 2, 3]), length=8)
UNTYPED = security.StringMatch()


def one_match(match: security.Match, action: security.Action) -> Match:
    rule = security.Rule(clauses=[security.Clause(matches=[match])])
    policy = authorization(bytes(security.Authorization(rules=[rule], action=action)))
    return policy.rules[0][0][0]


def test_all_fields_of_a_policy_are_read():
    match = security.Match(
        namespaces=[security.StringMatch(exact="a"), security.StringMatch(prefix="b")],
        not_principals=[security.StringMatch(suffix="c"), security.StringMatch(presence=protobuf.Empty())],
        service_accounts=[security.ServiceAccountMatch(namespace="ns", service_account="sa")],
        source_ips=[GOOD_IP],
        not_destination_ports=[80, 70000],
    )
    message = security.Authorization(
        name="p",
        namespace="ns",
        scope=security.Scope.WORKLOAD_SELECTOR,
        action=security.Action.DENY,
        rules=[security.Rule(clauses=[security.Clause(matches=[match]), security.Clause()]), security.Rule()],
        dry_run=True,
    )
    policy = authorization(bytes(message))
    read = policy.rules[0][0][0]
    assert policy == Authorization(
        "p", "ns", Scope.WORKLOAD_SELECTOR, Action.DENY, (((read,), ()), ()), dry_run=True
    )
    assert read.namespaces == (
        StringMatch(StringMatchKind.EXACT, "a"),
        StringMatch(StringMatchKind.PREFIX, "b"),
    )
    assert read.not_principals == (
        StringMatch(StringMatchKind.SUFFIX, "c"),
        StringMatch(StringMatchKind.PRESENCE),
    )
    assert read.service_accounts == (ServiceAccountMatch("ns", "sa"),)
    assert [str(network) for network in read.source_ips] == ["10.1.2.3/8"]
    assert read.not_destination_ports == (80, 4464)


@pytest.mark.parametrize(
    "message",
    [security.Authorization(scope=security.Scope(9)), security.Authorization(action=security.Action(9))],
)
def test_an_unknown_scope_or_action_refuses_the_policy(message: security.Authorization):
    with pytest.raises(RejectedError, match=r"^decode error: unknown enumeration value 9$"):
        authorization(bytes(message))


@settings(deadline=None)
@given(st.one_of(messages.damaged(messages.policies.map(bytes)), st.binary()))
def test_bytes_are_a_policy_or_a_rejection(body: bytes):
    reason = None
    try:
        authorization(body)
    except RejectedError as error:
        reason = str(error)
    assert reason is None or reason.startswith(("decode: failed", "decode error: unknown enumeration value"))


@settings(deadline=None)
@given(messages.policies)
def test_only_numbers_refuse_what_a_known_writer_writes(message: security.Authorization):
    try:
        policy = authorization(bytes(message))
    except RejectedError:
        assert message.scope.value > 2 or message.action.value > 1
    else:
        assert [len(rule) for rule in policy.rules] == [len(rule.clauses) for rule in message.rules]


def test_an_unreadable_value_is_left_out_of_a_list():
    match = security.Match(source_ips=[BAD_IP, GOOD_IP, LONG_PREFIX], namespaces=[UNTYPED, UNTYPED])
    read = one_match(match, security.Action.DENY)
    assert [str(network) for network in read.source_ips] == ["10.1.2.3/8"]
    assert read.namespaces == ()


def test_a_deny_match_without_its_unreadable_field_denies_more():
    match = security.Match(source_ips=[BAD_IP], namespaces=[security.StringMatch(exact="a")])
    read = one_match(match, security.Action.DENY)
    assert read.source_ips == ()
    assert read.namespaces == (StringMatch(StringMatchKind.EXACT, "a"),)


@pytest.mark.parametrize(
    "match",
    [
        security.Match(source_ips=[BAD_IP], destination_ports=[80]),
        security.Match(namespaces=[UNTYPED], destination_ports=[80]),
        security.Match(not_source_ips=[BAD_IP, GOOD_IP], destination_ports=[80]),
        security.Match(not_principals=[UNTYPED], destination_ports=[80]),
        security.Match(destination_ips=[LONG_PREFIX], destination_ports=[80]),
    ],
)
def test_an_allow_match_that_would_become_wider_never_holds(match: security.Match):
    assert one_match(match, security.Action.ALLOW) == Match()


def test_an_allow_match_that_becomes_narrower_stays():
    match = security.Match(source_ips=[BAD_IP, GOOD_IP])
    assert [str(network) for network in one_match(match, security.Action.ALLOW).source_ips] == ["10.1.2.3/8"]
