"""The block that surrounds all code of a connection: where every exception of it ends."""

from __future__ import annotations

from types import TracebackType

from ztunnel.proxy.connection_table import ConnectionEntry
from ztunnel.proxy.report import ConnectionReport
from ztunnel.tunnel.failures import ConnectionFailure, DrainedError, InternalError


class Closing:
    """Surrounds all code of a connection. Its end is counted and logged after the block, once.

    A ConnectionFailure is reported and not raised further. A cancellation is reported with the reason of
    ``entry`` or of the pod, and raised further. Any other exception is a bug in ztunnel: it is logged with
    its traceback and ends this connection only.
    """

    __slots__ = ("_entry", "_report")

    def __init__(self, report: ConnectionReport, entry: ConnectionEntry) -> None:
        self._report = report
        self._entry = entry

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        report = self._report
        if error is None:
            report.finish(None)
        elif isinstance(error, ConnectionFailure):
            report.finish(error)
        elif isinstance(error, Exception):
            failure = InternalError(error)
            report.log.error(
                "a connection's task failed; the connection is closed",
                code=failure.code,
                connection=report.id,
                exc_info=error,
            )
            report.finish(failure)
        else:
            # Cancelled, alone or as nurseries wrap it.
            report.finish(self._entry.closed_because or report.cut_because or DrainedError())
            return False
        return True
