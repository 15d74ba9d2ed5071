"""``ztunnel demo``: chooses what this machine permits, and runs the demo there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from ztunnel.demo.loopback import tell_on_loopback
from ztunnel.demo.machine import InterruptedByError, Machine, interruptible
from ztunnel.demo.namespaces import (
    NamespaceUnavailableError,
    become_root_of_own_namespace,
    may_make_namespaces,
)
from ztunnel.demo.port_forward import PortForward
from ztunnel.demo.processes import NotReadyError, ProcessEndedError
from ztunnel.demo.story import DemoEnvironment, DemoFailedError, tell
from ztunnel.demo.terminal import TerminalPage
from ztunnel.demo.tour import TourFailedError

USAGE = """usage: ztunnel demo [--tour] [--keep]

Builds a small mesh on this machine, sends a request through it, shows what happened, and cleans up.
--tour   then break something, and find it with ztunnel explain
--keep   leave it running until Ctrl-C, and print its dashboard's address and how to play with it
"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo with the arguments after ``demo``. Returns the exit status."""
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(USAGE)
        return 0
    unknown = [argument for argument in arguments if argument not in {"--keep", "--tour"}]
    if unknown:
        sys.stderr.write(f"unknown argument: {unknown[0]}\n{USAGE}")
        return 1
    page = TerminalPage()
    page.line("ztunnel demo: two applications that know nothing of the mesh talk through it.")
    try:
        with interruptible():
            _run(page, keep="--keep" in arguments, tour="--tour" in arguments)
    except InterruptedByError as interrupted:
        page.line("\nInterrupted. Everything that was made has been removed.")
        return int(interrupted.code or 0)
    except (DemoFailedError, TourFailedError, NotReadyError, ProcessEndedError, OSError) as error:
        page.line(f"\nThe demo failed: {error}\n\nEverything that was made has been removed.")
        return 1
    return 0


def _run(page: TerminalPage, *, keep: bool, tour: bool) -> None:
    # First of all, because this process may be about to leave the machine's network namespace.
    with closing(PortForward()) as forward:
        _tell(page, forward if keep else None, tour=tour)
    page.line("\nEverything that was made has been removed.")
    _say_what_next(page, keep=keep, tour=tour)


def _tell(page: TerminalPage, forward: PortForward | None, *, tour: bool) -> None:
    environment = _environment()
    if environment is None:
        page.text(
            "This machine permits neither network namespaces nor unprivileged user namespaces (as root "
            "the demo shows more). So there is one ztunnel on loopback, reached over SOCKS5, and the one "
            "workload that it serves talks to itself."
        )
        if tour:
            page.text("The tour needs namespaces as well, and is left out.")
        with Machine.open() as machine:
            tell_on_loopback(page, machine, keep=forward is not None)
    else:
        with Machine.open() as machine:
            tell(page, machine, environment, forward=forward, tour=tour)


def _say_what_next(page: TerminalPage, *, keep: bool, tour: bool) -> None:
    if keep:
        return
    page.line("\nWhat to try next:")
    commands = [] if tour else [("ztunnel demo --tour", "something breaks, and explain finds it")]
    commands += [
        ("ztunnel demo --keep", "leave it running: dashboard, logs, a mesh that you can change"),
        ("ztunnel help", "the other commands"),
    ]
    page.drawing(f"{command:<22} {what}" for command, what in commands)


def _environment() -> DemoEnvironment | None:
    if may_make_namespaces():
        return DemoEnvironment(own_user_namespace=False)
    try:
        become_root_of_own_namespace()
    except NamespaceUnavailableError:
        return None
    return DemoEnvironment(own_user_namespace=True)
