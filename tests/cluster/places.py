"""Where the cluster keeps its things, and how it says what it is doing."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Places:
    """The cache (programs, images: kept) and the state of one cluster (removed by `make cluster-down`)."""

    cache: Path

    @property
    def programs(self) -> Path:
        return self.cache / "programs"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def state(self) -> Path:
        return self.cache / "state"


def places() -> Places:
    """The cache of CLUSTER_CACHE, or .cache/cluster in the checkout."""
    named = os.environ.get("CLUSTER_CACHE")
    return Places(Path(named).resolve() if named else (CHECKOUT / ".cache" / "cluster").resolve())


class Progress:
    """Says what is being done.

    On a terminal one line that changes, elsewhere a line at most every half minute.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._last = 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            sys.stderr.write("\r\033[K")
        sys.stderr.write(f"{self._clock()} {text}\n")
        sys.stderr.flush()
        self._last = time.monotonic()

    def step(self, text: str) -> None:
        """Something small: shown while it lasts."""
        now = time.monotonic()
        if self._terminal:
            sys.stderr.write(f"\r\033[K{self._clock()} {text}")
            sys.stderr.flush()
        elif now - self._last >= 30:
            self.say(text)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes:3}:{seconds:02}"
