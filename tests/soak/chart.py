"""Samples as an SVG: a few lines over time, each panel with a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP = 760, 110, 60, 26
COLOURS = ("#1f6f8b", "#b5533c", "#4f7a28", "#7a4f9a")


def chart(seconds: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Returns the SVG: a panel for each title, a line for each series, from 0 to the panel's largest."""
    height = len(panels) * (HEIGHT + 2 * TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 20}" height="{height}">',
        "<style>text {font: 12px sans-serif}</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    last = max(seconds[-1], 1) if seconds else 1
    for number, (title, series) in enumerate(panels.items()):
        top = number * (HEIGHT + 2 * TOP) + TOP
        most = max((max(values) for values in series.values() if values), default=0) or 1
        parts.append(f'<text x="{LEFT}" y="{top - 8}">{escape(title)}</text>')
        parts.append(
            f'<path d="M{LEFT} {top}V{top + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="#888"/>'
            f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:g}</text>'
            f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>'
            f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 14}" text-anchor="end">{last / 60:.0f} min</text>'
        )
        for index, (name, values) in enumerate(series.items()):
            points = " ".join(
                f"{LEFT + WIDTH * second / last:.1f},{top + HEIGHT - HEIGHT * value / most:.1f}"
                for second, value in zip(seconds, values, strict=True)
            )
            colour = COLOURS[index % len(COLOURS)]
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(
                f'<text x="{LEFT + WIDTH - 8 - 150 * index}" y="{top - 8}" text-anchor="end" '
                f'fill="{colour}">{escape(name)}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])
