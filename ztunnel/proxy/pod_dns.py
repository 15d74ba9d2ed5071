"""Makes the DNS proxy of a pod."""

from __future__ import annotations

from ztunnel.config.model import ProxyMode
from ztunnel.decide.dns_names import pod_search_domains
from ztunnel.dns.dns_proxy import DnsProxy
from ztunnel.dns.listeners import DnsSockets
from ztunnel.dns.resolv_conf import ResolvConf, read_resolv_conf
from ztunnel.dns.resolver import Resolver
from ztunnel.dns.upstream import Upstream
from ztunnel.model.workload import Workload
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.podcontext import PodContext
from ztunnel.tunnel.failures import UnknownWorkloadError

log = get_logger("dns::server")


class _PodClient:
    """The client of all queries: the pod's own workload, since only the pod itself uses its resolver."""

    def __init__(self, pod: PodContext) -> None:
        self._pod = pod

    def known(self) -> Workload | None:
        return self._pod.known_workload()

    async def wait(self) -> Workload | None:
        try:
            return await self._pod.local_workload()
        except UnknownWorkloadError:
            return None


def make_resolver(pod: PodContext, conf: ResolvConf | None = None) -> Resolver:
    """Returns the pod's resolver.

    conf: the nameservers for names outside the mesh; None reads ztunnel's own /etc/resolv.conf now.
    """
    shared = pod.shared
    config = shared.config
    if conf is None:
        conf = read_resolv_conf()
    if not conf.nameservers:
        log.warning(
            "names that are not of the mesh cannot be resolved: there is no nameserver", error=conf.problem
        )
    domains = conf.search
    if config.proxy_mode is ProxyMode.SHARED:
        domains = pod_search_domains(pod.info.namespace, config.cluster_domain)
    return Resolver(
        pod=pod.info.name,
        namespace=pod.info.namespace,
        config=config,
        view=shared.store,
        client=_PodClient(pod),
        upstream=Upstream(conf, pod.sockets, mark=pod.mark, random=shared.random, bounds=shared.bounds.dns),
        search_domains=domains,
        traffic=shared.traffic,
        random=shared.random,
    )


def make_dns_proxy(pod: PodContext, resolver: Resolver, sockets: DnsSockets) -> DnsProxy:
    """Returns the pod's DNS proxy. ``sockets``: as for `DnsProxy`."""
    shared = pod.shared
    address = shared.config.dns_proxy_addr
    return DnsProxy(
        resolver, sockets, name=pod.name, address=address, budget=shared.budget, bounds=shared.bounds.dns
    )
