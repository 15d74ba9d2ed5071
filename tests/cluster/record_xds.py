"""Conversations with the cluster's istiod about workloads and policies, for `tests/recorded/xds.json`.

Three streams, one after the other: all of both types, with a policy that comes and goes; all again by a
client that knows versions; single addresses on demand. Each step is one request or one change in the
cluster, and what istiod said afterwards; nothing, for some.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from tests.cluster.look import NODE2, pods
from tests.cluster.mesh import Tools
from ztunnel.grpc.bridge import GrpcChannel, GrpcStream
from ztunnel.pb.envoy.service.discovery.v3 import DeltaDiscoveryResponse
from ztunnel.xds.connect import DELTA_STREAM
from ztunnel.xds.delta import encode_request
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

QUIET_SECONDS = 2.5
"""When nothing more comes for that long, istiod has said what it had to say; it gathers changes for 0.1 s."""

_POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: recorded, namespace: demo}
spec:
  selector: {matchLabels: {app: nobody}}
  action: ALLOW
  rules: [{from: [{source: {serviceAccounts: ["demo/sleep"]}}]}]
"""

_RESOLVERS = "kube-system/kube-dns.kube-system.svc.cluster.local"

Metadata = list[tuple[str, str]]
Step = dict[str, Any]


class _Talk:
    """One stream, and what was said on it."""

    def __init__(self, stream: GrpcStream) -> None:
        self._stream = stream
        self.steps: list[Step] = []

    async def ask(self, name: str, type_url: str, **request: Any) -> list[DeltaDiscoveryResponse]:
        """Sends a request, and returns what came."""
        message = encode_request(type_url, **request)
        await self._stream.send(message)
        return await self._hear({"step": name, "type": type_url, "request": message.hex()})

    async def change(self, name: str, what: Callable[[], object]) -> list[DeltaDiscoveryResponse]:
        """Changes the policies of the cluster, and returns what came."""
        await trio.to_thread.run_sync(what)
        return await self._hear({"step": name, "type": AUTHORIZATION_TYPE})

    async def _hear(self, step: Step) -> list[DeltaDiscoveryResponse]:
        heard: list[bytes] = []
        while True:
            with trio.move_on_after(QUIET_SECONDS) as quiet:
                heard.append(await self._stream.receive())
            if quiet.cancelled_caught:
                break
        answers = [DeltaDiscoveryResponse.parse(each) for each in heard]
        mine = [index for index, each in enumerate(answers) if each.type_url == step["type"]]
        self.steps.append({**step, "answers": [heard[index].hex() for index in mine]})
        return [answers[index] for index in mine]

    async def accept(self, name: str, answers: list[DeltaDiscoveryResponse]) -> None:
        """ACKs an answer."""
        await self.ask(name, answers[-1].type_url, nonce=answers[-1].nonce)


async def conversations(
    tools: Tools, channel: GrpcChannel, metadata: Metadata, node: bytes
) -> dict[str, list[Step]]:
    """The three, by name. Raises GrpcStatusError."""
    said: dict[str, list[Step]] = {}
    async with channel.open_stream(DELTA_STREAM, metadata) as stream:
        talk = _Talk(stream)
        known = await _all(tools, talk, node)
        said["all"] = talk.steps
    async with channel.open_stream(DELTA_STREAM, metadata) as stream:
        talk = _Talk(stream)
        await _again(talk, node, known)
        said["again"] = talk.steps
    web = json.loads(tools.kubectl("-n", "demo", "get", "service", "web", "-o", "json"))["spec"]["clusterIP"]
    resolvers = pods(tools, "kube-system", "k8s-app=kube-dns")
    [elsewhere] = [pod["status"]["podIP"] for pod in resolvers if pod["spec"]["nodeName"] == NODE2.name]
    async with channel.open_stream(DELTA_STREAM, metadata) as stream:
        talk = _Talk(stream)
        await _on_demand(talk, node, f"/{web}", f"/{elsewhere}")
        said["on demand"] = talk.steps
    return said


async def _all(tools: Tools, talk: _Talk, node: bytes) -> dict[str, str]:
    """Subscribes to everything; the versions of what there is."""
    addresses = await talk.ask("all addresses", ADDRESS_TYPE, node=node)
    await talk.accept("addresses accepted", addresses)
    await talk.accept("policies accepted", await talk.ask("all policies", AUTHORIZATION_TYPE))
    put = partial(tools.apply, _POLICY)
    await talk.accept("policy accepted", await talk.change("a policy comes", put))
    delete = partial(tools.kubectl, "-n", "demo", "delete", "authorizationpolicy", "recorded")
    await talk.accept("removal accepted", await talk.change("the policy goes", delete))
    return {each.name: each.version for each in addresses[-1].resources}


async def _again(talk: _Talk, node: bytes, known: dict[str, str]) -> None:
    """As after a reconnect: one name is unknown to istiod, one has another version."""
    stale = min(known)
    versions = {**known, stale: "0000000000000000", "Kubernetes//Pod/demo/gone": "0000000000000000"}
    await talk.ask("addresses with versions", ADDRESS_TYPE, node=node, versions=versions)
    await talk.ask("policies with versions", AUTHORIZATION_TYPE, versions={"demo/gone": ""})


async def _on_demand(talk: _Talk, node: bytes, web: str, resolver: str) -> None:
    renew = {"subscribe": ("*",), "unsubscribe": ("*",)}
    nobody = "/192.0.2.1"
    await talk.ask("nothing yet", ADDRESS_TYPE, node=node, **renew)
    await talk.ask("a service's address", ADDRESS_TYPE, subscribe=(web,))
    await talk.ask("the same again", ADDRESS_TYPE, subscribe=(web,))
    await talk.ask("nobody's address", ADDRESS_TYPE, subscribe=(nobody,))
    await talk.ask("it again, as a change", ADDRESS_TYPE, subscribe=(nobody, "*"), unsubscribe=("*",))
    await talk.ask("the address of a service's pod", ADDRESS_TYPE, subscribe=(resolver,))
    await talk.ask("a service's name", ADDRESS_TYPE, subscribe=(_RESOLVERS,))
