"""What a person means by a name: a pod, a service, an address; and the nearest for a name that is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from heapq import nlargest
from itertools import islice

from ztunnel.decide.balance import best_service, find_address
from ztunnel.errors import ZtunnelError
from ztunnel.explain.catalogue import Catalogue
from ztunnel.model.address import IPAddress, SocketAddress, parse_ip
from ztunnel.model.service import Service
from ztunnel.model.workload import Workload

NEAREST = 5
"""Names that are offered in place of one that does not exist."""

_COMPARED = 400
"""Names that are compared in full: in a big mesh those that share a beginning with what was asked for."""

_READ = 2000
"""Workloads that are read one by one for a name that no uid ends in: a question must not hold up traffic."""


class UnclearError(ZtunnelError):
    """A question without an answer as it stands; ``nearest`` are names that exist."""

    code = "ZT-EXP-001"

    def __init__(self, text: str, nearest: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.nearest = tuple(nearest)


@dataclass(frozen=True, slots=True)
class Destination:
    """What a client connects to. ``how`` says how the name came to be this address."""

    address: SocketAddress
    how: str
    service: Service | None = None


def find_source(catalogue: Catalogue, text: str, network: str) -> Workload:
    """The workload that ``namespace/name``, a uid, or an address (``network/ip`` too) means.

    Raises UnclearError.
    """
    found = _workload(catalogue, text, network)
    if found is None:
        names = (_short(uid) for uid in catalogue.uids())
        raise UnclearError(f"There is no workload {text}.", nearest_names(text, names))
    return found


def find_destination(
    catalogue: Catalogue, text: str, source: Workload, network: str, domain: str
) -> Destination:
    """The address that a client at ``source`` connects to, if it asks for ``text``.

    An ``ip:port``; a service as ``namespace/name``, or by a hostname as the pod's DNS completes it; a pod as
    ``namespace/name`` or uid; each with ``:port``, which may be left out where there is only one. Raises
    UnclearError.
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
            raise UnclearError(f"{text} needs a port: {text}:80 for instance.")
        return Destination(SocketAddress(ip, port), "")
    service = _service(catalogue, name, source, domain)
    if service is not None:
        return _of_service(catalogue, service, _port(service, port, text), source)
    workload = _workload(catalogue, name, network)
    if workload is None:
        keys = catalogue.services()
        raise UnclearError(
            f"There is no service or workload {name} that {source.namespace}/{source.name} could mean.",
            nearest_names(name, (f"{key.namespace}/{key.hostname.partition('.')[0]}" for key in keys)),
        )
    if port is None:
        raise UnclearError(f"{text} is a workload, so it needs a port: {text}:80 for instance.")
    if not workload.addresses:
        raise UnclearError(f"Workload {workload.uid} has no address of its own; ask for one of its services.")
    address = SocketAddress(workload.addresses[0], port)
    return Destination(address, f"{text} is workload {workload.uid}.")


def _of_service(catalogue: Catalogue, service: Service, port: int, source: Workload) -> Destination:
    vips = [vip for vip in service.vips if vip.network == source.network] or list(service.vips)
    if vips:
        return Destination(
            SocketAddress(vips[0].ip, port),
            f"{service.hostname} is service {service.key}, with the virtual address {vips[0].ip}.",
            service,
        )
    for uid, endpoint in sorted(catalogue.view.endpoints(service).items()):
        workload = catalogue.view.workload(uid)
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


def _service(catalogue: Catalogue, name: str, source: Workload, domain: str) -> Service | None:
    view = catalogue.view
    namespace, slash, short = name.partition("/")
    if slash:
        exact = view.service(namespace, short) or view.service(namespace, f"{short}.{namespace}.svc.{domain}")
        return exact or _by_short_name(catalogue, namespace, short)
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


def _by_short_name(catalogue: Catalogue, namespace: str, name: str) -> Service | None:
    """A service by its object's name, where the hostname is another (ServiceEntry, another domain)."""
    for key in islice(catalogue.services(), _READ):
        if key.namespace == namespace:
            service = catalogue.view.service(*key)
            if service is not None and service.name == name:
                return service
    return None


def _workload(catalogue: Catalogue, text: str, network: str) -> Workload | None:
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
    uids = [uid for uid in catalogue.uids() if uid.endswith(tail)]
    if uids:
        # a pod before a WorkloadEntry of the same name
        return view.workload(min(uids, key=lambda uid: ("/Pod/" not in uid, uid)))
    namespace, _, name = text.partition("/")
    for uid in islice(catalogue.uids(), _READ):
        workload = view.workload(uid)
        if workload is not None and (workload.namespace, workload.name) == (namespace, name):
            return workload
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
    """``namespace/name`` of a uid."""
    return "/".join(uid.rsplit("/", 2)[-2:])


def nearest_names(text: str, names: Iterable[str]) -> list[str]:
    """Of all names those most like a text, the best first; only those that are alike at all."""
    wanted = text.casefold()
    start = wanted.rpartition("/")[2][:2]
    known = set(names)
    if len(known) > _COMPARED:
        space = wanted.partition("/")[0]
        known = {
            name
            for name in known
            if name.casefold().startswith(f"{space}/") or name.rpartition("/")[2].casefold().startswith(start)
        }
    scored = ((_likeness(wanted, name.casefold()), name) for name in islice(sorted(known), _COMPARED))
    return [name for score, name in nlargest(NEAREST, scored) if score > 0.5]


def _likeness(wanted: str, name: str) -> float:
    last = SequenceMatcher(None, wanted.rpartition("/")[2], name.rpartition("/")[2], autojunk=False)
    if last.real_quick_ratio() < 0.5:
        return 0.0
    whole = SequenceMatcher(None, wanted, name, autojunk=False)
    return max(last.ratio(), whole.ratio())
