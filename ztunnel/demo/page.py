"""How the demo writes: numbered steps, indented excerpts, lines folded to the width of the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable


class Page:
    """Standard output, flushed line by line so that the reader keeps pace with the demo."""

    def __init__(self) -> None:
        self._step = 0
        self._width = min(shutil.get_terminal_size((110, 24)).columns, 140)

    def line(self, text: str = "") -> None:
        """One line as it is."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def step(self, title: str) -> None:
        """Begin a numbered step."""
        self._step += 1
        self.line(f"\n{self._step}. {title}")

    def text(self, text: str) -> None:
        """A paragraph of plain words."""
        for line in textwrap.wrap(" ".join(text.split()), self._width - 3):
            self.line(f"   {line}")

    def excerpt(self, lines: Iterable[str]) -> None:
        """Something that a program wrote, folded but otherwise as it is."""
        for line in lines:
            wrapped = textwrap.wrap(
                line,
                self._width - 5,
                subsequent_indent="    ",
                break_on_hyphens=False,
                break_long_words=False,
            )
            for part in wrapped or [""]:
                self.line(f"     {part}")


def log_excerpt(line: str) -> str:
    """A log line without its tabs."""
    return " ".join(line.split("\t"))


def sample_excerpt(name: str, labels: dict[str, str], value: float, wanted: Iterable[str]) -> str:
    """One line of a metrics page, with those labels that matter here."""
    shown = ", ".join(f'{key}="{labels[key]}"' for key in wanted if key in labels)
    return f"{name}{{{shown}, …}} {value:g}"
