"""The mesh as one process knows it: all workloads, services and policies, found by what connections ask for.

`MeshStore` is the `ztunnel.decide.mesh_view.MeshView` of a running ztunnel. Only deltas change it. It has no
locks: callers read or change it without an await in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ztunnel.messages import MeshDelta, ResourceKind
from ztunnel.model.address import IPAddress, NamespacedHostname
from ztunnel.model.service import CidrVip, Endpoint, Service
from ztunnel.model.workload import Workload
from ztunnel.state.application import AddressApplication, Application, PolicyApplication
from ztunnel.state.policies import PolicyIndex
from ztunnel.state.services import ServiceIndex
from ztunnel.state.workloads import WorkloadIndex


class MeshStore:
    """The cache of the mesh. ``node_name`` is our node's, None if it has none (then each workload is ours).

    workloads, services, policies: for the dump; decisions use the methods of the view.
    """

    def __init__(self, node_name: str | None) -> None:
        self.workloads = WorkloadIndex(node_name)
        self.services = ServiceIndex()
        self.policies = PolicyIndex()
        # The part of the view that an index answers alone; `MeshView` says what each returns.
        self.workload = self.workloads.get
        self.workload_by_address = self.workloads.by_address
        self.workload_by_hostname = self.workloads.by_hostname
        self.local_workload = self.workloads.on_node
        self.policy = self.policies.get
        self.namespace_policies = self.policies.in_namespace
        self.global_policies = self.policies.everywhere

    def begin(self, delta: MeshDelta) -> Application:
        """Starts to put a delta into force; call `Application.step` until it returns True.

        One delta at a time: finish it before the next begins.
        """
        if delta.kind is ResourceKind.AUTHORIZATION:
            return PolicyApplication(delta, self.policies)
        return AddressApplication(delta, self.workloads, self.services)

    def apply(self, delta: MeshDelta) -> Application:
        """Puts a delta into force at once. Returns what it did."""
        application = self.begin(delta)
        while not application.step():
            pass
        return application

    def service(self, namespace: str, hostname: str) -> Service | None:
        """Returns the service with this key."""
        entry = self.services.entry(NamespacedHostname(namespace, hostname))
        return None if entry is None else self.services.service(entry)

    def services_by_vip(self, network: str, ip: IPAddress) -> Sequence[Service]:
        """Returns all services with exactly this virtual address, at most one a namespace, in store order."""
        return [self.services.service(entry) for entry in self.services.vips.exact(network, ip)]

    def services_by_cidr(self, network: str, ip: IPAddress) -> Sequence[tuple[CidrVip, Service]]:
        """Returns all virtual address ranges of this network that contain the address, in store order."""
        return [
            (vip, self.services.service(entry)) for vip, entry in self.services.vips.containing(network, ip)
        ]

    def services_by_hostname(self, hostname: str) -> Sequence[Service]:
        """Returns all services with exactly this hostname, at most one a namespace, in store order."""
        return [self.services.service(entry) for entry in self.services.by_hostname(hostname)]

    def endpoints(self, service: Service) -> Mapping[str, Endpoint]:
        """Returns the endpoints that a service's health policy takes, by workload uid; none if it is gone.

        Not to be changed, nor held across an await: it changes with the store.
        """
        return self.services.endpoints(service.key)

    def services_of(self, workload: Workload) -> Iterator[Service]:
        """Returns the known services that have this workload as an endpoint, in the workload's order."""
        for key in workload.services:
            entry = self.services.entry(key)
            if entry is not None and workload.uid in entry.endpoints:
                yield self.services.service(entry)
