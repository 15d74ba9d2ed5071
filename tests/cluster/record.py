"""Records what the cluster's real programs say, for tests of the stand-ins that play them without a cluster.

usage: python -m tests.cluster.record        (the cluster is up; writes tests/recorded/)

Recorded: the CNI agent's side of a ZDS conversation, packet by packet; the rules that istio-cni puts into a
pod; what istiod
answers to the requests for workloads, services and policies; a certificate chain that istiod's CA issues;
what is in a service
account's token. No secret is kept: tokens only by the names of what they claim, keys not at all.
"""

from __future__ import annotations

import array
import base64
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import trio

from tests.cluster import nodes, programs
from tests.cluster.look import NODE1, pods
from tests.cluster.mesh import NAMESPACE, Tools
from tests.cluster.places import CHECKOUT, places
from tests.cluster.record_xds import conversations
from tests.cluster.shell import run
from ztunnel.certs.ca_client import CREATE_CERTIFICATE as CA_METHOD
from ztunnel.certs.istio_ca import encode_request
from ztunnel.certs.request import make_signing_request
from ztunnel.config.load_from_machine import load_from_machine
from ztunnel.grpc.bridge import GrpcChannel
from ztunnel.inpod.codec import LARGEST_PACKET, encode_ack, encode_hello
from ztunnel.model.identity import Identity
from ztunnel.xds.connect import DELTA_STREAM as XDS_METHOD
from ztunnel.xds.node import encode_node
from ztunnel.xds.xds_session import XdsSession

TARGET = CHECKOUT / "tests" / "recorded"
_SOCKET = "/run/ztunnel/ztunnel.sock"
_TOKEN_SECONDS = 3600
_PASSING = """
apiVersion: v1
kind: Pod
metadata: {name: passing, namespace: demo}
spec:
  serviceAccountName: sleep
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
    - {name: c, image: "localhost/app:1", imagePullPolicy: IfNotPresent, command: [sleep, infinity]}
"""


def zds(seconds: float) -> list[dict[str, Any]]:
    """Packets of the agent to a ztunnel that connects, for that long; to be called in a node's namespaces."""
    packets: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(_SOCKET)
        sock.send(encode_hello())
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data, ancillary, flags, _ = sock.recvmsg(LARGEST_PACKET, socket.CMSG_SPACE(4 * 4))
            except TimeoutError:
                break
            descriptors = array.array("i")
            for _level, _kind, rights in ancillary:
                descriptors.frombytes(rights[: len(rights) - len(rights) % 4])
            for descriptor in descriptors:
                os.close(descriptor)
            packets.append(
                {
                    "packet": data.hex(),
                    "descriptors": len(descriptors),
                    "truncated": bool(flags & socket.MSG_TRUNC),
                }
            )
            sock.send(encode_ack(None))
    return packets


def rules(tools: Tools) -> dict[str, str]:
    """What iptables, ip6tables and ip say in a pod of the mesh."""
    pod = pods(tools, "demo", "app=sleep")[0]
    identity = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    tasks = run(*nodes.inside(NODE1, tools.places, "ctr", "-n", "k8s.io", "task", "ls"))
    [pid] = [line.split()[1] for line in tasks.splitlines() if line.startswith(identity)]

    def said(*command: str) -> str:
        lines = run(*nodes.inside(NODE1, tools.places, "nsenter", "-t", pid, "-n", *command)).splitlines()
        return "\n".join(line.rstrip() for line in lines if not line.startswith("#")) + "\n"

    return {
        "iptables": said("iptables-nft-save"),
        "ip6tables": said("ip6tables-nft-save"),
        "ip rule": said("ip", "rule"),
        "ip route": said("ip", "route", "show", "table", "100"),
    }


def _unpadded(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def _shape(value: Any) -> Any:
    """The names and kinds of what is in a JSON value."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in sorted(value.items())}
    return type(value).__name__


async def control_plane(tools: Tools) -> dict[str, Any]:
    """istiod's first answers, a chain of its CA, and the token with which they were had."""
    istiod = pods(tools, NAMESPACE, "app=istiod")[0]["status"]["podIP"]
    ztunnel = next(
        pod for pod in pods(tools, NAMESPACE, "app=ztunnel") if pod["spec"]["nodeName"] == NODE1.name
    )
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": ["istio-ca"],
            "expirationSeconds": _TOKEN_SECONDS,
            "boundObjectRef": {
                "kind": "Pod", "apiVersion": "v1",
                "name": ztunnel["metadata"]["name"], "uid": ztunnel["metadata"]["uid"],
            },
        },
    }  # fmt: skip
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/ztunnel/token"
    token = json.loads(tools.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(request)))[
        "status"
    ]["token"]
    header, payload, _ = token.split(".")
    claims = _unpadded(payload)
    root = tools.kubectl(
        "-n", NAMESPACE, "get", "configmap", "istio-ca-root-cert", "-o", r"jsonpath={.data.root-cert\.pem}"
    )
    metadata = [("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")]
    node = ztunnel["metadata"]
    config = load_from_machine(
        {
            "XDS_ADDRESS": f"https://{istiod}:15012", "CLUSTER_ID": "Kubernetes", "NODE_NAME": NODE1.name,
            "POD_NAME": node["name"], "POD_NAMESPACE": NAMESPACE, "INSTANCE_IP": ztunnel["status"]["podIP"],
        },
        [],
    )  # fmt: skip
    host = f"istiod.{NAMESPACE}.svc"
    async with GrpcChannel(f"{istiod}:15012", roots=root.encode(), alternative_hostname=host) as channel:
        described = encode_node(config, [])
        answers = await _first_answers(channel, metadata, described)
        talks = await conversations(tools, channel, metadata, described)
        asked = make_signing_request(Identity("cluster.local", "demo", "sleep"))
        body = encode_request(asked.csr, 86_400, Identity("cluster.local", "demo", "sleep"))
        issued = await channel.unary(CA_METHOD, body, metadata=metadata, deadline_seconds=10)
    return {
        "xds": answers,
        "conversations": talks,
        "ca": {"request": body.hex(), "answer": issued.hex()},
        "token": {
            "header": _shape(_unpadded(header)), "claims": _shape(claims),
            "aud": claims["aud"], "sub": claims["sub"],
        },
    }  # fmt: skip


async def _first_answers(
    channel: GrpcChannel, metadata: list[tuple[str, str]], node: bytes
) -> dict[str, list[str]]:
    """Our first requests, and istiod's first two answers to them."""
    requests = list(XdsSession(node).open())
    answers: list[str] = []
    async with channel.open_stream(XDS_METHOD, metadata) as stream:
        for request in requests:
            await stream.send(request)
        with trio.fail_after(20):
            while len(answers) < len(requests):
                answers += [(await stream.receive()).hex()]
    return {"requests": [request.hex() for request in requests], "answers": answers}


def main() -> None:
    """Writes one file for each kind."""
    TARGET.mkdir(exist_ok=True)
    tools = Tools(places())
    source = f"istio {programs.ISTIO.pinned} on Kubernetes {programs.KUBE.pinned}, by tests/cluster/record.py"
    recorder = nodes.inside(NODE1, tools.places, sys.executable, "-m", "tests.cluster.record", "zds", "15")
    with subprocess.Popen(recorder, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(3)
        # While it is connected it is the newest ztunnel: a pod that comes and goes is told to it.
        tools.apply(_PASSING)
        tools.kubectl("-n", "demo", "wait", "--for=condition=Ready", "pod/passing", "--timeout=8s")
        tools.kubectl("-n", "demo", "delete", "pod", "passing")
        said, _ = process.communicate(timeout=60)
    packets = json.loads(said)
    _write("zds.json", {"source": source, "packets": packets})
    _write("rules.json", {"source": source, **rules(tools)})
    told = trio.run(control_plane, tools)
    _write("xds.json", {"source": source, "conversations": told.pop("conversations")})
    _write("control-plane.json", {"source": source, **told})


def _write(name: str, content: dict[str, Any]) -> None:
    (TARGET / name).write_text(json.dumps(content, indent=1, sort_keys=False) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["zds"]:
        print(json.dumps(zds(float(sys.argv[2]))))
    else:
        main()
