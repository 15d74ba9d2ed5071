"""Applies the local file, instead of istiod or beside it, and follows its changes.

    local = LocalXds(config.local_xds, apply, numbers)
    await local.load()                                  before anything starts; an error is fatal
    nursery.start_soon(local.watch, name="local xds")   then each change of the file

The Rust ztunnel reads the file once. Here a change is applied when it has been written, as a difference. A
broken text or a missing file changes nothing and is logged. `ztunnel.xds.local_file` reads the text. Source:
docs/protocol/state-and-xds.md#local-file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import LocalFile, LocalXdsSource
from ztunnel.errors import ZtunnelError
from ztunnel.observe.logging import get_logger
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.system.watch_directory import watch_directory
from ztunnel.xds.local_file import LocalConfig, deltas, parse
from ztunnel.xds.xds_client import Apply

log = get_logger("state")


class LocalFileError(ZtunnelError):
    """The local file cannot be read, or an object in it cannot be applied."""

    code = "ZT-CFG-007"


class _FileStatus(NamedTuple):
    """Identifies the content of a file without reading it: when the file changes, this changes."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: str) -> _FileStatus | None:
        """Returns the present status, following symlinks; None if the file cannot be examined."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class LocalXds:
    """Keeps the mesh in line with the file.

    config: the content that was applied. last_error: why a later content was not applied, None if it was.
    apply: applies a delta. numbers: gives each delta its number.
    """

    def __init__(
        self,
        source: LocalXdsSource,
        apply: Apply,
        numbers: Iterator[int],
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        self._source = source
        self._apply = apply
        self._numbers = numbers
        # Taken before the content was read, so that no change in between is missed.
        self._seen: _FileStatus | None = None
        self._text: str | None = None
        self.config: LocalConfig | None = None
        self.last_error: str | None = None

    async def load(self) -> None:
        """Read the file for the first time and apply all of it.

        Raises `LocalConfigError` for a broken text, `LocalFileError` for a file that cannot be read or an
        object that cannot be applied. Each of them ends the process.
        """
        if isinstance(self._source, LocalFile):
            self._seen = _FileStatus.of(self._source.path)
        text = self._read()
        try:
            config = parse(text, self._bounds)
        except LocalConfigError as error:
            raise LocalConfigError(f"{self._path}: {error}") from None
        refused = await self._put(config)
        if refused:
            raise LocalFileError(f"{self._path}: {'; '.join(refused)}")
        self._text = text
        self._tell("local config initialized", config)

    async def watch(self) -> None:
        """Apply each later content of the file, until cancelled.

        Returns at once if the source is inline text.
        """
        if isinstance(self._source, LocalFile):
            await watch_directory(
                Path(self._source.path).parent,
                self._look,
                # Some editors write a file in several steps.
                quiet_seconds=self._bounds.local_file_quiet,
                retry_seconds=self._bounds.watch_retry,
            )

    async def _look(self) -> None:
        status = _FileStatus.of(self._path)
        if status != self._seen:
            self._seen = status
            await self._reload()

    async def _reload(self) -> None:
        try:
            text = self._read()
            if text == self._text and self.last_error is None:
                return
            config = parse(text, self._bounds)
        except (LocalConfigError, LocalFileError) as error:
            self._complain(error)
            return
        refused = await self._put(config)
        self._text = text
        self.last_error = "; ".join(refused) or None
        for reason in refused:
            log.error(
                "local config: an entry is refused, the one before it stays", path=self._path, error=reason
            )
        self._tell("local config reloaded", config)

    def _complain(self, error: ZtunnelError) -> None:
        self.last_error = str(error)
        log.error(
            "local config cannot be used, the last good one stays in force",
            path=self._path,
            error=self.last_error,
            code=error.code,
        )

    @property
    def _path(self) -> str:
        return self._source.path if isinstance(self._source, LocalFile) else "LOCAL_XDS"

    def _read(self) -> str:
        if not isinstance(self._source, LocalFile):
            return self._source.text
        try:
            return Path(self._source.path).read_text(encoding="utf-8")
        except OSError as error:
            raise LocalFileError(f"cannot read {self._path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise LocalFileError(f"cannot read {self._path}: it is not UTF-8") from None

    async def _put(self, config: LocalConfig) -> list[str]:
        refused = []
        for delta in deltas(config, self.config, self._numbers):
            refused += [f"{bad.name}: {bad.reason}" for bad in await self._apply(delta)]
        self.config = config
        return refused

    def _tell(self, message: str, config: LocalConfig) -> None:
        log.info(
            message,
            num_workloads=len(config.workloads),
            num_policies=len(config.policies),
            num_services=len(config.services),
        )
