"""Meshes of any size, as the control plane would send them, for measurements. They are the same each time."""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.messages import MeshDelta, Resource, ResourceKind
from ztunnel.pb.istio import workload as pb

PODS_PER_SERVICE = 10
NAMESPACES = 200
NODES = 1000
NODE = "node-1"
NETWORK = "network1"


def workload(number: int) -> Resource:
    """Returns a pod of some 200 bytes, which belongs to one service."""
    app, namespace = number // PODS_PER_SERVICE, f"ns-{number // PODS_PER_SERVICE % NAMESPACES}"
    name = f"app-{app}-7d4b9c6f5-{number:05x}"
    uid = f"Kubernetes//Pod/{namespace}/{name}"
    message = pb.Workload(
        uid=uid,
        name=name,
        namespace=namespace,
        addresses=[pod_address(number)],
        network=NETWORK,
        tunnel_protocol=pb.TunnelProtocol.HBONE,
        service_account=f"sa-{app % 50}",
        node=f"node-{number % NODES}",
        canonical_name=f"app-{app}",
        canonical_revision="latest",
        workload_type=pb.WorkloadType.POD,
        workload_name=f"app-{app}",
        services={
            f"{namespace}/{hostname(app)}": pb.PortList(ports=[pb.Port(service_port=80, target_port=8080)])
        },
        cluster_id="Kubernetes",
    )
    return Resource(uid, bytes(pb.Address(workload=message)))


def service(number: int) -> Resource:
    """Returns a Kubernetes service with one address and two ports."""
    namespace = f"ns-{number % NAMESPACES}"
    message = pb.Service(
        name=f"app-{number}",
        namespace=namespace,
        hostname=hostname(number),
        addresses=[pb.NetworkAddress(network=NETWORK, address=service_address(number))],
        ports=[pb.Port(service_port=80, target_port=8080), pb.Port(service_port=443, target_port=8443)],
        ip_families=pb.IpFamilies.IPV4_ONLY,
        canonical=True,
    )
    return Resource(f"{namespace}/{hostname(number)}", bytes(pb.Address(service=message)))


def hostname(number: int) -> str:
    """Returns the hostname of a service."""
    return f"app-{number}.ns-{number % NAMESPACES}.svc.cluster.local"


def pod_address(number: int) -> bytes:
    """Returns the address of a pod, as its four bytes."""
    return (0x0A000000 + number).to_bytes(4, "big")


def service_address(number: int) -> bytes:
    """Returns the address of a service, as its four bytes."""
    return (0xAC100000 + number).to_bytes(4, "big")


def resources(workloads: int) -> Iterator[Resource]:
    """Yields a whole mesh: the services first, then their pods."""
    for number in range(workloads // PODS_PER_SERVICE):
        yield service(number)
    for number in range(workloads):
        yield workload(number)


def sync(workloads: int) -> MeshDelta:
    """Returns a whole mesh as one response."""
    return MeshDelta(number=0, kind=ResourceKind.ADDRESS, resources=tuple(resources(workloads)))
