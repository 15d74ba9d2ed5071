"""Examples for the corpus: what each parser is for. ``python -m tests.fuzz.seeds`` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.dataplane.test_mesh_dump import gateway
from tests.hbone.test_fuzz import VALID
from tests.support import big_meshes
from tests.xds.test_local_file import EXAMPLE, FULL
from ztunnel.dns.message import make_query
from ztunnel.pb.envoy.service.discovery import v3
from ztunnel.pb.google import protobuf
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.pb.istio.workload import zds
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

_DUMP = {
    "workloads": [{"workloadIps": ["10.0.0.1"], "namespace": "n", "uid": "u", "services": ["n/h"]}],
    "services": [],
    "policies": [],
    "stagedServices": {"n/h": {"u": {"port": {"80": 8080}, "status": "Healthy", "workloadUid": "u"}}},
}

CORPUS = Path(__file__).with_name("corpus")


def _policy() -> bytes:
    match = security.Match(
        namespaces=[security.StringMatch(prefix="a")],
        not_principals=[security.StringMatch(presence=protobuf.Empty())],
        service_accounts=[security.ServiceAccountMatch(namespace="n", service_account="s")],
        source_ips=[security.Address(address=bytes(4), length=8)],
        destination_ports=[80],
    )
    rule = security.Rule(clauses=[security.Clause(matches=[match])])
    return bytes(security.Authorization(name="p", namespace="n", rules=[rule], action=security.Action.DENY))


def _workload() -> bytes:
    message = pb.Workload(
        uid="u",
        namespace="n",
        addresses=[bytes(16)],
        waypoint=gateway(namespace="ns", hostname="w"),
        network_gateway=gateway(bytes(4)),
        application_tunnel=pb.ApplicationTunnel(protocol=pb.ApplicationTunnelProtocol.PROXY, port=1),
        locality=pb.Locality(region="r"),
        services={"n/h": pb.PortList(ports=[pb.Port(service_port=80)])},
        capacity=2,
    )
    return bytes(pb.Address(workload=message))


def _response(type_url: str, *bodies: bytes) -> bytes:
    resources = [
        v3.Resource(name=f"n{i}", resource=protobuf.Any(value=body)) for i, body in enumerate(bodies)
    ]
    return bytes(
        v3.DeltaDiscoveryResponse(
            type_url=type_url, nonce="n", resources=resources, removed_resources=["gone"]
        )
    )


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names of targets with an example each."""
    yield (
        "admin",
        b"GET /config_dump?a=b%20c HTTP/1.1\r\nHost: h\r\n\r\nPOST /logging?level=info HTTP/1.0\r\n\r\n",
    )
    yield "admin", b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    yield (
        "connect-headers",
        (
            b'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nfor=192.0.2.60;host="a.b:80";proto=http\n'
            b"network1\nk8s.cluster.name=c,k8s.namespace.name=n,service.name=s\n[fd00::1]:80"
        ),
    )
    yield "crl", b"-----BEGIN X509 CRL-----\nMA==\n-----END X509 CRL-----\n"
    yield "dns", make_query("a.example.com", 1).with_id(7)
    yield (
        "environment",
        b"PROXY_MODE=shared\nXDS_ADDRESS=https://a:1\nDNS_PROXY_ADDR=[::]:1\nHTTP2_STREAM_WINDOW_SIZE=1048576",
    )
    yield "hbone", b"\x20" + VALID[:400]
    yield "hbone", b"\xa0" + VALID[:200]
    yield "hbone-and-h2", bytes(range(256))
    yield (
        "mesh-config",
        b"defaultConfig:\n  discoveryAddress: a:1\n  concurrency: 2\n  proxyMetadata: {A: b}\n",
    )
    yield "resolv-conf", b"nameserver 10.0.0.1\nsearch a.b c\noptions ndots:5 timeout:2 attempts:3\n"
    yield "resources", _workload()
    yield "resources", _policy()
    yield "resources", big_meshes.service(3).body
    yield (
        "saved-dump",
        json.dumps(_DUMP).encode(),
    )
    yield "socks", b"\x05\x01\x00\x05\x01\x00\x03\x03a.b\x00P"
    yield "socks", b"\x05\x02\x00\x01\x05\x01\x00\x01\x0a\x00\x00\x01\x00P"
    yield "xds", _response(ADDRESS_TYPE, _workload(), big_meshes.service(3).body)
    yield "xds", _response(AUTHORIZATION_TYPE, _policy())
    yield "yaml", EXAMPLE.encode()
    yield "yaml", FULL.encode()
    yield "yaml", b"a: &x [1, 0x2, .5e3]\nb: *x\nc: !Exact foo\nd: |\n  text\n"
    info = zds.WorkloadInfo(name="n", namespace="ns", service_account="sa")
    yield "zds", bytes(zds.WorkloadRequest(add=zds.AddWorkload(uid="u", workload_info=info)))
    yield "zds", bytes(zds.WorkloadRequest(snapshot_sent=zds.SnapshotSent()))


def main() -> None:
    for number, (name, body) in enumerate(seeds()):
        directory = CORPUS / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"seed-{number:02}").write_bytes(body)


if __name__ == "__main__":
    main()
