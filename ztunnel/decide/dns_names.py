"""Decides how a DNS query of a pod is answered: with addresses of a service of the mesh, or by forwarding it.

A name has several spellings, which are tried in this order: as it is; with the endings that Kubernetes would
add; and, if it ends in a search domain (the pod's resolver has added it), without that domain, as it is and
with those endings. Each spelling is tried exactly and then with wildcards, so a wildcard match of an earlier
spelling wins over an exact match of a later one. If the match needed the removal of a search domain, the
answer has a CNAME to the remaining name.

A name that is no visible service is forwarded; we never answer NXDOMAIN ourselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import NamedTuple

from ztunnel.decide.balance import best_service, is_visible
from ztunnel.decide.mesh_view import MeshView
from ztunnel.model.address import IPAddress
from ztunnel.model.service import IpFamilies, Service
from ztunnel.model.workload import Workload

TYPE_A = 1
TYPE_AAAA = 28
TTL = 30  # not a bound: it is part of each answer
"""Seconds for which our own answers may be cached."""


class DnsAnswerKind(Enum):
    """What to do with a query."""

    FORWARD = "forward"
    NO_RECORDS = "no records"
    RECORDS = "records"


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """The answer to one question. Names are in lower case and end with a dot.

    kind: FORWARD to the real resolver; NO_RECORDS, an empty NOERROR answer; or RECORDS.
    cname: with RECORDS, the target of a CNAME record that ``requested`` gets first, None for none.
    owner: the name that the address records belong to: ``cname`` if there is one, else ``requested``.
    addresses: one record each, shuffled; all of the family that was asked for.
    result: the word for the log line, empty for FORWARD, whose result is not known yet.
    service: the service that was found, None for FORWARD.
    """

    kind: DnsAnswerKind
    requested: str
    owner: str = ""
    cname: str | None = None
    addresses: tuple[IPAddress, ...] = ()
    result: str = ""
    service: Service | None = None
    why: str = ""


class Alias(NamedTuple):
    """A spelling of a requested name; ``stripped`` is what a removed search domain left, None if none was."""

    name: str
    stripped: str | None


def answer(
    view: MeshView,
    client: Workload,
    question_name: str,
    qtype: int,
    *,
    search_domains: Sequence[str],
    cluster_domain: str,
    ipv6_enabled: bool,
    preferred_namespace: str | None,
    random: Random,
) -> DnsAnswer:
    """Decide on one question of ``client``'s pod. ``qtype`` is the number of the record type.

    ``question_name`` is in presentation form, in any case, with or without the last dot. ``search_domains``
    are those of the pod's resolver, ``cluster_domain`` the mesh's (``cluster.local``).
    """
    name = _plain(question_name)
    requested = f"{name}."
    if qtype not in {TYPE_A, TYPE_AAAA}:
        why = "Only addresses are answered from the mesh."
        return DnsAnswer(DnsAnswerKind.FORWARD, requested, why=why)
    if not name or "\\" in name:
        # A hostname has no escaped character, and such a name could not be split at its dots.
        return DnsAnswer(DnsAnswerKind.FORWARD, requested, why="It is no hostname.")
    domain = _plain(cluster_domain)
    found = _find(
        view,
        client,
        name,
        domain=domain,
        search_domains=search_domains,
        preferred_namespace=preferred_namespace,
    )
    if found is None:
        why = "No service that we can see has this name."
        return DnsAnswer(DnsAnswerKind.FORWARD, requested, why=why)
    service, alias = found
    why = f"{alias.name} is service {service.key}."
    version = 4 if qtype == TYPE_A else 6
    if not _supports(service, version, ipv6_enabled=ipv6_enabled):
        result = "service does not support this record type"
        return DnsAnswer(DnsAnswerKind.NO_RECORDS, requested, result=result, service=service, why=why)
    addresses = _addresses(view, service, client.network, version)
    if not addresses:
        return DnsAnswer(DnsAnswerKind.NO_RECORDS, requested, result="no records", service=service, why=why)
    random.shuffle(addresses)
    cname = None
    if alias.stripped is not None and not service.hostname.startswith("*."):
        cname = f"{alias.stripped}."
    return DnsAnswer(
        DnsAnswerKind.RECORDS,
        requested,
        owner=cname or requested,
        cname=cname,
        addresses=tuple(addresses),
        result="success",
        service=service,
        why=why,
    )


def pod_search_domains(namespace: str, cluster_domain: str) -> tuple[str, str, str]:
    """Returns the search domains that Kubernetes gives a pod.

    What else its dnsConfig says is not known to us.
    """
    return f"{namespace}.svc.{cluster_domain}", f"svc.{cluster_domain}", cluster_domain


def aliases(name: str, namespace: str, domain: str, search_domains: Sequence[str]) -> Iterator[Alias]:
    """Returns the spellings of a name (lower case, no last dot) in the order of trying, each once."""
    seen: set[str] = set()
    for alias in _all_aliases(name, namespace, domain, search_domains):
        if alias.name not in seen:
            seen.add(alias.name)
            yield alias


def _all_aliases(name: str, namespace: str, domain: str, search_domains: Sequence[str]) -> Iterator[Alias]:
    yield Alias(name, None)
    for expanded in _expansions(name, namespace, domain):
        yield Alias(expanded, None)
    for search in search_domains:
        ending = f".{_plain(search)}"
        if len(ending) > 1 and len(name) > len(ending) and name.endswith(ending):
            stripped = name[: -len(ending)]
            yield Alias(stripped, stripped)
            for expanded in _expansions(stripped, namespace, domain):
                yield Alias(expanded, stripped)


def _expansions(name: str, namespace: str, domain: str) -> Iterator[str]:
    """Returns what Kubernetes may mean by a name: svc, svc.namespace, svc.namespace.svc, and so on."""
    labels = name.count(".") + 1
    is_service = name.endswith(".svc")
    if labels == 1:
        yield f"{name}.{namespace}.svc.{domain}"
    elif labels == 2:
        yield f"{name}.svc.{domain}"
        yield f"{name}.{namespace}.svc.{domain}"
    elif labels == 3:
        if is_service:
            yield f"{name}.{domain}"
        yield f"{name}.svc.{domain}"
    elif labels == 4 and is_service:
        yield f"{name}.{domain}"


def _wildcards(name: str) -> Iterator[str]:
    """Returns the name, then with ``*`` for its first label, its first two, and so on; never only ``*``."""
    yield name
    rest = name.partition(".")[2]
    while rest:
        yield f"*.{rest}"
        rest = rest.partition(".")[2]


def _find(
    view: MeshView,
    client: Workload,
    name: str,
    *,
    domain: str,
    search_domains: Sequence[str],
    preferred_namespace: str | None,
) -> tuple[Service, Alias] | None:
    for alias in aliases(name, client.namespace, domain, search_domains):
        for hostname in _wildcards(alias.name):
            candidates = [
                service
                for service in view.services_by_hostname(hostname)
                if (service.vips or service.hostname.endswith(f".svc.{domain}"))
                and is_visible(service, client.namespace)
            ]
            service = best_service(candidates, client.namespace, preferred_namespace)
            if service is not None:
                return service, alias
    return None


def _supports(service: Service, version: int, *, ipv6_enabled: bool) -> bool:
    if version == 6:
        return ipv6_enabled and service.ip_families is not IpFamilies.IPV4
    return service.ip_families is not IpFamilies.IPV6


def _addresses(view: MeshView, service: Service, network: str, version: int) -> list[IPAddress]:
    if service.vips:
        found = [vip.ip for vip in service.vips if vip.network == network and vip.ip.version == version]
        return list(dict.fromkeys(found))
    if service.cidr_vips:
        return []
    found = []
    for uid in view.endpoints(service):
        workload = view.workload(uid)
        if workload is not None:
            found += [ip for ip in workload.addresses if ip.version == version][:1]
    return list(dict.fromkeys(found))


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")
