"""The benchmark's results: printed, kept in a file, and written into docs/performance.md with a plot.

usage: python -m tests.bench.results RESULTS.json     writes the page anew
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from tests.bench.pairs import DIRECT, ENVOY, OURS
from tests.bench.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
PLOT = PAGE.with_name("performance.svg")
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"


def _pairs(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text(rows: Sequence[Row]) -> str:
    """A table for the terminal: ratios to the direct connection first."""
    pairs = _pairs(rows)
    compared = [name for name in pairs if name != DIRECT]
    head = f"{'':45}" + "".join(f"{'x ' + name:>9}" for name in compared)
    lines = [head + "  " + "".join(f"{name:>10}" for name in pairs)]
    for row in rows:
        ratios = "".join(f"{_ratio(row, name):>9}" for name in compared)
        values = "".join(f"{_number(row.values.get(name)):>10}" for name in pairs)
        lines.append(f"{row.name:45}{ratios}  {values}  {row.unit}")
    return "\n".join(lines)


def _ratio(row: Row, pair: str) -> str:
    ratio = row.ratio(pair)
    return "" if ratio is None else f"{ratio:.2f}"


def _markdown(rows: Sequence[Row]) -> str:
    pairs = _pairs(rows)
    compared = [name for name in pairs if name != DIRECT]
    head = ["", *(f"{name} ÷ direct" for name in compared if DIRECT in pairs), *pairs, "unit"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        ratios = [_ratio(row, name) for name in compared if DIRECT in pairs]
        values = [_number(row.values.get(name)) for name in pairs]
        lines.append(f"| {' | '.join([row.name.strip(), *ratios, *values, row.unit])} |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} cores of {model}",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "Python": f"{platform.python_version()} ({Path(sys.executable).resolve()})",
        "load average at the end": f"{os.getloadavg()[0]:.1f}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def merge(path: Path, tables: dict[str, list[Row]]) -> None:
    """Put tables into a file of results; rows of the same name are replaced."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"tables": {}}
    kept["machine"] = machine()
    for title, rows in tables.items():
        before = {row["name"]: row for row in kept["tables"].get(title, [])}
        before |= {row.name: row.plain() for row in rows}
        kept["tables"][title] = list(before.values())
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def write_page(results: Path) -> None:
    """Write the figures and the plot of the documentation anew; the page's own words stay."""
    kept = json.loads(results.read_text())
    tables = {title: [Row(**row) for row in rows] for title, rows in kept["tables"].items()}
    facts = "; ".join(f"{name} {value}" for name, value in kept["machine"].items())
    parts = [_BEGIN, "", f"Measured on: {facts}.", "", f"![ratios to the direct connection]({PLOT.name})"]
    for title, rows in tables.items():
        parts += ["", f"### {title}", "", _markdown(rows)]
    page = PAGE.read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    PAGE.write_text(before + "\n".join([*parts, "", _END]) + after)
    PLOT.write_text(_plot(next(iter(tables.values()))))


def _plot(rows: Sequence[Row]) -> str:
    """Bars: how each row compares with the direct connection. The shorter the better, whatever the unit."""
    shown = [row for row in rows if row.ratio(OURS) is not None]
    bars = []
    height = 0
    for row in shown:
        bars.append(f'<text x="270" y="{height + 19}" text-anchor="end">{escape(row.name)}</text>')
        for name, colour in ((OURS, "#2f6f9f"), (ENVOY, "#c98a2b")):
            ratio = row.ratio(name)
            if ratio is None:
                continue
            times = ratio if row.less else 1 / ratio
            width = min(times, 20) * 20
            bars.append(
                f'<rect x="280" y="{height + 4}" width="{width:.0f}" height="10" fill="{colour}"/>'
                f'<text x="{286 + width:.0f}" y="{height + 13}">{name} {times:.1f}</text>'
            )
            height += 13
        height += 9
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{height + 30}" '
        'font-family="sans-serif" font-size="11">'
        f'<title>How many times the direct connection</title><rect width="100%" height="100%" fill="white"/>'
        + "".join(bars)
        + f'<text x="280" y="{height + 20}">times the direct connection (its rate divided by ours where '
        "more is better)</text></svg>\n"
    )


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
