"""A fictitious node, for the front page and `ztunnel top`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztunnel.messages import Topic

EVIL = "<img src=x onerror=\"document.title='taken over'\">"
CONNECTION = {
    "id": "a-1",
    "state": "open",
    "direction": "outbound",
    "pod": "shop/web",
    "client": "10.0.0.1:5",
    "destination": "10.0.0.2:80",
    "peer": EVIL,
    "ageSeconds": 3.0,
    "idleSeconds": 2.0,
    "receivedBytes": 1500,
    "waitsFor": "peer's window",
    "sendWindow": 0,
    "heldBytes": 10,
    "route": ["It is a workload."],
}
FAILED = {
    **CONNECTION,
    "id": "a-2",
    "state": "closed",
    "error": "http status: 503 Service Unavailable",
    "code": "ZT-HBN-010",
    "why": "Nothing listens there.",
}
TUNNEL = {
    "pod": "shop/web",
    "direction": "outbound",
    "peer": "10.0.0.2:15008",
    "client": "10.0.0.1",
    "workload": "uid",
    "peerIdentities": ["spiffe://cluster.local/ns/shop/sa/db"],
    "streams": 1,
    "stalledStreams": 1,
    "heldBytes": 10,
    "ageSeconds": 60.0,
    "heardSecondsAgo": 0.5,
    "roundTripSeconds": 0.0004,
}
CERTIFICATES = [
    {
        "identity": "spiffe://later",
        "expiresInSeconds": 86400.0,
        "nextAttemptSeconds": 43200.0,
        "lastError": None,
    },
    {
        "identity": "spiffe://sooner",
        "expiresInSeconds": -30.0,
        "nextAttemptSeconds": 5.0,
        "lastError": "refused",
        "lastErrorCode": "ZT-CA-002",
    },
]
EXPLANATION = {"asked_from": "shop/web", "asked_to": "db:80", "outcome": "allowed", "summary": "It goes."}


class Node:
    """A fictitious node. ``received`` grows with each request, so that there is a rate."""

    def __init__(self) -> None:
        self.received = 0

    async def ask(self, topic: Topic, parameters: Mapping[str, str]) -> list[Any]:
        match topic:
            case Topic.CONNECTIONS if parameters.get("failed") or parameters.get("id") == "a-2":
                return [FAILED]
            case Topic.CONNECTIONS:
                self.received += 5000
                return [{**CONNECTION, "receivedBytes": self.received}]
            case Topic.POOL:
                return [TUNNEL]
            case Topic.EXPLAIN:
                return [EXPLANATION]
        return []

    async def overview(self) -> dict[str, Any]:
        return {
            "version": "1.2.3",
            "node": "node-1",
            "mode": "Shared",
            "waitingFor": "",
            "xds": "not connected to https://istiod:15012, refused",
            "xdsTrouble": True,
            "ca": "https://istiod:15012, 2 certificates",
            "caTrouble": False,
            "pods": [
                {
                    "uid": "u",
                    "name": "shop/web",
                    "serviceAccount": "web",
                    "state": "Up",
                    "inbound": 1,
                    "outbound": 2,
                }
            ],
            "open": 3,
            "failed": 1,
            "tasks": 60,
            "loopLagSeconds": 0.001,
            "descriptors": "30 of 1000",
        }
