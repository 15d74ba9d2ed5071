"""The output of the demo: numbered steps, indented excerpts, lines wrapped to the width of the terminal.

On a terminal there are colours and a progress line during setup; elsewhere neither.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable

_BOLD, _DIM, _GREEN, _RED, _CYAN = "1", "2", "32", "31", "1;36"
_PAINTED = (
    (re.compile(r"^\w+\$ .*"), _BOLD),
    (re.compile(r"spiffe://[^\s\",}]+"), _CYAN),
    (re.compile(r'\berror="[^"]*"|"DENY"|\bZT-[A-Z]+-\d+|^curl: .*'), _RED),
    (re.compile(r"^Hello from .*"), _GREEN),
)
"""The parts of an excerpt that are highlighted."""


class TerminalPage:
    """Standard output, flushed after each line.

    terminal: whether it shows colours; detected by default (see https://no-color.org).
    """

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._step = 0
        self._width = min(shutil.get_terminal_size((110, 24)).columns, 140)
        self._transient = False
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.terminal = sys.stdout.isatty() and not plain if terminal is None else terminal

    def line(self, text: str = "") -> None:
        """Print one line unchanged."""
        self._forget_progress()
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def progress(self, text: str) -> None:
        """Show what is being done, on a line that the next one replaces."""
        if self.terminal:
            self._forget_progress()
            sys.stdout.write(self._paint(_DIM, f"   … {text}"[: self._width - 1]))
            sys.stdout.flush()
            self._transient = True

    def step(self, title: str) -> None:
        """Print the title of a numbered step."""
        self._step += 1
        self.line("\n" + self._paint(_BOLD, f"{self._step}. {title}"))

    def text(self, text: str) -> None:
        """Print a paragraph."""
        for line in textwrap.wrap(" ".join(text.split()), self._width - 3):
            self.line(f"   {line}")

    def excerpt(self, lines: Iterable[str]) -> None:
        """Print output of a program, wrapped but otherwise unchanged."""
        for line in lines:
            wrapped = textwrap.wrap(
                line,
                self._width - 5,
                subsequent_indent=" " * (len(line) - len(line.lstrip()) + 4),
                break_on_hyphens=False,
                break_long_words=False,
            )
            for part in wrapped or [""]:
                self.line(f"     {self._highlight(part)}")

    def drawing(self, lines: Iterable[str]) -> None:
        """Print lines that must not be wrapped."""
        for line in lines:
            self.line(f"     {line}")

    def _forget_progress(self) -> None:
        if self._transient:
            self._transient = False
            sys.stdout.write("\r\033[K")

    def _highlight(self, text: str) -> str:
        for pattern, colour in _PAINTED:
            text = pattern.sub(lambda match, colour=colour: self._paint(colour, match[0]), text)  # type: ignore[misc]
        return text

    def _paint(self, colour: str, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self.terminal else text


def log_excerpt(line: str) -> str:
    """Returns a log line without its tabs."""
    return " ".join(line.split("\t"))


def sample_excerpt(name: str, labels: dict[str, str], value: float, wanted: Iterable[str]) -> str:
    """Returns one line of a metrics page, with those labels that matter here."""
    shown = ", ".join(f'{key}="{labels[key]}"' for key in wanted if key in labels)
    return f"{name}{{{shown}, …}} {value:g}"
