"""A pod's queries, answered from the mesh or by the real resolver, counted and logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

import trio

from ztunnel.config.model import Config
from ztunnel.decide.dns_names import TYPE_A, TYPE_AAAA, DnsAnswer, DnsAnswerKind, answer
from ztunnel.decide.mesh_view import MeshView
from ztunnel.dns.dns_errors import UpstreamError
from ztunnel.dns.lookup import addresses_in
from ztunnel.dns.message import Query, Rcode, Reply, make_query, read_reply
from ztunnel.dns.reply import error_reply, own_reply, reply_limit
from ztunnel.dns.upstream import Upstream
from ztunnel.model.address import IPAddress, parse_ip
from ztunnel.model.workload import Workload
from ztunnel.observe.filter import Level
from ztunnel.observe.logging import get_logger
from ztunnel.observe.traffic import TrafficMetrics, dns_labels

log = get_logger("dns")

_ERROR_NAMES = {
    Rcode.FORMERR: "Form Error",
    Rcode.SERVFAIL: "Server Failure",
    Rcode.NOTIMP: "Not Implemented",
    Rcode.REFUSED: "Query Refused",
}


class Client(Protocol):
    """The workload that makes the queries."""

    def known(self) -> Workload | None:
        """Returns it if the control plane has sent it, else None."""
        ...

    async def wait(self) -> Workload | None:
        """Wait a while for it. Returns None if it did not come."""
        ...


class Resolver:
    """Answers the queries of one pod. It has no tasks of its own.

    pod, namespace: for the log. view: the mesh. search_domains: those of the pod's own resolver, as far as
    they are known.
    """

    def __init__(
        self,
        *,
        pod: str,
        namespace: str,
        config: Config,
        view: MeshView,
        client: Client,
        upstream: Upstream,
        search_domains: Sequence[str],
        traffic: TrafficMetrics,
        random: Random,
    ) -> None:
        self.upstream = upstream
        self._pod = pod
        self._namespace = namespace
        self._config = config
        self._view = view
        self._client = client
        self._search_domains = search_domains
        self._traffic = traffic
        self._random = random

    def from_mesh(self, query: Query, *, tcp: bool) -> bytes | None:
        """Returns the reply if the mesh can give it at once; None if `resolve` has to be called."""
        client = self._client.known()
        if client is None:
            return None
        decision = self._decide(client, query)
        if decision.kind is DnsAnswerKind.FORWARD:
            return None
        return self._own(client, query, decision, tcp=tcp)

    async def resolve(self, query: Query, *, tcp: bool) -> bytes:
        """Returns the reply of the mesh or of the real resolver; SERVFAIL when there is none."""
        client = self._client.known() or await self._client.wait()
        if client is None:
            return self._unknown(query, tcp=tcp)
        decision = self._decide(client, query)
        if decision.kind is not DnsAnswerKind.FORWARD:
            return self._own(client, query, decision, tcp=tcp)
        try:
            return await self._forward(client, query, tcp=tcp)
        except UpstreamError:
            return error_reply(query, Rcode.SERVFAIL)

    async def transfer(self, query: Query, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Forward a query whose answer has many messages, and pass each to ``take``; SERVFAIL if none comes.

        Raises what ``take`` raises.
        """
        client = self._client.known() or await self._client.wait()
        if client is None:
            await take(self._unknown(query, tcp=True))
            return
        labels = self._labels(client, query, tcp=True)
        self._traffic.dns_request(labels)
        self._traffic.dns_upstream_request(labels)
        try:
            messages = await self.upstream.transfer(query, take)
        except UpstreamError as error:
            self._traffic.dns_upstream_failure(labels)
            self._log(query, f"forwarding failed (net error: {error})", 0)
            await take(error_reply(query, Rcode.SERVFAIL))
        else:
            self._log(query, "forwarded", messages)

    def refuse(self, query: Query, error: UpstreamError, *, tcp: bool) -> bytes:
        """Returns SERVFAIL for a query that is not processed."""
        labels = self._labels(self._client.known(), query, tcp=tcp)
        self._traffic.dns_request(labels)
        self._traffic.dns_upstream_failure(labels)
        self._log(query, f"forwarding failed (net error: {error})", 0)
        return error_reply(query, Rcode.SERVFAIL)

    async def first_address(self, name: str, version: int) -> IPAddress | None:
        """Returns the first address (IP version 4 or 6) of a hostname, None if it has none or is invalid."""
        try:
            return parse_ip(name)
        except ValueError:
            pass
        try:
            query = make_query(name, TYPE_A if version == 4 else TYPE_AAAA)
        except ValueError:
            return None
        client = self._client.known() or await self._client.wait()
        if client is None:
            self._unknown(query, tcp=False)
            return None
        decision = self._decide(client, query)
        if decision.kind is not DnsAnswerKind.FORWARD:
            self._own(client, query, decision, tcp=False)
            return decision.addresses[0] if decision.addresses else None
        try:
            reply = await self._forward(client, query, tcp=False)
            if read_reply(reply).truncated:
                reply = await self._forward(client, query, tcp=True)
        except UpstreamError:
            return None
        found = addresses_in(reply).addresses
        return found[0] if found else None

    # -- the parts ---------------------------------------------------------------------------------------

    def _decide(self, client: Workload, query: Query) -> DnsAnswer:
        config = self._config
        return answer(
            self._view,
            client,
            query.name,
            query.qtype,
            search_domains=self._search_domains,
            cluster_domain=config.cluster_domain,
            ipv6_enabled=config.ipv6_enabled,
            preferred_namespace=config.prefered_service_namespace,
            random=self._random,
        )

    def _own(self, client: Workload, query: Query, decision: DnsAnswer, *, tcp: bool) -> bytes:
        self._traffic.dns_request(self._labels(client, query, tcp=tcp))
        self._log(query, decision.result, len(decision.addresses))
        return own_reply(query, decision, reply_limit(query, tcp=tcp))

    async def _forward(self, client: Workload, query: Query, *, tcp: bool) -> bytes:
        """Returns the real resolver's reply, as it is. Raises UpstreamError."""
        traffic = self._traffic
        labels = self._labels(client, query, tcp=tcp)
        traffic.dns_request(labels)
        traffic.dns_upstream_request(labels)
        began = trio.current_time()
        try:
            message = await self.upstream.ask(query, tcp=tcp)
        except UpstreamError as error:
            traffic.dns_upstream_failure(labels)
            self._log(query, f"forwarding failed (net error: {error})", 0)
            raise
        finally:
            traffic.dns_upstream_duration(labels, trio.current_time() - began)
        reply = read_reply(message)
        problem = _problem(query, reply)
        if problem is None:
            self._log(query, "forwarded", reply.answers)
        else:
            # The Rust ztunnel counts these as errors, because its library does.
            traffic.dns_upstream_failure(labels)
            self._log(query, f"forwarding failed (net error: DNS error: {problem})", 0)
        return message

    def _unknown(self, query: Query, *, tcp: bool) -> bytes:
        log.debug("unknown source")
        self._traffic.dns_request(self._labels(None, query, tcp=tcp))
        return error_reply(query, Rcode.SERVFAIL)

    def _labels(self, client: Workload | None, query: Query, *, tcp: bool) -> tuple[str, ...]:
        return dns_labels(query.type_name, "tcp" if tcp else "udp", client)

    def _log(self, query: Query, result: str, endpoints: int) -> None:
        if log.is_enabled(Level.DEBUG):
            log.debug(
                "",
                **{"src.workload": self._pod, "src.namespace": self._namespace},
                query=query.type_name,
                domain=query.name.lower(),
                result=result,
                endpoints=endpoints,
            )


def _problem(query: Query, reply: Reply) -> str | None:
    """Returns what is wrong with an answer, in the Rust ztunnel's words; None for one with records."""
    if reply.rcode in _ERROR_NAMES:
        return f"error response: {_ERROR_NAMES[Rcode(reply.rcode)]}"
    if reply.rcode == Rcode.NXDOMAIN or (not reply.answers and not reply.truncated):
        return (
            "no records found for "
            f'Query {{ name: Name("{query.name.lower()}"), query_type: {query.type_name}, query_class: IN }}'
        )
    return None if reply.rcode == Rcode.NOERROR else f"error response: {reply.rcode}"
