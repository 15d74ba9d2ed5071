"""``ztunnel demo [--keep]``: choose the surroundings that this machine permits, and tell the story there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ztunnel.demo.loopback import tell_on_loopback
from ztunnel.demo.machine import InterruptedByError, Machine, interruptible
from ztunnel.demo.namespaces import (
    NamespaceUnavailableError,
    become_root_of_own_namespace,
    may_make_namespaces,
)
from ztunnel.demo.page import Page
from ztunnel.demo.processes import NotReadyError, ProcessEndedError
from ztunnel.demo.story import DemoFailedError, Surroundings, tell

USAGE = """usage: ztunnel demo [--keep]

Builds a small mesh on this machine, sends a request through it, shows what happened, and cleans up.
--keep   leave it running until Ctrl-C, and print how to play with it
"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo with the arguments after ``demo``; gives the exit status."""
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(USAGE)
        return 0
    unknown = [argument for argument in arguments if argument != "--keep"]
    if unknown:
        sys.stderr.write(f"unknown argument: {unknown[0]}\n{USAGE}")
        return 1
    page = Page()
    page.line("ztunnel demo: two applications that know nothing of the mesh talk through it.")
    try:
        with interruptible():
            _run(page, keep="--keep" in arguments)
    except InterruptedByError as interrupted:
        page.line("\nInterrupted. Everything that was made has been removed.")
        return int(interrupted.code or 0)
    except (DemoFailedError, NotReadyError, ProcessEndedError) as error:
        page.line(f"\nThe demo failed: {error}\n\nEverything that was made has been removed.")
        return 1
    return 0


def _run(page: Page, *, keep: bool) -> None:
    surroundings = _surroundings()
    if surroundings is None:
        page.text(
            "This machine permits neither network namespaces nor unprivileged user namespaces (as root "
            "the demo shows more). So there is one ztunnel on loopback, reached over SOCKS5, and the one "
            "workload that it serves talks to itself."
        )
        with Machine.open() as machine:
            tell_on_loopback(page, machine, keep=keep)
    else:
        with Machine.open() as machine:
            tell(page, machine, surroundings, keep=keep)
    page.line("\nEverything that was made has been removed.")


def _surroundings() -> Surroundings | None:
    if may_make_namespaces():
        return Surroundings(own_user_namespace=False)
    try:
        become_root_of_own_namespace()
    except NamespaceUnavailableError:
        return None
    return Surroundings(own_user_namespace=True)
