"""From the bytes of one authorization policy to its model value.

Single values inside a policy that cannot be read (an address of three bytes, a text match without a type)
are dropped, as the Rust ztunnel does: the policy stays, without them. In a DENY policy that can
only deny more, or what is left. In an ALLOW policy it could let in whom nobody meant: a match whose only
readable field is a namespace would allow the whole namespace, whatever addresses were asked for. Here such a
match of an ALLOW policy never holds. That is the one place where this differs from the Rust
ztunnel, and it never widens access.
"""

from __future__ import annotations

from typing import Any

from ztunnel.model.policy import Action, Authorization, Match
from ztunnel.state import wire
from ztunnel.state.convert import decoded, from_file
from ztunnel.state.description import AUTHORIZATION, MATCHES
from ztunnel.state.values import UNREADABLE

_NEVER = Match()


def authorization(body: bytes, *, local: bool = False) -> Authorization:
    """Returns the policy that an ``istio.security.Authorization`` holds, or one of the local file.

    Raises RejectedError for bytes that are no such message and for an unknown scope or action.
    """
    if local:
        policy: Authorization = from_file(body, AUTHORIZATION.parse)
        return policy
    fields = AUTHORIZATION.read_fields(decoded(wire.AUTHORIZATION, body))
    allows = fields["action"] is Action.ALLOW
    fields["rules"] = tuple(
        tuple(tuple(_match(match, allows=allows) for match in clause) for clause in rule)
        for rule in fields["rules"]
    )
    return Authorization(**fields)


def _match(message: Any, *, allows: bool) -> Match:
    values, widened = {}, False
    for kind_name, kind in MATCHES:
        for name in (kind_name, f"not_{kind_name}"):
            given = getattr(message, name)
            kept = tuple(value for value in map(kind.read, given) if value is not UNREADABLE)
            values[name] = kept
            # Of those under not_ none may hold: each one less lets more through. Of the others one must hold:
            # with none left over, the field would no longer constrain.
            widened |= len(kept) < len(given) and (name is not kind_name or not kept)
    return _NEVER if widened and allows else Match(**values)
