"""The access log: the fields of a connection in their order, and the three lines made from them.

Everything before `AccessLog` is pure. Byte counts have the point of view of the workload that ztunnel serves,
as in the Rust ztunnel: what it sent, what it received. Metrics count by client and server instead, so for an
outgoing connection the two are swapped.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from ztunnel.model.address import SocketAddress
from ztunnel.observe.filter import Level
from ztunnel.observe.labels import End
from ztunnel.observe.logging import Logger, get_logger
from ztunnel.observe.sampling import Sampling


class Direction(Enum):
    """The direction of a connection, from the point of view of the workload that ztunnel serves."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


_PLAIN_AUTHORITY = frozenset(string.ascii_letters + string.digits + ".-_:[]@")


@dataclass(frozen=True, slots=True)
class AccessLogEntry:
    """What is known of a connection when it is opened.

    hbone_address: the CONNECT's authority, None for plaintext.
    service: the hostname of the service that was addressed.
    mtls: whether the identities were verified; if not, they are not shown.
    """

    direction: Direction
    source_address: SocketAddress
    destination_address: SocketAddress
    source: End | None = None
    destination: End | None = None
    hbone_address: str | SocketAddress | None = None
    service: str | None = None
    mtls: bool = False


def opened_fields(entry: AccessLogEntry) -> dict[str, Any]:
    """Returns the fields of ``connection opened``; unknown ones are None, which a logger leaves out."""
    source, destination, mtls = entry.source, entry.destination, entry.mtls
    fields: dict[str, Any] = {"src.addr": entry.source_address}
    if source is not None:
        fields["src.workload"] = source.shown or None
        fields["src.namespace"] = source.namespace or None
        fields["src.identity"] = (source.principal or None) if mtls else None
        fields["src.cluster"] = source.cluster or None
    fields["dst.addr"] = entry.destination_address
    fields["dst.hbone_addr"] = _authority(entry.hbone_address)
    fields["dst.service"] = entry.service or None
    if destination is not None:
        fields["dst.workload"] = destination.shown or None
        fields["dst.namespace"] = destination.namespace or None
        fields["dst.identity"] = (destination.principal or None) if mtls else None
        fields["dst.cluster"] = destination.cluster or None
    fields["direction"] = entry.direction.value
    return fields


def complete_fields(
    entry: AccessLogEntry,
    *,
    received: int,
    sent: int,
    seconds: float,
    error: str | None = None,
    code: str | None = None,
    connection: str | None = None,
) -> dict[str, Any]:
    """Returns the fields of ``connection complete``.

    ``received`` is the number of bytes from client to server, ``sent`` from server to client, as in metrics.
    ``code`` and ``connection`` (its id) are ours; they come after all that the Rust ztunnel has.
    """
    outbound = entry.direction is Direction.OUTBOUND
    fields = opened_fields(entry)
    fields["bytes_sent"] = received if outbound else sent
    fields["bytes_recv"] = sent if outbound else received
    fields["duration"] = f"{int(seconds * 1000)}ms"
    fields["error"] = error
    fields["code"] = code
    fields["connection"] = connection
    return fields


def failed_fields(
    direction: Direction,
    source: SocketAddress,
    destination: SocketAddress,
    error: str,
    *,
    code: str | None = None,
    connection: str | None = None,
) -> dict[str, Any]:
    """Returns the fields of ``connection failed``: a connection that was refused before it was opened."""
    return {
        "src.addr": source,
        "dst.addr": destination,
        "direction": direction.value,
        "error": error,
        "code": code,
        "connection": connection,
    }


class _Bare:
    """A text that the plain format shows without quotes, like an address."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def _authority(value: str | SocketAddress | None) -> object:
    """Returns the authority without quotes, unless it contains something that looks like further fields."""
    if isinstance(value, str):
        return _Bare(value) if value and _PLAIN_AUTHORITY.issuperset(value) else value or None
    return value


class _Chosen:
    """The sampling in force for all access logs of the process; None when every line is written."""

    sampling: Sampling | None = None


def set_sampling(sampling: Sampling) -> None:
    """Write only a part of the lines of finished connections from now on."""
    _Chosen.sampling = sampling if sampling.rules else None


def current_sampling() -> Sampling:
    """Returns the sampling in force."""
    return _Chosen.sampling or Sampling()


class AccessLog:
    """Writes the lines of one workload's connections at its level; ``workload`` is ``namespace/pod``."""

    __slots__ = ("_log", "_workload")

    def __init__(self, workload: str | None = None, log: Logger | None = None) -> None:
        self._workload = workload or ""
        log = get_logger("access") if log is None else log
        self._log = log if workload is None else log.for_workload(workload)

    @property
    def tells_of_opening(self) -> bool:
        """Whether `opened` writes a line."""
        return self._log.is_enabled(Level.DEBUG)

    def opened(self, entry: AccessLogEntry, connection: str | None = None) -> None:
        """Write a line at debug, when the connection is opened."""
        if self.tells_of_opening:
            fields = {**opened_fields(entry), "connection": connection}
            self._log.log(Level.DEBUG, "connection opened", fields)

    def complete(
        self,
        entry: AccessLogEntry,
        *,
        received: int,
        sent: int,
        seconds: float,
        error: str | None = None,
        code: str | None = None,
        connection: str | None = None,
    ) -> None:
        """Write a line at info, or at error if the connection failed, when it has ended.

        Arguments as in `complete_fields`.
        """
        level = Level.INFO if error is None else Level.ERROR
        if self._log.is_enabled(level):
            sampling = _Chosen.sampling
            if sampling is not None and not sampling.takes(
                "success" if error is None else "failure", entry.direction.value, self._workload
            ):
                return
            fields = partial(
                complete_fields,
                entry,
                received=received,
                sent=sent,
                seconds=seconds,
                error=error,
                code=code,
                connection=connection,
            )
            self._log.log_later(level, "connection complete", fields)

    def failed(
        self,
        direction: Direction,
        source: SocketAddress,
        destination: SocketAddress,
        error: str,
        *,
        code: str | None = None,
        connection: str | None = None,
    ) -> None:
        """Write a line at warn, for a connection that was refused before it was opened."""
        if self._log.is_enabled(Level.WARN):
            fields = failed_fields(direction, source, destination, error, code=code, connection=connection)
            self._log.log(Level.WARN, "connection failed", fields)
