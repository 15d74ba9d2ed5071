"""A second evaluation of policies, written from the rules in words and only to be compared with.

It shares no code with `ztunnel.decide.authorize`: texts are compared as the strings that istiod's policies
show, networks by their bits, and a policy is evaluated by nested any() and all().
"""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.decide.mesh_view import MeshView
from ztunnel.decide.plans import PolicyFacts
from ztunnel.model.address import IPAddress, IPNetwork
from ztunnel.model.policy import Action, Authorization, Match, StringMatch, StringMatchKind
from ztunnel.model.workload import Workload


def text_matches(match: StringMatch, text: str) -> bool:
    wanted = match.value
    return {
        StringMatchKind.EXACT: wanted == text,
        StringMatchKind.PREFIX: text[: len(wanted)] == wanted,
        StringMatchKind.SUFFIX: text[len(text) - len(wanted) :] == wanted and len(wanted) <= len(text),
        StringMatchKind.PRESENCE: text != "",
    }[match.kind]


def in_network(network: IPNetwork, ip: IPAddress) -> bool:
    if network.version != ip.version:
        return False
    host_bits = network.max_prefixlen - network.prefixlen
    return int(network.network_address) >> host_bits == int(ip) >> host_bits


def match_holds(match: Match, facts: PolicyFacts) -> bool:
    who = facts.identity
    namespace = who.namespace if who else ""
    principal = f"{who.trust_domain}/ns/{who.namespace}/sa/{who.service_account}" if who else None

    def each(name: str, test: Callable[..., bool]) -> tuple[bool, bool]:
        wanted, unwanted = getattr(match, name), getattr(match, f"not_{name}")
        return (
            not wanted or any(test(value) for value in wanted),
            not unwanted or not any(test(value) for value in unwanted),
        )

    answers = [
        each("namespaces", lambda value: text_matches(value, namespace)),
        each(
            "service_accounts",
            lambda value: who is not None and (who.namespace, who.service_account) == tuple(value),
        ),
        each("principals", lambda value: principal is not None and text_matches(value, principal)),
        each("source_ips", lambda value: in_network(value, facts.source.ip)),
        each("destination_ips", lambda value: in_network(value, facts.destination.ip)),
        each("destination_ports", lambda value: value == facts.destination.port),
    ]
    has_fields = any(getattr(match, name) for name in Match.__slots__)
    return has_fields and all(positive and negative for positive, negative in answers)


def policy_matches(policy: Authorization, facts: PolicyFacts) -> bool:
    return any(
        all(not clause or any(match_holds(match, facts) for match in clause) for clause in rule)
        for rule in policy.rules
    )


def allows(view: MeshView, workload: Workload, facts: PolicyFacts) -> bool:
    """Whether the connection is allowed; nothing about why."""
    applicable = [
        *view.global_policies(),
        *view.namespace_policies(workload.namespace),
        *(policy for key in workload.authorization_policies if (policy := view.policy(key)) is not None),
    ]
    enforced = [policy for policy in applicable if not policy.dry_run]
    if any(policy_matches(policy, facts) for policy in enforced if policy.action is Action.DENY):
        return False
    allowing = [policy for policy in enforced if policy.action is Action.ALLOW]
    return not allowing or any(policy_matches(policy, facts) for policy in allowing)
