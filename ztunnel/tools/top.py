"""``ztunnel top``: the node in a terminal, live; by port-forward or in the pod. Needs ``ztunnel[top]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ztunnel.tools.ask import ADMIN, UNCLEAR, AskError, fail, get

_EPILOG = """\
keys: 1-6 the parts, enter explains the chosen connection, s changes the order, p pauses, q ends.

It shows what the front page of the admin port shows. textual is an extra: pip install 'ztunnel[top]'.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = argparse.ArgumentParser(
        prog="ztunnel top",
        description="The node live in a terminal: connections with rates and what they wait for, refusals "
        "with reasons, tunnels, pods, certificates and the tree of tasks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--admin", metavar="URL", default=ADMIN, help=f"the running ztunnel (default: {ADMIN})")
    made.add_argument("--every", metavar="SECONDS", type=float, default=2.0, help="how often to look")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status."""
    args = parser().parse_args(list(arguments))
    if find_spec("textual") is None:
        sys.stderr.write(
            "ztunnel top needs textual: pip install 'ztunnel[top]' (the front page needs nothing)\n"
        )
        return UNCLEAR
    try:
        answer = get(args.admin, "/node", {})
    except AskError as error:
        return fail(error)
    if answer.status != 200:
        return fail(AskError(f"What answers at {args.admin} does not know /node: it is another version."))
    from ztunnel.tools.top_app import Top  # noqa: PLC0415 - textual is an extra

    Top(args.admin, max(0.2, args.every)).run()
    return 0
