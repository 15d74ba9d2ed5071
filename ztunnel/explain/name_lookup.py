"""Finds what a person means by a name: a pod, a service, an address.

A name that no index has is searched among all names, with pauses (`ztunnel.slices`). For an unknown name the
error has the most similar ones (`ztunnel.explain.nearest`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest

from ztunnel.bounds import DEFAULTS, ExplainBounds
from ztunnel.decide.balance import best_service, find_address
from ztunnel.errors import ZtunnelError
from ztunnel.explain.catalogue import Catalogue
from ztunnel.explain.nearest import nearest_names
from ztunnel.model.address import IPAddress, SocketAddress, parse_ip
from ztunnel.model.service import Service
from ztunnel.model.workload import Workload
from ztunnel.slices import Slices

_READ_SLICE = 50
"""Objects that are read between two pauses, about 20 µs each."""


class UnclearError(ZtunnelError):
    """A question that cannot be answered as it is. ``nearest``: similar names that exist."""

    code = "ZT-EXP-001"

    def __init__(self, text: str, nearest: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.nearest = tuple(nearest)


@dataclass(frozen=True, slots=True)
class Destination:
    """What a client connects to. ``how``: how the name was turned into this address."""

    address: SocketAddress
    how: str
    service: Service | None = None


def find_source(
    catalogue: Catalogue, text: str, network: str, bounds: ExplainBounds = DEFAULTS.explain
) -> Slices[Workload]:
    """Returns the workload for ``namespace/name``, a uid, or an address (also ``network/ip``).

    Raises UnclearError.
    """
    found = yield from _workload(catalogue, text, network, bounds)
    if found is None:
        names = ([_short(uid) for uid in uids] for uids in catalogue.uids())
        raise UnclearError(f"There is no workload {text}.", (yield from nearest_names(text, names, bounds)))
    return found


def find_destination(
    catalogue: Catalogue,
    text: str,
    source: Workload,
    network: str,
    domain: str,
    bounds: ExplainBounds = DEFAULTS.explain,
) -> Slices[Destination]:
    """Returns the address to which a client at ``source`` connects if it asks for ``text``.

    ``text`` is an ``ip:port``; a service as ``namespace/name``, or by a hostname as the pod's DNS completes
    it; a pod as ``namespace/name`` or uid. Each may have ``:port``, which is only needed if there is more
    than one. Raises UnclearError.
    """
    try:
        return Destination(SocketAddress.parse(text), "")
    except ValueError:
        pass
    name, port = _split(text)
    ip = _ip(name)
    if ip is not None:
        found = find_address(catalogue.view, network, ip, source.namespace)
        if isinstance(found, Service):
            return Destination(SocketAddress(ip, _port(found, port, text)), "", found)
        if port is None:
            raise UnclearError(f"{text} needs a port: {SocketAddress(ip, 80)} for instance.")
        return Destination(SocketAddress(ip, port), "")
    if port is None and (wrong := text.rpartition(":")[2]) != text and wrong.isdigit():
        raise UnclearError(f"{wrong} is no port: ports are 1 to 65535.")
    service = yield from _service(catalogue, name, source, domain, bounds)
    if service is not None:
        return _of_service(catalogue, service, _port(service, port, text), source, bounds)
    workload = yield from _workload(catalogue, name, network, bounds)
    if workload is None:
        raise UnclearError(
            f"There is no service or workload {name} that {source.namespace}/{source.name} could mean.",
            (yield from nearest_names(_as_shown(name, source), _service_names(catalogue), bounds)),
        )
    if port is None:
        raise UnclearError(f"{text} is a workload, so it needs a port: {text}:80 for instance.")
    if not workload.addresses:
        raise UnclearError(f"Workload {workload.uid} has no address of its own; ask for one of its services.")
    address = SocketAddress(workload.addresses[0], port)
    return Destination(address, f"{text} is workload {workload.uid}.")


def _of_service(
    catalogue: Catalogue, service: Service, port: int, source: Workload, bounds: ExplainBounds
) -> Destination:
    vips = [vip for vip in service.vips if vip.network == source.network] or list(service.vips)
    if vips:
        return Destination(
            SocketAddress(vips[0].ip, port),
            f"{service.hostname} is service {service.key}, with the virtual address {vips[0].ip}.",
            service,
        )
    endpoints = catalogue.view.endpoints(service)
    for uid in nsmallest(bounds.headless_endpoints, endpoints):
        workload, endpoint = catalogue.view.workload(uid), endpoints[uid]
        own = endpoint.ports.get(port) or service.ports.get(port)
        if workload is not None and workload.addresses and own:
            return Destination(
                SocketAddress(workload.addresses[0], own),
                f"Service {service.key} is headless: its name leads to its endpoints, {uid} for instance.",
                service,
            )
    raise UnclearError(f"Service {service.key} has neither a virtual address nor an endpoint with one.")


def _port(service: Service, port: int | None, text: str) -> int:
    if port is not None:
        return port
    if len(service.ports) == 1:
        return next(iter(service.ports))
    ports = [f"{text}:{one}" for one in sorted(service.ports)]
    raise UnclearError(f"Service {service.key} has {len(ports)} ports; which one is meant?", ports)


def _service(
    catalogue: Catalogue, name: str, source: Workload, domain: str, bounds: ExplainBounds
) -> Slices[Service | None]:
    view = catalogue.view
    namespace, slash, short = name.partition("/")
    if slash:
        exact = view.service(namespace, short) or view.service(namespace, f"{short}.{namespace}.svc.{domain}")
        return exact or (yield from _by_short_name(catalogue, namespace, short, bounds))
    for hostname in (
        name.rstrip("."),
        f"{name}.{source.namespace}.svc.{domain}",
        f"{name}.svc.{domain}",
        f"{name}.{domain}",
    ):
        found = best_service(view.services_by_hostname(hostname), source.namespace)
        if found is not None:
            return found
    return None


def _by_short_name(
    catalogue: Catalogue, namespace: str, name: str, bounds: ExplainBounds
) -> Slices[Service | None]:
    """Returns a service by its object's name, if its hostname differs (ServiceEntry, another domain)."""
    known: list[str] = []
    for keys in catalogue.services():
        hostnames = (key.hostname for key in keys if key.namespace == namespace)
        known = nsmallest(bounds.names_read, (*known, *hostnames))
        yield
    for number, hostname in enumerate(known, 1):
        service = catalogue.view.service(namespace, hostname)
        if service is not None and service.name == name:
            return service
        if number % _READ_SLICE == 0:
            yield
    return None


def _as_shown(name: str, source: Workload) -> str:
    """Returns a hostname as `_service_names` would show it."""
    if "/" in name:
        return name
    short, _, rest = name.partition(".")
    return f"{rest.partition('.')[0] or source.namespace}/{short}"


def _service_names(catalogue: Catalogue) -> Iterator[list[str]]:
    """Returns ``namespace/name`` of all services, from their hostnames."""
    for keys in catalogue.services():
        yield [f"{key.namespace}/{key.hostname.partition('.')[0]}" for key in keys]


def _workload(
    catalogue: Catalogue, text: str, network: str, bounds: ExplainBounds
) -> Slices[Workload | None]:
    view = catalogue.view
    exact = view.workload(text)
    if exact is not None:
        return exact
    where, _, last = text.rpartition("/")
    ip = _ip(last)
    if ip is not None:
        return view.workload_by_address(where or network, ip)
    if "/" not in text:
        return None
    tail = f"/{text}"
    found: list[str] = []
    for uids in catalogue.uids():
        found += [uid for uid in uids if uid.endswith(tail)]
        yield
    if found:
        # a pod before a WorkloadEntry of the same name
        return view.workload(min(found, key=lambda uid: ("/Pod/" not in uid, uid)))
    return (yield from _by_own_name(catalogue, text, bounds))


def _by_own_name(catalogue: Catalogue, text: str, bounds: ExplainBounds) -> Slices[Workload | None]:
    """Returns a workload whose uid does not end in its name: the first of those that mention it, by uid."""
    namespace, _, name = text.partition("/")
    known: list[str] = []
    for uids in catalogue.uids():
        known = nsmallest(
            bounds.names_read, (*known, *(uid for uid in uids if catalogue.mentions(uid, name)))
        )
        yield
    for number, uid in enumerate(known, 1):
        workload = catalogue.read(uid)
        if workload is not None and (workload.namespace, workload.name) == (namespace, name):
            return workload
        if number % _READ_SLICE == 0:
            yield
    return None


def _split(text: str) -> tuple[str, int | None]:
    name, colon, port = text.rpartition(":")
    if colon and port.isascii() and port.isdigit() and 0 < int(port) <= 0xFFFF and not name.endswith(":"):
        return name, int(port)
    return text, None


def _ip(text: str) -> IPAddress | None:
    try:
        return parse_ip(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _short(uid: str) -> str:
    """Returns ``namespace/name`` of a uid."""
    return "/".join(uid.rsplit("/", 2)[-2:])
