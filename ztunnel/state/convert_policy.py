"""From the bytes of one authorization policy to its model value.

Single values inside a policy that cannot be read (an address of three bytes, a text match without a type)
are dropped, as the existing implementation does: the policy stays, without them. In a DENY policy that can
only deny more, or what is left. In an ALLOW policy it could let in whom nobody meant: a match whose only
readable field is a namespace would allow the whole namespace, whatever addresses were asked for. Here such a
match of an ALLOW policy never holds. That is the one place where this differs from the existing
implementation, and it never widens access.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ztunnel.model.address import IPNetwork
from ztunnel.model.policy import (
    Action,
    Authorization,
    Clause,
    Match,
    Rule,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.state import schema
from ztunnel.state.convert import RejectedError, decode_fields, network_from_bytes, unknown_enumeration
from ztunnel.state.wire import Fields

_T = TypeVar("_T")

_SCOPES = {0: Scope.GLOBAL, 1: Scope.NAMESPACE, 2: Scope.WORKLOAD_SELECTOR}
_ACTIONS = {0: Action.ALLOW, 1: Action.DENY}
_KINDS = (
    ("exact", StringMatchKind.EXACT),
    ("prefix", StringMatchKind.PREFIX),
    ("suffix", StringMatchKind.SUFFIX),
)
_NEVER = Match()


def authorization(body: bytes) -> Authorization:
    """The policy that the bytes of an ``istio.security.Authorization`` hold.

    Raises RejectedError for bytes that are no such message and for an unknown scope or action.
    """
    fields = decode_fields(schema.AUTHORIZATION, body)
    scope = _SCOPES.get(fields.get("scope", 0))
    if scope is None:
        raise unknown_enumeration(fields["scope"])
    action = _ACTIONS.get(fields.get("action", 0))
    if action is None:
        raise unknown_enumeration(fields["action"])
    return Authorization(
        name=fields.get("name", ""),
        namespace=fields.get("namespace", ""),
        scope=scope,
        action=action,
        rules=tuple(_rule(rule, action) for rule in fields.get("rules", ())),
        dry_run=fields.get("dry_run", False),
    )


def _rule(fields: Fields, action: Action) -> Rule:
    return tuple(_clause(clause, action) for clause in fields.get("clauses", ()))


def _clause(fields: Fields, action: Action) -> Clause:
    return tuple(_match(match, action) for match in fields.get("matches", ()))


class _Reader:
    """Reads the fields of one match, and notes when leaving out a value made the match wider."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.widened = False

    def positive(self, name: str, read: Callable[[Fields], _T | None]) -> tuple[_T, ...]:
        """Values of which one must hold: with none left over, the field would no longer constrain."""
        given, kept = self._kept(name, read)
        self.widened |= bool(given) and not kept
        return kept

    def negative(self, name: str, read: Callable[[Fields], _T | None]) -> tuple[_T, ...]:
        """Values of which none may hold: each one less lets more through."""
        given, kept = self._kept(name, read)
        self.widened |= len(kept) < given
        return kept

    def _kept(self, name: str, read: Callable[[Fields], _T | None]) -> tuple[int, tuple[_T, ...]]:
        given = self.fields.get(name, ())
        return len(given), tuple(value for value in map(read, given) if value is not None)


def _match(fields: Fields, action: Action) -> Match:
    reader = _Reader(fields)
    match = Match(
        namespaces=reader.positive("namespaces", _string),
        not_namespaces=reader.negative("not_namespaces", _string),
        service_accounts=reader.positive("service_accounts", _service_account),
        not_service_accounts=reader.negative("not_service_accounts", _service_account),
        principals=reader.positive("principals", _string),
        not_principals=reader.negative("not_principals", _string),
        source_ips=reader.positive("source_ips", _network),
        not_source_ips=reader.negative("not_source_ips", _network),
        destination_ips=reader.positive("destination_ips", _network),
        not_destination_ips=reader.negative("not_destination_ips", _network),
        destination_ports=_ports(fields.get("destination_ports", ())),
        not_destination_ports=_ports(fields.get("not_destination_ports", ())),
    )
    return _NEVER if reader.widened and action is Action.ALLOW else match


def _string(fields: Fields) -> StringMatch | None:
    for name, kind in _KINDS:
        if name in fields:
            return StringMatch(kind, fields[name])
    return StringMatch(StringMatchKind.PRESENCE) if "presence" in fields else None


def _service_account(fields: Fields) -> ServiceAccountMatch:
    return ServiceAccountMatch(fields.get("namespace", ""), fields.get("service_account", ""))


def _network(fields: Fields) -> IPNetwork | None:
    try:
        return network_from_bytes(fields.get("address", b""), fields.get("length", 0))
    except RejectedError:
        return None


def _ports(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(number & 0xFFFF for number in numbers)
