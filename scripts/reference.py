#!/usr/bin/env python3
"""Writes docs/reference/ out of the code: variables, metrics, admin pages, commands, chart values.

usage: python scripts/reference.py [--check]    --check: write nothing, fail where a page is not what the code says
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ztunnel.admin.inspection import Inspection  # noqa: E402 - not before the path
from ztunnel.admin.levels import LogLevelControl  # noqa: E402
from ztunnel.admin.pages import Admin  # noqa: E402
from ztunnel.cli import COMMANDS  # noqa: E402
from ztunnel.config import load as loading  # noqa: E402
from ztunnel.config.environment import Environment  # noqa: E402
from ztunnel.observe.families import CATALOGUE, SERIES_OVERFLOW  # noqa: E402

OUT = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make reference` out of the code: do not edit. -->\n\n"
FIRST = "0.1"
CPUS = 8
WHOLE = {"podAnnotations", "updateStrategy", "resources"}
"""Values of the chart that are shown as they are, not by their parts."""


class Recorder(Environment):
    """Notes what is asked for, as what, and with which default."""

    found: dict[str, tuple[str, str]] = {}  # noqa: RUF012 - one for the whole run

    def _note(self, name: str, kind: str, default: str) -> None:
        if kind or name not in self.found:
            self.found[name] = (kind, default)

    def text(self, name: str) -> str | None:
        """Note a text, unless the name is known as something else."""
        if name not in self.found:
            self._note(name, "", "")
        return super().text(name)

    def flag(self, name: str, default: bool) -> bool:  # noqa: FBT001 - as in the class above
        """Note a boolean."""
        self._note(name, "`true` or `false`", f"`{str(default).lower()}`")
        return super().flag(name, default)

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """Note a number."""
        self._note(name, f"{low} to {high}", f"`{default}`")
        return super().number(name, default, low, high)

    def seconds(self, name: str, default: float) -> float:
        """Note a duration."""
        self._note(name, "duration (`90s`, `5m`)", f"`{duration(default)}`")
        return super().seconds(name, default)

    def prefixed(self, prefix: str) -> list[tuple[str, str]]:
        """Note a family of names."""
        self._note(prefix + "*", "", "")
        return super().prefixed(prefix)


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would take."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def read_variables() -> dict[str, tuple[str, str]]:
    """What the code reads: type and default by name, empty where it reads a text."""
    loading.Environment = Recorder  # type: ignore[misc]
    surroundings: list[dict[str, str]] = [
        {},
        {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b/c"},
        {"FAKE_CA": "true"},
    ]
    for environ in surroundings:
        loading.load_config(environ, read_file=lambda _: None, cpu_count=CPUS)
    # These come by way of the metadata, of which mesh config is another source.
    return Recorder.found | {"ISTIO_META_DNS_PROXY_ADDR": ("", ""), "ISTIO_META_ISTIO_VERSION": ("", "")}


def variables() -> str:
    """The page of environment variables."""
    found = read_variables()
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]] = yaml.safe_load(
        (ROOT / "scripts/variables.yaml").read_text()
    )
    described = {name for group in groups.values() for name in group}
    if missing := sorted(found.keys() - described):
        sys.exit(f"scripts/variables.yaml does not say what these do: {', '.join(missing)}")
    if unknown := sorted(described - found.keys()):
        sys.exit(f"scripts/variables.yaml has these, and the code does not read them: {', '.join(unknown)}")
    text = (
        "# Environment variables\n\nEverything is configured by these, parsed once at the start; [Configuration]"
        "(../configuration.md) says what happens with\nmistakes. **ours**: Istio's ztunnel does not have it. "
        f"Versions before {FIRST} do not exist.\n"
    )
    for title, group in groups.items():
        text += f"\n## {title}\n\n| variable | type | default | since | effect |\n|---|---|---|---|---|\n"
        for name, entry in group.items():
            kind, default = found[name]
            ours = "**ours** " if entry.get("ours") else ""
            cells = [
                f"`{name}`",
                entry.get("type") or kind or "text",
                entry.get("default") or default or "not set",
                str(entry.get("since", FIRST)),
                ours + entry["effect"],
            ]
            text += row(cells)
    return text


def row(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def metrics() -> str:
    """The page of metrics."""
    text = (
        "# Metrics\n\n`:15020/metrics` (also `/stats/prometheus`), in the OpenMetrics format. Counters end in `_total`. "
        "Families with many labels\nhave the traffic labels of Istio's standard metrics.\n\n"
        "| family | kind | labels | meaning |\n|---|---|---|---|\n"
    )
    for family in CATALOGUE:
        labels = (
            "the traffic labels"
            if len(family.labels) > 12
            else ", ".join(f"`{label}`" for label in family.labels)
        )
        text += row([f"`{family.name}`", family.kind.value, labels, family.help])
    traffic = next(family.labels for family in CATALOGUE if len(family.labels) > 12)
    text += "\nThe traffic labels: " + ", ".join(f"`{label}`" for label in traffic) + ".\n"
    return text + f"\nA label beyond the bound on series is `unknown`, and `{SERIES_OVERFLOW.name}` counts.\n"


def admin() -> str:
    """The page of the admin server's pages."""

    def nothing(*_: object) -> Any:
        raise AssertionError

    pages = Inspection(nothing, nothing).pages()
    server = Admin(nothing, levels=LogLevelControl(), shutdown=nothing, pages=pages)  # type: ignore[arg-type]
    text = (
        "# Admin pages\n\nOn `127.0.0.1:15000` of ztunnel's own network namespace: `curl localhost:15000/PAGE`. `/` lists "
        "them.\n\n| page | what it does |\n|---|---|\n"
    )
    for path, page in server._pages.items():
        text += row([f"`{path}`", page.description])
    return text + (
        "\n`:15021/healthz/ready` says whether ztunnel is ready (`?verbose`: what it waits for), `:15020/metrics` has the "
        "[metrics](metrics.md).\n"
    )


def commands() -> str:
    """The page of commands: what their --help says."""
    text = "# Commands\n"
    for name, command in COMMANDS.items():
        run = [sys.executable, "-m", "ztunnel.cli", name, "--help"]
        environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
        done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
        if done.returncode != 0 and not command.extra:
            sys.exit(f"ztunnel {name} --help: {done.stderr}")
        shown = _as_newer_pythons_say(done.stdout.rstrip()) or command.summary
        text += f"\n## ztunnel {name}\n\n```\n{shown}\n```\n"
    return text


def _as_newer_pythons_say(text: str) -> str:
    """Python 3.13 and later name the value of an option with two names once: ``-f, --file FILE``."""
    return re.sub(
        r"^  (-\w)( \S+), (--\S+\2)",
        lambda m: f"  {m[1]}, {m[3]}{' ' * len(m[2])}",
        text,
        flags=re.MULTILINE,
    )


def chart() -> str:
    """The page of the chart's values: their defaults, and the comments above them."""
    text = (
        "# Chart values\n\n`helm install ztunnel … --set NAME=VALUE`; `global.NAME` works too. [Installing](../install.md) says "
        "which of them matter.\n\n| value | default | meaning |\n|---|---|---|\n"
    )
    for name, default, comment in values((ROOT / "charts/ztunnel/values.yaml").read_text()):
        text += row([f"`{name}`", f"`{default}`", comment])
    return text


def values(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and comment of each value."""
    defaults = yaml.safe_load(text)["_internal_defaults_do_not_set"]
    pending: list[str] = []
    comment = ""
    for line in text.partition("_internal_defaults_do_not_set:\n")[2].splitlines():
        if match := re.fullmatch(r"  # (.*)", line):
            pending.append(match[1])
        elif match := re.fullmatch(r"  (\w+):.*", line):
            # A comment is about all values below it, up to the next one or an empty line.
            comment = " ".join(pending) or comment
            pending = []
            yield from _value(match[1], defaults[match[1]], comment, text)
        elif not line.strip():
            comment = ""


def _value(name: str, default: Any, comment: str, text: str) -> Iterator[tuple[str, str, str]]:
    if not isinstance(default, dict) or not default or name in WHOLE:
        yield name, show(default), comment
        return
    inside = text.partition(f"\n  {name}:\n")[2]
    for path, value in flatten(name, default):
        found = re.search(rf"((?: +# .*\n)*) +{path.rpartition('.')[2]}:", inside)
        own = " ".join(part.strip(" #") for part in found[1].splitlines()) if found else ""
        yield path, show(value), " ".join(filter(None, [comment, own]))


def flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves below a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(f"{name}.{key}", inner)
    else:
        yield name, value


def show(value: Any) -> str:
    """A default as one would write it."""
    if value == "":
        return '""'
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...")


PAGES: Mapping[str, Callable[[], str]] = {
    "variables.md": variables,
    "metrics.md": metrics,
    "admin.md": admin,
    "commands.md": commands,
    "chart.md": chart,
}


def main(arguments: list[str]) -> int:
    """Write or compare; the exit status."""
    stale = []
    for name, make in PAGES.items():
        text = NOTE + make()
        file = OUT / name
        if file.exists() and file.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            OUT.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    if stale and "--check" in arguments:
        sys.stderr.write(
            f"docs/reference: {', '.join(stale)} are not what the code says; run: make reference\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
