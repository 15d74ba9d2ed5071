"""The errors of forwarding a query. The text is that of its log line, after ``net error:``."""

from __future__ import annotations

from ztunnel.errors import ZtunnelError


class NameResolutionError(ZtunnelError):
    """A workload's hostname has no address now."""

    code = "ZT-DNS-001"


class UpstreamError(ZtunnelError):
    """The real resolver did not answer."""


class UpstreamTimedOut(UpstreamError):
    """No nameserver answered in time."""

    code = "ZT-DNS-002"

    def __init__(self) -> None:
        super().__init__("request timed out")


class UpstreamUnreachable(UpstreamError):
    """No nameserver could be reached, or none sent a valid answer."""

    code = "ZT-DNS-003"


class NoNameserverError(UpstreamError):
    """No nameserver is configured."""

    code = "ZT-DNS-004"

    def __init__(self, problem: str | None) -> None:
        super().__init__(f"no nameserver is configured ({problem or 'none in /etc/resolv.conf'})")


class TooManyQueriesError(UpstreamError):
    """The pod has reached its limit of queries in progress."""

    code = "ZT-DNS-005"

    def __init__(self) -> None:
        super().__init__("too many queries of this pod are under way")


class QueryLoopError(UpstreamError):
    """A query came back that we had sent ourselves."""

    code = "ZT-DNS-006"

    def __init__(self) -> None:
        super().__init__("the query is one that was forwarded from here")
