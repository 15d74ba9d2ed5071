"""Retries of a connection on other endpoints, and outlier ejection of endpoints that failed.

Retries. As long as no byte of the application was forwarded, another endpoint can be tried without harm. A
connection that could not be established is routed again without the endpoints that failed; load balancing
mode, health and capacity limit the choice as always. Retrying ends when routing returns no new endpoint, or
after `ConnectionBounds.attempts` attempts. If a peer processed the request and refused it (401 by policy, 400
for a bad request), that is the result, and no other endpoint is tried.

Slow endpoints. If an endpoint was not reached after `ConnectionBounds.try_timeout`, another one is tried if
there is one: pods that are gone usually do not refuse a connection, they do not answer at all.

Outlier ejection. The pod's other connections avoid an endpoint that failed for a few seconds, because during
a rollout the control plane reports the end of a pod a moment after it happened.

Network gateways. Either the gateway or the endpoint behind it may have failed. Until the outer tunnel is
established it is the gateway; after that it is the endpoint. The gateway chooses among several endpoints
itself, so the same plan may be tried again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from enum import Enum

import trio

from ztunnel.bounds import DEFAULTS, ConnectionBounds
from ztunnel.decide.plans import OutboundPlan
from ztunnel.model.address import SocketAddress
from ztunnel.tunnel.failures import ConnectionFailure


class Progress(Enum):
    """How far an attempt to establish a connection has come."""

    DIALLING = "dialling"
    OUTER = "the tunnel to the network gateway stands"
    ESTABLISHED = "bytes may be forwarded"


class OutlierEjection:
    """The workloads that failed a moment ago, by uid. All connections of a pod share it.

    ejected: called when a workload becomes ejected.
    """

    def __init__(
        self,
        bounds: ConnectionBounds = DEFAULTS.connection,
        ejected: Callable[[], None] = lambda: None,
    ) -> None:
        self.bounds = bounds
        self._until: dict[str, float] = {}
        self._ejected = ejected

    def eject(self, uid: str) -> None:
        """Avoid a workload for ``ejection_time`` seconds from now."""
        if uid not in self.current():
            self._ejected()
        self._until[uid] = trio.current_time() + self.bounds.ejection_time

    def readmit(self, uid: str) -> None:
        """End the ejection of a workload, because a connection to it succeeded."""
        if self._until:
            self._until.pop(uid, None)

    def since(self) -> dict[str, float]:
        """Returns the ejected workloads, and for how many seconds each has been ejected."""
        now = trio.current_time()
        return {
            uid: now - until + self.bounds.ejection_time for uid, until in self._until.items() if until > now
        }

    def current(self) -> Collection[str]:
        """Returns the uids of the ejected workloads."""
        ejected = self._until
        if not ejected:
            return ()
        now = trio.current_time()
        for uid in [uid for uid, until in ejected.items() if until <= now]:
            del ejected[uid]
        return ejected.keys()


class Attempts:
    """The attempts of one connection.

    waited: seconds that the last endpoint already had. count: how many attempts failed.
    """

    __slots__ = ("_ejection", "_failed", "_insisting", "_tried", "count", "waited")

    def __init__(self, ejection: OutlierEjection) -> None:
        self._ejection = ejection
        self._failed: set[str] = set()
        self._tried: set[tuple[str, SocketAddress]] = set()
        self._insisting = False
        self.waited = 0.0
        self.count = 0

    @property
    def avoid(self) -> Collection[str]:
        """The uids that the next plan should avoid if it can."""
        current = self._ejection.current()
        return self._failed.union(current) if self._failed else current

    def try_timeout(self, plan: OutboundPlan) -> float:
        """Returns how many seconds to wait for this plan's next hop before another endpoint is tried."""
        if (
            self._insisting
            or plan.destination_service is None
            or self.count >= self._ejection.bounds.attempts - 1
        ):
            return math.inf
        return self._ejection.bounds.try_timeout

    def insist(self, waited: float) -> None:
        """There is no other endpoint: from now on wait for this one until the dial times out.

        waited: seconds that the endpoint already had; they count towards that timeout.
        """
        self._insisting = True
        self.waited = waited

    def has_tried(self, next_hop: SocketAddress) -> bool:
        """Returns whether an address has failed, for any workload."""
        return any(address == next_hop for _, address in self._tried)

    def failed(self, plan: OutboundPlan, progress: Progress, failure: ConnectionFailure) -> bool:
        """Note a failed attempt. Returns whether routing should look for another endpoint."""
        self.count += 1
        workload = plan.destination_workload
        if progress is Progress.ESTABLISHED or not failure.elsewhere or workload is None:
            return False
        if progress is Progress.DIALLING:
            self._tried.add((workload.uid, plan.next_hop))
            self._failed.add(workload.uid)
            self._ejection.eject(workload.uid)
        if plan.endpoint_uid:
            self._failed.add(plan.endpoint_uid)
        return self.count < self._ejection.bounds.attempts

    def is_new(self, plan: OutboundPlan) -> bool:
        """Whether a plan leads to an endpoint that has not failed, or to a gateway that chooses one."""
        workload = plan.destination_workload
        if workload is None:
            return True
        return (workload.uid, plan.next_hop) not in self._tried

    def succeeded(self, plan: OutboundPlan) -> None:
        """The connection is established."""
        if plan.destination_workload is not None:
            self._ejection.readmit(plan.destination_workload.uid)
