"""Where a connection has been refused already, and who is avoided for a while because of that.

As long as not one byte of the application has been forwarded, nothing is lost by asking somebody else. So a
connection that could not be established is planned once more, with the endpoints that failed left out; load
balancing mode, health and capacity bound the choice as ever. It ends when the plan brings nothing new, and
after `ConnectionBounds.attempts`. What was said by somebody who knew what was asked (policy: 401; a request
that is wrong: 400) is the answer, and nobody else is asked.

Silence is treated alike: when an endpoint has not been reached after `ConnectionBounds.try_timeout`,
another is asked if there is one. Pods that are gone mostly do not refuse, they do not answer.

An endpoint that failed is also avoided by the pod's other connections, for a few seconds: during a rollout
the control plane tells of the end of a pod a moment after it has happened. With a network gateway two
workloads may be at fault, the gateway and the endpoint behind it. Until the outer tunnel stands it is the
gateway. Later it is the endpoint, and since the gateway itself chooses among those that the endpoint stands
for, the same way may be tried again.
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
    """How far an attempt has come."""

    DIALLING = "dialling"
    OUTER = "the tunnel to the network gateway stands"
    ESTABLISHED = "bytes may be forwarded"


class OutlierEjection:
    """Who failed a moment ago, for all connections of a pod. Keys are uids of workloads.

    ejected: called when one that was not avoided is from now on.
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
        """Avoid a workload from now on."""
        if uid not in self.current():
            self._ejected()
        self._until[uid] = trio.current_time() + self.bounds.ejection_time

    def readmit(self, uid: str) -> None:
        """It works after all."""
        if self._until:
            self._until.pop(uid, None)

    def since(self) -> dict[str, float]:
        """Who is avoided now, and for how many seconds already."""
        now = trio.current_time()
        return {
            uid: now - until + self.bounds.ejection_time for uid, until in self._until.items() if until > now
        }

    def current(self) -> Collection[str]:
        """Who is to be avoided now."""
        ejected = self._until
        if not ejected:
            return ()
        now = trio.current_time()
        for uid in [uid for uid, until in ejected.items() if until <= now]:
            del ejected[uid]
        return ejected.keys()


class Attempts:
    """What one connection has tried."""

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
        """The uids that the next plan is to leave out if it can."""
        current = self._ejection.current()
        return self._failed.union(current) if self._failed else current

    def try_timeout(self, plan: OutboundPlan) -> float:
        """Seconds to wait for this plan's next hop before another is thought of."""
        if (
            self._insisting
            or plan.destination_service is None
            or self.count >= self._ejection.bounds.attempts - 1
        ):
            return math.inf
        return self._ejection.bounds.try_timeout

    def insist(self, waited: float) -> None:
        """There is nobody else: from now on wait for as long as it takes.

        ``waited``: seconds that the endpoint has had already; they count towards its time.
        """
        self._insisting = True
        self.waited = waited

    def has_tried(self, next_hop: SocketAddress) -> bool:
        """Whether an address has failed, for whichever workload."""
        return any(address == next_hop for _, address in self._tried)

    def failed(self, plan: OutboundPlan, progress: Progress, failure: ConnectionFailure) -> bool:
        """Remember who failed. Returns whether it is worth planning again."""
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
        """Whether a plan leads elsewhere than those that failed, or to a gateway that may choose anew."""
        workload = plan.destination_workload
        if workload is None:
            return True
        return (workload.uid, plan.next_hop) not in self._tried

    def succeeded(self, plan: OutboundPlan) -> None:
        """The connection stands."""
        if plan.destination_workload is not None:
            self._ejection.readmit(plan.destination_workload.uid)
