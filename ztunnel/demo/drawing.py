"""Draws the demo's mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def draw_mesh(nodes: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Two nodes side by side, with their pods (name and address), and the network between them."""
    (left, left_pods), (right, right_pods) = nodes.items()
    rows = max(len(left_pods), len(right_pods))
    inner = max(len(_pod(*pod)) for pods in nodes.values() for pod in pods)
    wire = " ══ mTLS (HBONE) ══ "
    gap = " " * len(wire)
    lines = [
        gap.join(f"┌─ node {name} {'─' * (inner - len(name) - 6)}┐" for name in (left, right)),
    ]
    for row in range(rows):
        first, second = (_pod(*pods[row]) if row < len(pods) else "" for pods in (left_pods, right_pods))
        lines.append(f"│ {first:<{inner}} │{wire if row == 0 else gap}│ {second:<{inner}} │")
    bottom = f"└{'─' * (inner + 2)}┘"
    return [*lines, bottom + gap + bottom]


def _pod(name: str, address: str) -> str:
    return f"{name} {address} + ztunnel"
