"""The command line: selects the command, and turns its end into an exit status."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import NamedTuple

from ztunnel.admin.servers import bind
from ztunnel.config.config_errors import ConfigError
from ztunnel.config.load_from_machine import load_from_machine
from ztunnel.config.spelling import nearest
from ztunnel.errors import ZtunnelError
from ztunnel.observe.logging import setup_logging, shutdown_logging
from ztunnel.version import build_info


class Command(NamedTuple):
    """A command: its text in the list, and the module whose ``main`` gets its arguments.

    module: empty if the command is implemented here. extra: what has to be installed for it in addition to
        ztunnel.
    """

    summary: str
    module: str = ""
    extra: str = ""


COMMANDS: Mapping[str, Command] = {
    "proxy": Command("run the proxy (the default); it is configured by its environment"),
    "demo": Command("run a small mesh on this machine and show a request through it", "ztunnel.demo"),
    "explain": Command("say why a connection goes where it goes, or how it ended", "ztunnel.tools.explain"),
    "what-if": Command("say which connections a change of policy would cut", "ztunnel.tools.what_if"),
    "top": Command("show the node live in a terminal", "ztunnel.tools.top"),
    "doctor": Command("check what usually goes wrong on a node", "ztunnel.tools.doctor"),
    "version": Command("say which build this is"),
    "help": Command("show this text, or that of a command"),
}

HELP = (
    "ztunnel: the node proxy of Istio's ambient mesh\n\n"
    "Usage: ztunnel [command]\n\n"
    "Commands:\n"
    + "".join(f"  {name:<8} {command.summary}\n" for name, command in COMMANDS.items())
    + "\n`ztunnel COMMAND --help` says more of each. -h, --help and --version work everywhere.\n"
)

PROXY_HELP = """\
usage: ztunnel [proxy]

Runs the proxy until SIGTERM or SIGINT, which begin the drain; a second SIGINT ends it at once. Everything is
configured by environment variables, which docs/configuration.md and Istio's documentation describe; a value
that cannot be used ends the start with `Error: ` and status 1. Other arguments are ignored.

  -h, --help  show this text
  --version   say which build this is

While it runs: http://127.0.0.1:15000/ (what it knows and does), :15020/metrics, :15021/healthz/ready.
"""


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    early: socket.socket | None = None,
) -> int:
    """Run a command. ``argv`` does not have the program's name. Returns the exit status.

    early: the readiness server's socket, if it is listening already.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    variables = os.environ if environ is None else environ
    name = args[0] if args else "proxy"
    if name in ("help", "--help", "-h"):
        return _help(args[1:], variables)
    if "--version" in args or name == "version":
        if name == "version" and _asks_for_help(args):
            sys.stdout.write("usage: ztunnel version\n\nSays which build this is, in one line.\n")
        else:
            sys.stdout.write(f"{build_info(variables.get('ISTIO_META_ISTIO_VERSION', ''))}\n")
        return 0
    if name == "proxy":
        if _asks_for_help(args):
            sys.stdout.write(PROXY_HELP)
            return 0
        return _proxy(args, variables, early)
    command = COMMANDS.get(name)
    if command is not None:
        try:
            return _command(command.module, args[1:])
        except SystemExit as end:  # argparse ends in this way
            return int(end.code or 0)
    meant = nearest(name, COMMANDS, 0.6)
    sys.stderr.write(f"unknown command: {name}" + (f"; did you mean {meant}?\n" if meant else "\n"))
    sys.stdout.write(HELP)
    return 1


def _help(rest: Sequence[str], variables: Mapping[str, str]) -> int:
    """``ztunnel help [COMMAND]``."""
    if rest and rest[0] in COMMANDS and rest[0] != "help":
        return main([rest[0], "--help"], variables)
    sys.stdout.write(HELP)
    return 0


def _asks_for_help(args: Sequence[str]) -> bool:
    return "-h" in args or "--help" in args


def _proxy(args: Sequence[str], environ: Mapping[str, str], early: socket.socket | None) -> int:
    # Process 1 of a container has no default action for SIGTERM. Until there is something to drain, just
    # exit.
    before = signal.signal(signal.SIGTERM, _end_before_start)
    probed = [] if early is None else [early]
    try:
        setup_logging(environ)
        config = load_from_machine(environ, args)
        probed = bind("readiness", config.readiness_addr, early=early)
        if config.num_worker_threads == 1:
            return _delegate("ztunnel.app", "run", config, probed)
        # Before the control side's libraries are loaded, which workers do not need, and before there is a
        # thread.
        with import_module("ztunnel.dataplane.fork_server").start_fork_server(config, probed) as forks:
            return _delegate("ztunnel.app", "run", config, probed, forks)
    except ConfigError as error:
        return _failed(error)
    except ZtunnelError as error:
        return _failed(error)
    finally:
        for sock in probed:
            sock.close()
        signal.signal(signal.SIGTERM, before)
        shutdown_logging()


def _end_before_start(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _failed(error: ZtunnelError) -> int:
    sys.stderr.write(f"Error: {error} ({error.code})\n")
    return 1


def _delegate(module: str, function: str, *arguments: object) -> int:
    # imported late: `version` and `help` answer at once, and a bad configuration before anything is loaded
    result: int | None = getattr(import_module(module), function)(*arguments)
    return result or 0


def _command(module: str, argument: object) -> int:
    """Run a command's ``main``. An interrupt raises KeyboardInterrupt in it, as usual in Python."""
    run = import_module(module).main
    gc.enable()  # see ztunnel.start
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see ztunnel.start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result: int | None = run(argument)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return result or 0


if __name__ == "__main__":
    sys.exit(main())
