"""Authorization: whether a peer may reach a workload on an address and port.

The order is Istio's: an enforced DENY that matches denies; then, if no enforced ALLOW applies, everything is
allowed; then one enforced ALLOW has to match. Dry-run policies are evaluated and reported and never change
the answer. A policy that the workload refers to and that is not known is reported as missing and skipped.

`_matching_rule` evaluates the rules and clauses of one policy, `_failed_field` one match. This code is short
because it runs for each connection. Clues say which rule, clause and field decided; they cost more, so they
are made only for the policies that decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ztunnel.bounds import DEFAULTS, ExplainBounds
from ztunnel.decide.mesh_view import PolicyView
from ztunnel.decide.networks import contains
from ztunnel.decide.plans import Clue, PolicyFacts, Verdict
from ztunnel.model.address import IPNetwork, canonical
from ztunnel.model.identity import Identity
from ztunnel.model.policy import (
    Action,
    Authorization,
    Clause,
    Match,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.model.workload import Workload

NONE_ALLOWED = "allow policies exist, but none allowed"
"""The reason when ALLOW policies apply to a workload and no enforced one matches."""


class _Peer:
    """The facts of a connection in the form in which policies compare them, computed once."""

    __slots__ = (
        "destination_ip",
        "destination_port",
        "namespace",
        "principal",
        "service_account",
        "source_ip",
    )

    def __init__(self, facts: PolicyFacts) -> None:
        identity: Identity | None = facts.identity
        self.source_ip = canonical(facts.source.ip)
        self.destination_ip = canonical(facts.destination.ip)
        self.destination_port = facts.destination.port
        # A peer without identity compares as the empty namespace, but never as any principal or account.
        self.namespace = "" if identity is None else identity.namespace
        self.service_account = None if identity is None else (identity.namespace, identity.service_account)
        self.principal = None if identity is None else identity.principal


def authorize(
    view: PolicyView, workload: Workload, facts: PolicyFacts, bounds: ExplainBounds = DEFAULTS.explain
) -> Verdict:
    """Decide with the policies that apply to ``workload``, the connection's destination.

    ``facts.destination`` is the address and port that is finally dialled; its network is ignored. Returns a
    verdict that names the policy that decided. Its clues name the rule that decided, or, if no ALLOW policy
    matches, the clauses and fields that do not hold: no more than ``bounds.clues``; `explain_policy` returns
    all of them. Raises nothing.
    """
    policies, missing = applicable_policies(view, workload)
    if not policies:
        return Verdict(allowed=True, log=_NOTHING_ALLOWS_OR_DENIES, missing=missing)
    peer = _Peer(facts)
    log: list[tuple[str, str | None]] = []
    dry_run: list[str] = []
    refuses = ""

    denies: list[Authorization] = []
    trial_denies: list[Authorization] = []
    enforced: list[Authorization] = []
    trial: list[Authorization] = []
    for policy in policies:
        if policy.action is Action.DENY:
            (trial_denies if policy.dry_run else denies).append(policy)
        else:
            (trial if policy.dry_run else enforced).append(policy)

    for policy in trial_denies:
        if _matching_rule(policy, peer) is not None:
            dry_run.append(policy.key)
            refuses = refuses or policy.key
            log.append(("dry-run: deny policy match", policy.key))
    for policy in denies:
        rule = _matching_rule(policy, peer)
        if rule is not None:
            key = policy.key
            log.append(("deny policy match", key))
            return Verdict(
                allowed=False,
                reason=f"explicitly denied by: {key}",
                policy=key,
                clues=(_matched(policy, rule, peer),),
                log=tuple(log),
                dry_run=tuple(dry_run),
                dry_run_refuses=refuses,
                missing=missing,
            )

    if trial:
        trial_matched = [policy.key for policy in trial if _matching_rule(policy, peer) is not None]
        dry_run += trial_matched
        log += [("dry-run: allow policy match", key) for key in trial_matched]
        if not trial_matched and not enforced:
            refuses = refuses or "*"
            log.append(("dry-run: no allow policies match", None))
    if not enforced:
        log.append(("no allow policies, allow", None))
        return Verdict(
            allowed=True,
            log=tuple(log),
            dry_run=tuple(dry_run),
            dry_run_refuses=refuses,
            missing=missing,
        )

    for policy in enforced:
        rule = _matching_rule(policy, peer)
        if rule is not None:
            key = policy.key
            log.append(("allow policy match", key))
            # Most connections end here, so the clue is short; explain_policy has the whole of it.
            return Verdict(
                allowed=True,
                policy=key,
                clues=(Clue(key, rule, text=f"Rule {rule} of {key} allows it."),),
                log=tuple(log),
                dry_run=tuple(dry_run),
                dry_run_refuses=refuses,
                missing=missing,
            )
    log.append(("no allow policies matched", None))
    failures = (clue for policy in enforced for clue in _failures(policy, peer))
    return Verdict(
        allowed=False,
        reason=NONE_ALLOWED,
        clues=tuple(islice(failures, bounds.clues)),
        log=tuple(log),
        dry_run=tuple(dry_run),
        dry_run_refuses=refuses,
        missing=missing,
    )


_NOTHING_ALLOWS_OR_DENIES: tuple[tuple[str, str | None], ...] = (("no allow policies, allow", None),)


def applicable_policies(
    view: PolicyView, workload: Workload
) -> tuple[Sequence[Authorization], tuple[str, ...]]:
    """Returns the policies that apply to a workload, and the keys it refers to that are not known.

    Those of its namespace, the global ones, and those it refers to, whatever their scope; each once.
    """
    by_namespace = view.namespace_policies(workload.namespace)
    everywhere = view.global_policies()
    if not workload.authorization_policies:
        return ((*by_namespace, *everywhere) if everywhere else by_namespace), ()
    found = {policy.key: policy for policy in (*by_namespace, *everywhere)}
    missing: list[str] = []
    for key in workload.authorization_policies:
        if key in found:
            continue
        policy = view.policy(key)
        if policy is None:
            missing.append(key)
        else:
            found[key] = policy
    return tuple(found.values()), tuple(missing)


def explain_policy(policy: Authorization, facts: PolicyFacts) -> tuple[bool, tuple[Clue, ...]]:
    """Returns whether one policy matches, with all clues: the matching rule, or what fails in each rule."""
    peer = _Peer(facts)
    rule = _matching_rule(policy, peer)
    if rule is not None:
        return True, (_matched(policy, rule, peer),)
    return False, tuple(_failures(policy, peer))


def _matching_rule(policy: Authorization, peer: _Peer) -> int | None:
    """Returns the index of the first rule that holds, None if none does (or the policy has no rules)."""
    for index, rule in enumerate(policy.rules):
        for clause in rule:
            if clause and not _clause_holds(clause, peer):
                break
        else:
            return index
    return None


def _clause_holds(clause: Clause, peer: _Peer) -> bool:
    for match in clause:  # noqa: SIM110 - runs for each connection; any() over a generator costs twice as much
        if _failed_field(match, peer) is None:
            return True
    return False


def _failed_field(match: Match, peer: _Peer) -> str | None:
    """Returns the first field that does not hold, ``"match"`` if the match has no field, None if all hold."""
    constrained = False
    for field, holds, negated in _FIELDS:
        wanted = getattr(match, field)
        if wanted:
            constrained = True
            if holds(wanted, peer) is negated:
                return field
    return None if constrained else "match"


def _text_matches(wanted: Iterable[StringMatch], text: str) -> bool:
    for kind, value in wanted:
        if kind is StringMatchKind.EXACT:
            if text == value:
                return True
        elif kind is StringMatchKind.PREFIX:
            if text.startswith(value):
                return True
        elif kind is StringMatchKind.SUFFIX:
            if text.endswith(value):
                return True
        elif text:
            return True
    return False


def _account_matches(wanted: Sequence[ServiceAccountMatch], peer: _Peer) -> bool:
    return peer.service_account is not None and peer.service_account in wanted


def _matched(policy: Authorization, rule: int, peer: _Peer) -> Clue:
    verb = "denies" if policy.action is Action.DENY else "allows"
    clauses = policy.rules[rule]
    if not clauses:
        return Clue(
            policy.key, rule, text=f"Rule {rule} of {policy.key} has no clauses: it {verb} everything."
        )
    fields = sorted({field for clause in clauses for field in _holding_fields(clause, peer)})
    return Clue(
        policy.key,
        rule,
        field=",".join(fields) or None,
        text=f"Rule {rule} of {policy.key} {verb} it: all of its clauses hold"
        + (f" ({', '.join(fields)})." if fields else "."),
    )


def _holding_fields(clause: Clause, peer: _Peer) -> Iterator[str]:
    for match in clause:
        if _failed_field(match, peer) is None:
            yield from (field for field, _, _ in _FIELDS if getattr(match, field))
            return


def _failures(policy: Authorization, peer: _Peer) -> Iterator[Clue]:
    """For a policy that does not match: of each rule the first clause that fails, with each match's field."""
    key = policy.key
    if not policy.rules:
        yield Clue(key, text=f"{key} has no rules: it matches nothing.")
    for rule_index, rule in enumerate(policy.rules):
        for clause_index, clause in enumerate(rule):
            if clause and not _clause_holds(clause, peer):
                for match in clause:
                    field = _failed_field(match, peer) or "match"
                    yield Clue(
                        key,
                        rule_index,
                        clause_index,
                        field,
                        f"Clause {clause_index} of rule {rule_index} of {key} does not hold: "
                        + _failure_text(match, field, peer),
                    )
                break


def _failure_text(match: Match, field: str, peer: _Peer) -> str:
    if field == "match":
        return "it has a match without any field, which never holds."
    actual = _actual(field, peer)
    wanted = getattr(match, field)
    shown = ", ".join(_show(value) for value in wanted[:4]) + (", …" if len(wanted) > 4 else "")
    return f"{field} is [{shown}], but {actual}."


def _actual(field: str, peer: _Peer) -> str:
    return _COMPARISONS[field.removeprefix("not_")].actual(peer)


def _actual_identity(peer: _Peer) -> str:
    if peer.principal is None:
        return "the peer has no identity (plaintext)"
    return f"the peer is {peer.principal}"


def _show(value: StringMatch | ServiceAccountMatch | IPNetwork | int) -> str:
    if isinstance(value, StringMatch):
        shown = {
            StringMatchKind.EXACT: value.value,
            StringMatchKind.PREFIX: f"{value.value}*",
            StringMatchKind.SUFFIX: f"*{value.value}",
            StringMatchKind.PRESENCE: "*",
        }
        return shown[value.kind]
    if isinstance(value, ServiceAccountMatch):
        return f"{value.namespace}/{value.service_account}"
    return str(value)


class _Comparison(NamedTuple):
    """What a field of a match compares.

    holds: whether one of the wanted values is that of the peer.
    actual: the peer's value, as text for people.
    """

    holds: Callable[[Any, _Peer], bool]
    actual: Callable[[_Peer], str]


_COMPARISONS: Mapping[str, _Comparison] = {
    "namespaces": _Comparison(lambda wanted, peer: _text_matches(wanted, peer.namespace), _actual_identity),
    "service_accounts": _Comparison(_account_matches, _actual_identity),
    "principals": _Comparison(
        lambda wanted, peer: peer.principal is not None and _text_matches(wanted, peer.principal),
        _actual_identity,
    ),
    "source_ips": _Comparison(
        lambda wanted, peer: contains(wanted, peer.source_ip), lambda peer: f"the source is {peer.source_ip}"
    ),
    "destination_ips": _Comparison(
        lambda wanted, peer: contains(wanted, peer.destination_ip),
        lambda peer: f"the destination is {peer.destination_ip}",
    ),
    "destination_ports": _Comparison(
        lambda wanted, peer: peer.destination_port in wanted,
        lambda peer: f"the port is {peer.destination_port}",
    ),
}
_FIELDS = tuple(
    (prefix + name, comparison.holds, bool(prefix))
    for name, comparison in _COMPARISONS.items()
    for prefix in ("", "not_")
)
"""The fields of a match in the order of comparison: name, comparison, whether it is negated (``not_``)."""
