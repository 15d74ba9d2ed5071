"""On-demand DNS: the addresses of a workload that the control plane knows only by hostname.

Resolved when a connection needs them, with our own ``/etc/resolv.conf`` and in its own network namespace
(not the pod's; that is the DNS proxy, which has other rules).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
import trio

from ztunnel.errors import ZtunnelError
from ztunnel.model.address import IPAddress, parse_ip
from ztunnel.observe.logging import get_logger

log = get_logger("dns::resolver")

CACHED_NAMES = 4096
LOOKUP_TIMEOUT = 15.0
"""Seconds for all attempts together, as for forwarded queries."""


class NameResolutionError(ZtunnelError):
    """A workload's hostname has no address now."""

    code = "ZT-DNS-001"


class OnDemandResolver:
    """Resolves A and AAAA (A alone when ``ipv6`` is off) in parallel, with a cache that honours TTLs.

    resolver: for tests; by default one made of ``/etc/resolv.conf`` at the first use.
    """

    def __init__(self, *, ipv6: bool, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        self._types = [dns.rdatatype.A, dns.rdatatype.AAAA] if ipv6 else [dns.rdatatype.A]
        self._resolver = resolver

    async def resolve(self, hostname: str) -> Sequence[IPAddress]:
        """All addresses of a hostname, which may itself be an address; none when it exists without any.

        Raises NameResolutionError when no answer could be had.
        """
        try:
            return [parse_ip(hostname)]
        except ValueError:
            pass
        answers: list[IPAddress] = []
        failures: list[dns.exception.DNSException | OSError] = []

        async def ask(kind: dns.rdatatype.RdataType) -> None:
            try:
                answer = await self._ready().resolve(hostname, kind, lifetime=LOOKUP_TIMEOUT, search=True)
            except dns.resolver.NoAnswer:
                return
            except (dns.exception.DNSException, OSError) as error:
                failures.append(error)
                return
            answers.extend(parse_ip(record.to_text()) for record in answer)

        async with trio.open_nursery() as nursery:
            for kind in self._types:
                nursery.start_soon(partial(ask, kind), name=f"resolve {hostname} {kind.name}")
        if failures and not answers:
            log.warning("dns lookup failed", hostname=hostname, error=str(failures[0]))
            raise NameResolutionError(str(failures[0]))
        return answers

    def _ready(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            resolver = dns.asyncresolver.Resolver()
            resolver.cache = dns.resolver.LRUCache(CACHED_NAMES)
            self._resolver = resolver
        return self._resolver
