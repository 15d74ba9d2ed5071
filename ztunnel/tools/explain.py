"""``ztunnel explain``: why a connection goes where it goes, or ended as it did."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from ztunnel.errors import ZtunnelError
from ztunnel.explain.connection_path import Question, telling
from ztunnel.explain.connection_views import connection_lines
from ztunnel.explain.dump_state import dump_state
from ztunnel.explain.explanation import Explanation, Outcome
from ztunnel.explain.live_state import judge
from ztunnel.explain.saved_dump import read_dump
from ztunnel.explain.text import lines
from ztunnel.slices import at_once
from ztunnel.tools.ask import ADMIN, REFUSED, UNCLEAR, AskError, decode, fail, get, read_file

_EPILOG = """\
FROM: namespace/pod, a workload's uid, or an address.
TO:   namespace/service, a hostname as the pod would use it, ip:port, namespace/pod:port; each with :port.

exit status: 0 it would be carried, 1 it would be refused or fails, 2 the question could not be answered.

examples:
  ztunnel explain default/client web:80
  ztunnel explain default/client 10.96.0.7:443 --json
  ztunnel explain --dump config_dump.json default/client shop/web
  ztunnel explain --connection 3f9a1-2c
"""


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = argparse.ArgumentParser(
        prog="ztunnel explain",
        description="Tells the whole way of a connection, step by step, with the decisions of the data path "
        "itself: of a running ztunnel, or on a saved config dump (a Rust ztunnel's too).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("source", metavar="FROM", nargs="?", help="who connects")
    made.add_argument("destination", metavar="TO", nargs="?", help="to what")
    made.add_argument("--connection", metavar="ID", help="explain one that was, by the id of its log line")
    made.add_argument("--dump", metavar="FILE", help="ask a saved config dump (- for standard input)")
    made.add_argument("--admin", metavar="URL", default=ADMIN, help=f"a running ztunnel (default: {ADMIN})")
    made.add_argument("--json", action="store_true", help="for programs")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser()
    args = options.parse_args(list(arguments))
    if args.connection is not None and (args.source or args.dump is not None):
        options.error("--connection is asked of a running ztunnel, and without FROM, TO and --dump")
    try:
        if args.connection is not None:
            return _connection(args.admin, args.connection, as_json=args.json)
        if not (args.source and args.destination):
            options.error("FROM and TO are needed, or --connection")
        if args.dump is not None:
            mesh = read_dump(read_file(args.dump))
            told = at_once(telling(mesh.catalogue, Question(args.source, args.destination), mesh.setting))
            answer = told.explanation
            answer.live = dump_state(mesh.dump, told)
            judge(answer)
        else:
            answer = _live(args.admin, args.source, args.destination)
    except ZtunnelError as error:
        return fail(error)
    if args.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(answer), indent=2) + b"\n")
    else:
        sys.stdout.write("\n".join(lines(answer)) + "\n")
    return {Outcome.REFUSED: REFUSED, Outcome.FAILING: REFUSED, Outcome.UNKNOWN: UNCLEAR}.get(
        answer.outcome, 0
    )


def _live(admin: str, source: str, destination: str) -> Explanation:
    answer = get(admin, "/explain", {"from": source, "to": destination, "json": "1"})
    if answer.status not in (200, 404):
        raise AskError(f"{admin} answers {answer.status}: {answer.body.decode(errors='replace').strip()}")
    return decode(answer, admin, "/explain", Explanation)


def _connection(admin: str, connection: str, *, as_json: bool) -> int:
    answer = get(admin, "/explain", {"connection": connection, "json": "1"})
    if answer.status != 200:
        sys.stderr.write(answer.body.decode(errors="replace"))
        return UNCLEAR
    view = decode(answer, admin, "/explain", dict[str, Any])
    if as_json:
        sys.stdout.buffer.write(answer.body)
    else:
        sys.stdout.write("\n".join(connection_lines(view)) + "\n")
    return REFUSED if view.get("error") else 0
