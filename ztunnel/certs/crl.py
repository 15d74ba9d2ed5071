"""The revocation file at CRL_PATH: how its bytes are read, and what follows from each of its states.

As docs/protocol/operations.md#revocation-lists says: PEM with several CRL blocks (other blocks are skipped)
or one DER list; PEM begins with ``-----BEGIN``. An empty file, or one without blocks, revokes nothing. The
state of the file at the first read matters:

    | the file              | at the first read                        | later                          |
    |-----------------------|------------------------------------------|--------------------------------|
    | readable              | its lists are in force                   | the new lists are in force     |
    | missing or unreadable | nothing is revoked; it is read again     | the old lists stay in force    |
    | invalid               | checking is off until the process ends   | the old lists stay in force    |

`CrlFile` implements this table; the task `watch_crl` gives it the content of the file. `Revocations.revoked`
says whether an open connection is still good under new lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Never

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.messages import RevocationsChanged
from ztunnel.observe.logging import get_logger
from ztunnel.system.watch_directory import watch_directory
from ztunnel.tls.revocation import InvalidRevocationListError, RevocationList

_BLOCK: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
# A list with a million entries has some 40 MB.

log = get_logger("tls::crl")


def parse_crl_file(data: bytes) -> tuple[bytes, ...]:
    """Returns the single lists in a file, as PEM or DER; none for an empty file.

    Raises InvalidRevocationListError if one of them cannot be read.
    """
    if not data.strip():
        return ()
    if data.lstrip().startswith(b"-----BEGIN"):
        lists = tuple(match.group() + b"\n" for match in _BLOCK.finditer(data))
    else:
        lists = (data,)
    for one in lists:
        RevocationList.parse(one)
    return lists


class CrlState(Enum):
    """The state of the file so far."""

    UNREAD = "unread"
    LOADED = "loaded"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class CrlReading:
    """The result of one read of the file.

    changed: whether new lists are in force. problem: a sentence for a warning, or None.
    """

    changed: tuple[bytes, ...] | None = None
    problem: str | None = None


class CrlFile:
    """Implements the table above: gets each content of the file and says which lists are in force."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.state = CrlState.UNREAD
        self.lists: tuple[bytes, ...] = ()

    def read(self, content: bytes | OSError) -> CrlReading:
        """One look at the file: its bytes, or why there are none."""
        if self.state is CrlState.OFF:
            return CrlReading()
        kept = "the lists read before stay in force"
        if isinstance(content, OSError):
            if self.state is CrlState.UNREAD:
                kept = "no certificate counts as revoked until it can be"
            return CrlReading(
                problem=f"the revocation file {self._path} cannot be read ({content.strerror}); {kept}"
            )
        try:
            lists = parse_crl_file(content)
        except InvalidRevocationListError as error:
            if self.state is CrlState.UNREAD:
                self.state = CrlState.OFF
                kept = "revocation checking is off until ztunnel is restarted with a valid file"
            return CrlReading(problem=f"the revocation file {self._path} is invalid ({error}); {kept}")
        first = self.state is CrlState.UNREAD
        self.state = CrlState.LOADED
        if lists == self.lists and not first:
            return CrlReading()
        self.lists = lists
        return CrlReading(changed=lists)


async def watch_crl(
    path: Path,
    publish: Callable[[RevocationsChanged], None],
    bounds: ControlBounds = DEFAULTS.control,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Keep the lists of the file at ``path`` in force, until cancelled.

    The file is read once before ``started`` is called. It is read again whenever its directory has changed
    and no further change came for `ControlBounds.crl_quiet`.
    """
    file = CrlFile(str(path))

    async def look() -> None:
        reading = file.read(await _content(path, bounds.crl_file))
        if reading.problem is not None:
            log.warn(reading.problem)
        if reading.changed is not None:
            log.info("revocation lists loaded", path=str(path), lists=len(reading.changed))
            publish(RevocationsChanged(reading.changed))

    await look()
    task_status.started()
    await watch_directory(path.parent, look, quiet_seconds=bounds.crl_quiet, retry_seconds=bounds.watch_retry)


async def _content(path: Path, largest: int) -> bytes | OSError:
    try:
        async with await trio.open_file(path, "rb") as stream:
            content = await stream.read(largest + 1)
    except OSError as error:
        return error
    if len(content) > largest:
        return OSError(27, f"it is larger than {largest} bytes")
    return content
