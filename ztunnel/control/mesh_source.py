"""The sources of the mesh: the control plane's stream, the local file, or both."""

from __future__ import annotations

from itertools import count

from ztunnel.bounds import ControlBounds
from ztunnel.config.model import Config
from ztunnel.observe.logging import get_logger
from ztunnel.observe.metrics import ControlMetrics
from ztunnel.xds.connect import connector
from ztunnel.xds.local_source import LocalXds
from ztunnel.xds.node import encode_node
from ztunnel.xds.xds_client import Apply, XdsClient
from ztunnel.xds.xds_session import XdsSession

log = get_logger("xds::client")


class MeshSource:
    """The xDS client and the local file of a configuration. Either may be None."""

    def __init__(self, config: Config, apply: Apply, metrics: ControlMetrics, bounds: ControlBounds) -> None:
        numbers = count(1)
        self.local: LocalXds | None = None
        if config.local_xds is not None:
            self.local = LocalXds(config.local_xds, apply, numbers, bounds=bounds)
        self.xds: XdsClient | None = None
        if config.xds_address is not None:
            problems: list[str] = []
            node = encode_node(config, problems)
            for problem in problems:
                log.error(problem)
            self.xds = XdsClient(
                XdsSession(node, on_demand=config.xds_on_demand, numbers=numbers, bounds=bounds),
                connector(config, bounds),
                apply,
                address=config.xds_address,
                metrics=_Counted(metrics),
                bounds=bounds,
            )

    @property
    def waiting_for(self) -> str | None:
        """Why the first sync is not complete, None when it is."""
        return self.xds.waiting_for if self.xds is not None else None

    @property
    def trouble(self) -> str | None:
        """Why the control plane does not answer although it did before, None when it does.

        A stream counts from its first valid response.
        """
        xds = self.xds
        if xds is None or xds.answered or xds.waiting_for is not None:
            return None
        return f"not connected to {xds.address}, {xds.last_error or 'connecting'}"


class _Counted:
    """Counts for the xDS client in the control side's metrics."""

    def __init__(self, metrics: ControlMetrics) -> None:
        self._metrics = metrics

    def terminated(self, reason: str) -> None:
        """A stream has ended."""
        self._metrics.xds_terminated(reason)

    def message(self, url: str, size: int) -> None:
        """A response came."""
        self._metrics.xds_message(url, size)
