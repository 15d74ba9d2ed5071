"""``make bench``: what going through the mesh costs, beside the direct connection and beside a real Envoy.

One run in in-pod mode, once with one ztunnel for both pods and once with two nodes, then with 1, 2 and 4
workers. The same load runs between each pair of pods (`tests.bench.pairs`); rounds alternate between the
pairs, since another job on the machine disturbs all of them, and the median counts. CPU time is that of the
proxies alone, of all their processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.bench import results
from tests.bench.pairs import BASE, DIRECT, ENVOY, ONE, OURS, TWO, Base, Layout, opened
from tests.bench.rows import GROUPS, Bench, Row, many_pods
from ztunnel.demo.machine import interruptible
from ztunnel.demo.namespaces import may_make_namespaces

WORKERS = (1, 2, 4)


def table(layout: Layout, options: argparse.Namespace) -> list[Row]:
    """The rows of a layout."""
    wanted = (BASE, OURS) if options.base else (DIRECT, OURS, ENVOY)
    if options.base:
        wanted = (DIRECT, *wanted)
    rows: list[Row] = []
    base = Base(options.base, options.base_python) if options.base else None
    with opened(layout, wanted, base=base) as pairs:
        bench = Bench(pairs, options.rounds, options.scale)
        for name in options.rows or GROUPS:
            rows += GROUPS[name](bench)
    return rows


def scaling(options: argparse.Namespace) -> dict[str, list[Row]]:
    """The same load on more and more workers."""
    found = {}
    for workers in WORKERS:
        environment = {"ZTUNNEL_WORKER_THREADS": str(workers)}
        with opened(ONE, (DIRECT, OURS), others=3, environment=environment) as pairs:
            found[f"{workers} worker{'s' if workers > 1 else ''}"] = many_pods(
                Bench(pairs, options.rounds, options.scale)
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median counts (default 3)")
    parser.add_argument("--scale", type=float, default=1, help="how much load, 1 is all (default 1)")
    parser.add_argument("--rows", nargs="*", choices=list(GROUPS), help="only these rows")
    parser.add_argument(
        "--layout", nargs="*", choices=["one", "two", "workers"], help="only these parts (default: all)"
    )
    parser.add_argument("--base", type=Path, help="a checkout of another revision to compare with")
    parser.add_argument(
        "--base-python",
        default=sys.executable,
        help="the interpreter of that revision's ztunnel (default: this one)",
    )
    parser.add_argument("--json", type=Path, help="merge the results into this file")
    options = parser.parse_args()
    if not may_make_namespaces():
        print("The benchmark needs the right to make network namespaces; run it as root.", file=sys.stderr)
        return 1
    parts = options.layout or (["one", "two"] if options.base else ["one", "two", "workers"])
    began = time.monotonic()
    with interruptible():
        for name, layout in (("one", ONE), ("two", TWO)):
            if name in parts:
                _report({layout.title: table(layout, options)}, options.json)
        if "workers" in parts:
            _report(scaling(options), options.json)
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes")
    return 0


def _report(tables: dict[str, list[Row]], kept: Path | None) -> None:
    """Print tables, and keep them: what comes later may fail."""
    for title, rows in tables.items():
        print(f"\n{title}\n\n{results.text(rows)}", flush=True)
    if kept is not None:
        results.merge(kept, tables)


if __name__ == "__main__":
    sys.exit(main())
