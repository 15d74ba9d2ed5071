"""The stand-in for istiod answers what the real one answered (tests/recorded/xds.json), step by step."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_istiod import TOKEN, FakeIstiod
from ztunnel.pb.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from ztunnel.xds.connect import DELTA_STREAM
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "xds.json").read_text())["conversations"]
SECONDS = 60.0
"""A bound for a hung test, and no more."""


def answers(step: dict[str, Any]) -> list[DeltaDiscoveryResponse]:
    """What istiod said at a step."""
    return [DeltaDiscoveryResponse.parse(bytes.fromhex(each)) for each in step["answers"]]


def steps(conversation: str) -> dict[str, dict[str, Any]]:
    """A conversation's steps by their names, in order."""
    return {step["step"]: step for step in RECORDED[conversation]}


def shown(answer: DeltaDiscoveryResponse) -> object:
    """What of an answer is the same from one server to the next.

    The order of resources is that of a map in istiod; nonces and versions are made up by each server.
    """
    resources = [
        (one.name, bool(one.version), one.aliases, one.resource.type_url, bytes(one.resource.value))
        for one in answer.resources
        if one.resource is not None
    ]
    assert len(resources) == len(answer.resources)
    return (
        answer.type_url,
        bool(answer.nonce),
        bool(answer.system_version_info),
        sorted(resources),
        sorted(answer.removed_resources),
    )


class Client:
    """One stream to the stand-in."""

    def __init__(self, istiod: FakeIstiod) -> None:
        self.channel = grpc.secure_channel(
            f"{istiod.host}:{istiod.port}", grpc.ssl_channel_credentials(istiod.ca.root)
        )
        self.requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(DELTA_STREAM)
        self.responses: Iterator[bytes] = call(
            iter(self.requests.get, None), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=SECONDS
        )

    def ask(self, request: DeltaDiscoveryRequest) -> None:
        self.requests.put(bytes(request))

    def hear(self) -> DeltaDiscoveryResponse:
        return DeltaDiscoveryResponse.parse(next(self.responses))

    def end(self) -> list[bytes]:
        """Ends the stream; what was still said on it."""
        self.requests.put(None)
        rest = list(self.responses)
        self.channel.close()
        return rest


@pytest.fixture(name="istiod")
def fixture_istiod() -> Iterator[FakeIstiod]:
    """The stand-in, with the objects that the real one had."""
    by_key = {
        one.name: one.aliases
        for step in RECORDED["on demand"]
        for answer in answers(step)
        for one in answer.resources
    }
    [everything] = answers(steps("all")["all addresses"])
    with FakeIstiod(FakeCertificateAuthority()) as istiod:
        for one in everything.resources:
            assert one.resource is not None
            istiod.put(one.name, bytes(one.resource.value), aliases=by_key.get(one.name, ()))
        yield istiod


def replay(istiod: FakeIstiod, conversation: str, versions: dict[str, str] | None = None) -> int:
    """Says what was said then, and compares; how many answers were compared.

    ``versions`` are the stand-in's, by its objects' names: they take the place of istiod's where a request
    names one that was right.
    """
    right = {one.name: one.version for one in answers(steps("all")["all addresses"])[0].resources}
    client = Client(istiod)
    compared = 0
    for name, step in steps(conversation).items():
        if "request" in step:
            request = DeltaDiscoveryRequest.parse(bytes.fromhex(step["request"]))
            for known, version in request.initial_resource_versions.items():
                if versions is not None and right.get(known) == version:
                    request.initial_resource_versions[known] = versions[known]
            client.ask(request)
        elif name == "a policy comes":
            [[policy]] = [answer.resources for answer in answers(step)]
            assert policy.resource is not None
            istiod.put(policy.name, bytes(policy.resource.value), type_url=AUTHORIZATION_TYPE)
        elif name == "the policy goes":
            [[removed]] = [answer.removed_resources for answer in answers(step)]
            istiod.remove(removed, type_url=AUTHORIZATION_TYPE)
        else:
            raise AssertionError(f"what is done at the step {name!r}?")
        for theirs in answers(step):
            assert shown(client.hear()) == shown(theirs), name
            compared += 1
    assert client.end() == []
    return compared


def test_everything_and_a_policy_that_comes_and_goes(istiod):
    assert replay(istiod, "all") == 4


def test_a_client_that_comes_back_with_versions(istiod):
    client = Client(istiod)
    first = DeltaDiscoveryRequest.parse(bytes.fromhex(steps("all")["all addresses"]["request"]))
    client.ask(first)
    versions = {one.name: one.version for one in client.hear().resources}
    client.end()
    assert replay(istiod, "again", versions) == 2


def test_single_addresses_on_demand(istiod):
    assert replay(istiod, "on demand") == 6


def test_the_recorded_conversations_hold_what_they_are_for():
    """A service brings its workloads; a key known already is silence; a gone one is removed."""
    on_demand = steps("on demand")
    assert [len(answer.resources) for answer in answers(on_demand["a service's address"])] == [3]
    assert answers(on_demand["the same again"]) == []
    [nobody] = answers(on_demand["nobody's address"])
    assert (nobody.resources, nobody.removed_resources) == ([], ["/192.0.2.1"])
    [again] = answers(steps("again")["addresses with versions"])
    assert (len(again.resources), again.removed_resources) == (1, ["Kubernetes//Pod/demo/gone"])
    assert again.type_url == ADDRESS_TYPE
