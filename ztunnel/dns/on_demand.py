"""On-demand DNS: the addresses of a workload that the control plane knows only by hostname.

They are resolved when a connection needs them, with our own ``/etc/resolv.conf`` and its search list, in our
own network namespace. (The pod's DNS proxy has other rules.) Both use the same upstream code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from random import Random, SystemRandom

import trio

from ztunnel.bounds import DEFAULTS, DnsBounds
from ztunnel.dns.dns_errors import NameResolutionError, UpstreamError, UpstreamTimedOut
from ztunnel.dns.lookup import Found, look_up
from ztunnel.dns.resolv_conf import ResolvConf, read_resolv_conf
from ztunnel.dns.upstream import Upstream
from ztunnel.model.address import IPAddress, parse_ip
from ztunnel.observe.logging import get_logger
from ztunnel.sockets.factories import HostSockets

log = get_logger("dns::resolver")


class OnDemandResolver:
    """Resolves A and AAAA (only A when ``ipv6`` is off) in parallel, with a cache that respects TTLs.

    conf, upstream: for tests; by default ``/etc/resolv.conf`` at the first use, asked from our own namespace.
    """

    def __init__(
        self,
        *,
        ipv6: bool,
        random: Random | None = None,
        conf: ResolvConf | None = None,
        upstream: Upstream | None = None,
        bounds: DnsBounds = DEFAULTS.dns,
    ) -> None:
        self._bounds = bounds
        self._versions = (4, 6) if ipv6 else (4,)
        self._random = random or SystemRandom()
        self._conf = conf
        self._upstream = upstream
        self._cache: OrderedDict[tuple[str, int], tuple[float, Found]] = OrderedDict()

    async def resolve(self, hostname: str) -> Sequence[IPAddress]:
        """Returns all addresses of a hostname, which may itself be an address.

        None if it exists without addresses.

        Raises NameResolutionError when there is no answer.
        """
        try:
            return [parse_ip(hostname)]
        except ValueError:
            pass
        problem: UpstreamError | ValueError = UpstreamTimedOut()
        with trio.move_on_after(self._bounds.lookup_timeout):
            try:
                for name in self._candidates(hostname.lower()):
                    addresses = await self._resolve_one(name)
                    if addresses:
                        return addresses
            except (UpstreamError, ValueError) as error:
                problem = error
            else:
                return []
        log.warning("dns lookup failed", hostname=hostname, error=str(problem))
        raise NameResolutionError(str(problem))

    def _candidates(self, hostname: str) -> list[str]:
        """Returns the absolute names that a hostname may mean, in the order in which to try them."""
        conf = self._ready_conf()
        if hostname.endswith("."):
            return [hostname]
        searched = [f"{hostname}.{domain}" for domain in conf.search]
        return [hostname, *searched] if hostname.count(".") >= conf.ndots else [*searched, hostname]

    async def _resolve_one(self, name: str) -> list[IPAddress]:
        """Returns all addresses of one absolute name.

        Raises UpstreamError and ValueError when there are none.
        """
        found: list[IPAddress] = []
        failures: list[UpstreamError | ValueError] = []

        async def ask(version: int) -> None:
            try:
                found.extend(await self._ask(name, version))
            except (UpstreamError, ValueError) as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for version in self._versions:
                nursery.start_soon(ask, version, name=f"resolve {name} IPv{version}")
        if failures and not found:
            raise failures[0]
        return found

    async def _ask(self, name: str, version: int) -> Sequence[IPAddress]:
        key = name.removesuffix("."), version
        cached = self._cache.get(key)
        if cached is not None:
            expires, found = cached
            if trio.current_time() < expires:
                self._cache.move_to_end(key)
                return found.addresses
            del self._cache[key]
        found = await look_up(self._ready_upstream(), name, version)
        if found.ttl > 0:
            self._cache[key] = trio.current_time() + min(found.ttl, self._bounds.longest_ttl), found
            if len(self._cache) > self._bounds.cached_names:
                self._cache.popitem(last=False)
        return found.addresses

    def _ready_conf(self) -> ResolvConf:
        if self._conf is None:
            self._conf = read_resolv_conf()
        return self._conf

    def _ready_upstream(self) -> Upstream:
        if self._upstream is None:
            self._upstream = Upstream(self._ready_conf(), HostSockets(), mark=None, random=self._random)
        return self._upstream
