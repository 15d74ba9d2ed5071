"""Converts Kubernetes policies (AuthorizationPolicy, PeerAuthentication) into the form that ztunnel gets.

The conversion is that of istiod for layer 4 (https://istio.io/latest/docs/ambient/usage/l4-policy/): in an
ALLOW policy a rule with layer 7 attributes matches nothing; in a DENY policy these attributes are removed
from the rule. Both are more restrictive than the policy as written, which needs a waypoint;
`Converted.warnings` say so. PeerAuthentication becomes a DENY of peers without an identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import yaml

from ztunnel.errors import ZtunnelError
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

STATIC_STRICT = "istio_converted_static_strict"
PEER_AUTHENTICATION = "converted_peer_authentication_"
_NOBODY = (StringMatch(StringMatchKind.PRESENCE),)
_L7_OPERATIONS = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_L7_SOURCES = ("remoteIpBlocks", "notRemoteIpBlocks", "requestPrincipals", "notRequestPrincipals")
_POLICY = ("selector", "targetRef", "targetRefs", "action", "provider", "rules")
_L4_OPERATIONS = ("ports", "notPorts")
_L4_SOURCES = (
    *("ipBlocks", "notIpBlocks", "namespaces", "notNamespaces"),
    *("principals", "notPrincipals", "serviceAccounts", "notServiceAccounts"),
)
_WHEN: Mapping[str, str] = {
    "source.ip": "source_ips",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "destination.ip": "destination_ips",
    "destination.port": "destination_ports",
}


class PolicyFileError(ZtunnelError):
    """A file of policies cannot be used. The text names the object and the place in it."""

    code = "ZT-EXP-005"


@dataclass(frozen=True, slots=True)
class Converted:
    """One converted object.

    policy: None if ztunnel gets nothing for it. labels: of its selector, None without one. strict: for a
        PeerAuthentication, whether peers need an identity now; None if it does not say.
    """

    kind: str
    namespace: str
    name: str
    policy: Authorization | None = None
    labels: Mapping[str, str] | None = None
    strict: bool | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def key(self) -> str:
        """The name of the object."""
        return f"{self.namespace}/{self.name}"


def static_strict(root: str) -> Authorization:
    """Returns the policy that workloads with strict mTLS refer to: no peer without an identity."""
    return Authorization(
        STATIC_STRICT, root, Scope.WORKLOAD_SELECTOR, Action.DENY, (((Match(not_principals=_NOBODY),),),)
    )


def read_policies(text: str, root: str, where: str = "") -> list[Converted]:
    """Returns all policies of a YAML text of several documents, also those in Lists. Other kinds are ignored.

    root: the root namespace, whose policies apply everywhere. where: a name for the text in errors. Raises
        PolicyFileError.
    """
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise PolicyFileError(f"{where or 'the policy'} is no YAML: {error}") from error
    return [one for document in documents for one in _objects(document, root, where)]


def _objects(document: Any, root: str, where: str) -> Iterable[Converted]:
    if document is None:
        return
    if not isinstance(document, Mapping):
        raise PolicyFileError(
            f"{where or 'the policy'}: expected an object with a kind, found {document!r:.60}"
        )
    kind = document.get("kind")
    if isinstance(kind, str) and kind.endswith("List"):
        for item in document.get("items") or ():
            yield from _objects(item, root, where)
        return
    metadata = document.get("metadata") or {}
    name, namespace = metadata.get("name", ""), metadata.get("namespace") or "default"
    spec = document.get("spec") or {}
    try:
        if kind == "AuthorizationPolicy":
            yield _authorization(name, namespace, metadata, spec, root)
        elif kind == "PeerAuthentication":
            yield _peer_authentication(name, namespace, spec, root)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise PolicyFileError(f"{where}{' ' if where else ''}{kind} {namespace}/{name}: {error}") from error


def _known(found: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Returns ``found``. Raises ValueError for a field without meaning, which Kubernetes refuses as well.

    Left out, a mistyped ``from`` would make a rule that holds for everybody.
    """
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(f"there is no field {unknown[0]!r} beside {', '.join(names)}")
    return found


def _labels(spec: Mapping[str, Any]) -> Mapping[str, str] | None:
    selector = spec.get("selector")
    if selector is None:
        return None
    _known(selector, "matchLabels")
    return {str(key): str(value) for key, value in (selector.get("matchLabels") or {}).items()}


# -- AuthorizationPolicy ---------------------------------------------------------------------------------


def _authorization(
    name: str, namespace: str, metadata: Mapping[str, Any], spec: Mapping[str, Any], root: str
) -> Converted:
    kind = "AuthorizationPolicy"
    _known(spec, *_POLICY)
    if spec.get("targetRefs") or spec.get("targetRef"):
        warning = (
            f"{kind} {namespace}/{name} targets a waypoint or service: a waypoint enforces it, no ztunnel."
        )
        return Converted(kind, namespace, name, warnings=(warning,))
    wanted = spec.get("action") or "ALLOW"
    if wanted not in ("ALLOW", "DENY"):
        if wanted not in ("AUDIT", "CUSTOM"):
            raise ValueError(f"action {wanted!r} is none of ALLOW, DENY, AUDIT, CUSTOM")
        warning = f"{kind} {namespace}/{name}: ztunnel does not support the {wanted} action."
        return Converted(kind, namespace, name, warnings=(warning,))
    action = Action.ALLOW if wanted == "ALLOW" else Action.DENY
    labels = _labels(spec)
    scope = Scope.WORKLOAD_SELECTOR
    if labels is None:
        scope = Scope.GLOBAL if namespace == root else Scope.NAMESPACE
    rules: list[Rule] = []
    found: set[str] = set()
    for rule in spec.get("rules") or ():
        converted, layer7 = _rule(rule or {}, namespace)
        found |= layer7
        if not (layer7 and action is Action.ALLOW):
            rules.append(converted)
    warnings = []
    if found:
        effect = (
            "rules with them match nothing" if action is Action.ALLOW else "they are left out of the rules"
        )
        warnings.append(
            f"{kind} {namespace}/{name}: {', '.join(sorted(found))} need a waypoint; in ztunnel {effect}, "
            "which is more restrictive than what is written."
        )
    annotations = metadata.get("annotations") or {}
    policy = Authorization(
        name,
        namespace,
        scope,
        action,
        tuple(rules),
        dry_run=str(annotations.get("istio.io/dry-run", "")).lower() == "true",
    )
    return Converted(kind, namespace, name, policy, labels, warnings=tuple(warnings))


def _rule(rule: Mapping[str, Any], namespace: str) -> tuple[Rule, set[str]]:
    """Returns one rule, and the layer 7 attributes in it."""
    layer7: set[str] = set()
    clauses: list[Clause] = []
    _known(rule, "from", "to", "when")
    to = []
    for one in rule.get("to") or ():
        operation = _known(one or {}, "operation").get("operation") or {}
        _known(operation, *_L4_OPERATIONS, *_L7_OPERATIONS)
        layer7 |= {name for name in _L7_OPERATIONS if operation.get(name)}
        to.append(
            Match(
                destination_ports=_ports(operation.get("ports")),
                not_destination_ports=_ports(operation.get("notPorts")),
            )
        )
    sources = []
    for one in rule.get("from") or ():
        source = _known(one or {}, "source").get("source") or {}
        _known(source, *_L4_SOURCES, *_L7_SOURCES)
        layer7 |= {name for name in _L7_SOURCES if source.get(name)}
        sources.append(
            Match(
                source_ips=_networks(source.get("ipBlocks")),
                not_source_ips=_networks(source.get("notIpBlocks")),
                namespaces=_texts(source.get("namespaces")),
                not_namespaces=_texts(source.get("notNamespaces")),
                service_accounts=_accounts(source.get("serviceAccounts"), namespace),
                not_service_accounts=_accounts(source.get("notServiceAccounts"), namespace),
                principals=_texts(source.get("principals")),
                not_principals=_texts(source.get("notPrincipals")),
            )
        )
    clauses += [tuple(matches) for matches in (to, sources) if matches]
    for condition in rule.get("when") or ():
        name = _WHEN.get(_known(condition, "key", "values", "notValues")["key"])
        if name is None:
            layer7.add(str(condition["key"]))
            clauses.append((Match(),))
            continue
        read = _READERS[name]
        fields = {name: read(condition.get("values")), f"not_{name}": read(condition.get("notValues"))}
        clauses.append((Match(**fields),))
    return tuple(clauses), layer7


def _texts(values: Iterable[str] | None) -> tuple[StringMatch, ...]:
    return tuple(_text(str(value)) for value in values or ())


def _text(value: str) -> StringMatch:
    if value == "*":
        return StringMatch(StringMatchKind.PRESENCE)
    if value.startswith("*"):
        return StringMatch(StringMatchKind.SUFFIX, value[1:])
    if value.endswith("*"):
        return StringMatch(StringMatchKind.PREFIX, value[:-1])
    return StringMatch(StringMatchKind.EXACT, value)


def _accounts(values: Iterable[str] | None, namespace: str) -> tuple[ServiceAccountMatch, ...]:
    found = []
    for value in values or ():
        first, slash, second = str(value).partition("/")
        found.append(ServiceAccountMatch(first, second) if slash else ServiceAccountMatch(namespace, first))
    return tuple(found)


def _networks(values: Iterable[str] | None) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(str(value), strict=False) for value in values or () if value)


def _ports(values: Iterable[Any] | None) -> tuple[int, ...]:
    ports = [int(value) for value in values or ()]
    for port in ports:
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"{port} is no port")
    return tuple(ports)


_READERS: Mapping[str, Any] = {
    "source_ips": _networks,
    "namespaces": _texts,
    "principals": _texts,
    "destination_ips": _networks,
    "destination_ports": _ports,
}


# -- PeerAuthentication ----------------------------------------------------------------------------------


def _peer_authentication(name: str, namespace: str, spec: Mapping[str, Any], root: str) -> Converted:
    kind = "PeerAuthentication"
    _known(spec, "selector", "mtls", "portLevelMtls")
    mode = _mode(spec.get("mtls"))
    strict = None if mode == "UNSET" else mode == "STRICT"
    labels = _labels(spec)
    by_port = {int(port): _mode(mtls) for port, mtls in (spec.get("portLevelMtls") or {}).items()}
    if labels is None or namespace == root or not by_port:
        return Converted(kind, namespace, name, None, labels, strict)
    rules: list[Rule] = []
    loose = tuple(sorted(port for port, one in by_port.items() if one in ("PERMISSIVE", "DISABLE")))
    if mode == "STRICT":
        if not loose:
            return Converted(kind, namespace, name, None, labels, strict)
        exempt: list[Clause] = [(Match(not_destination_ports=(port,)),) for port in loose]
        rules.append(((Match(not_principals=_NOBODY),), *exempt))
        strict = False  # the static policy would know no exemption
    else:
        rules += [
            ((Match(not_principals=_NOBODY, destination_ports=(port,)),),)
            for port, one in sorted(by_port.items())
            if one == "STRICT"
        ]
    policy = Authorization(
        PEER_AUTHENTICATION + name, namespace, Scope.WORKLOAD_SELECTOR, Action.DENY, tuple(rules)
    )
    return Converted(kind, namespace, name, policy if rules else None, labels, strict)


def _mode(mtls: Any) -> str:
    mode = "UNSET" if mtls is None else str(_known(mtls, "mode").get("mode") or "UNSET")
    if mode not in ("UNSET", "STRICT", "PERMISSIVE", "DISABLE"):
        raise ValueError(f"mtls mode {mode!r} is none of STRICT, PERMISSIVE, DISABLE, UNSET")
    return mode
