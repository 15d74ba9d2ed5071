"""The command line: which command is meant, and what its end means for the exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import FrameType

from ztunnel.config import ConfigError, load_config
from ztunnel.config.files import read_text_file
from ztunnel.errors import ZtunnelError
from ztunnel.observe.logging import setup_logging, shutdown_logging
from ztunnel.version import build_info

HELP = """\
ztunnel: the node proxy of Istio's ambient mesh

Usage: ztunnel [command]

Commands:
  proxy    run the proxy (the default); it is configured by its environment
  demo     run a small mesh on this machine and show a request through it
  version  say which build this is
  help     show this text
"""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a command; ``argv`` is without the program's name. Returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    variables = os.environ if environ is None else environ
    command = args[0] if args else "proxy"
    match command:
        case "proxy":
            return _proxy(args, variables)
        case "demo":
            return _delegate("ztunnel.demo", "main", args[1:])
        case "version":
            sys.stdout.write(f"{build_info(variables.get('ISTIO_META_ISTIO_VERSION', ''))}\n")
            return 0
        case "help" | "--help" | "-h":
            sys.stdout.write(HELP)
            return 0
    sys.stderr.write(f"unknown command: {command}\n")
    sys.stdout.write(HELP)
    return 1


def _proxy(args: Sequence[str], environ: Mapping[str, str]) -> int:
    # Process 1 of a container has no default for it. Until there is something to drain, just end.
    before = signal.signal(signal.SIGTERM, _end_before_start)
    try:
        setup_logging(environ)
        config = load_config(
            environ, read_file=read_text_file, cpu_count=len(os.sched_getaffinity(0)), args=args
        )
        return _delegate("ztunnel.app", "run", config)
    except ConfigError as error:
        return _failed(error)
    except ZtunnelError as error:
        return _failed(error)
    finally:
        signal.signal(signal.SIGTERM, before)
        shutdown_logging()


def _end_before_start(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _failed(error: ZtunnelError) -> int:
    sys.stderr.write(f"Error: {error}\n")
    return 1


def _delegate(module: str, function: str, argument: object) -> int:
    # imported late: `version` and `help` answer at once, and a bad configuration before anything is loaded
    result: int | None = getattr(import_module(module), function)(argument)
    return result or 0


if __name__ == "__main__":
    sys.exit(main())
