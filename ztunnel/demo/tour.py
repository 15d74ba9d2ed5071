"""``ztunnel demo --tour``: breaks something, and `ztunnel explain` finds it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ztunnel.demo import processes
from ztunnel.demo.dedicated import ztunnel_command
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.terminal import TerminalPage

ALLOWED = "principals: [!Exact cluster.local/ns/default/sa/client]"
MISTAKE = "principals: [!Exact cluster.local/ns/default/sa/clients]"
"""A typing error in the policy that allows the client."""

PATIENCE = 30.0
_POLL = 0.2


class TourFailedError(RuntimeError):
    """A change of the mesh did not come into force; the text says which one."""


def go_round(
    page: TerminalPage,
    file: Path,
    client: OwnedNamespace,
    request: str,
    ask: Callable[[], subprocess.CompletedProcess[str]],
    vip: str,
) -> None:
    """Break the mesh, let explain say why, repair it. Raises TourFailedError.

    file: the mesh, which the ztunnels watch. client: where explain is run. request, ask: the client's
        request, as it is shown and made.
    """
    page.step("Something breaks")
    mesh = file.read_text()
    if mesh.count(ALLOWED) != 1:
        raise TourFailedError("the mesh has not the one policy that the tour breaks")
    page.progress("changing the mesh, and waiting until it is in force")
    file.write_text(mesh.replace(ALLOWED, MISTAKE))
    answer = _until(ask, lambda done: done.returncode != 0, "the mistake")
    page.text("Somebody has changed one line of the mesh. The same request as in the beginning:")
    page.excerpt([f"client$ {request}", *(answer.stdout + answer.stderr).splitlines()])
    _pause(page, "What would you look at? Enter shows what explain says")

    page.step("ztunnel explain says why")
    command = ["ztunnel", "explain", "default/client", f"{vip}:80"]

    def explain() -> subprocess.CompletedProcess[str]:
        return processes.run(ztunnel_command(*command[1:]), namespace=client)

    # The client's ztunnel watches the file itself, and may see the change a moment later.
    explained = _until(explain, lambda done: done.returncode == 1, "the mistake, for explain,")
    if "only-client" not in explained.stdout:
        raise TourFailedError(f"explain does not name the policy: {explained.stdout}{explained.stderr}")
    page.excerpt([f"client$ {' '.join(command)}", *explained.stdout.splitlines()])
    page.text(
        "It asks the decisions of the data path themselves, so what it says is what happens: the last line "
        "has the policy, and the identity that it does not allow."
    )
    _pause(page, "Enter mends it")

    page.step("Mended")
    page.excerpt([f"- {MISTAKE}", f"+ {ALLOWED}"])
    page.progress("changing the mesh back, and waiting until it is in force")
    file.write_text(mesh)
    answer = _until(ask, lambda done: done.returncode == 0, "the correction")
    page.excerpt([f"client$ {request}", *answer.stdout.splitlines()])


def _until(
    ask: Callable[[], subprocess.CompletedProcess[str]],
    good: Callable[[subprocess.CompletedProcess[str]], bool],
    what: str,
) -> subprocess.CompletedProcess[str]:
    deadline = time.monotonic() + PATIENCE
    while not good(answer := ask()):
        if time.monotonic() > deadline:
            raise TourFailedError(f"{what} was not in force after {PATIENCE:g} s")
        time.sleep(_POLL)  # noqa: TID251 - the demo is no trio program
    return answer


def _pause(page: TerminalPage, text: str) -> None:
    """Give the reader time, if there is one."""
    if page.terminal and sys.stdin.isatty():
        page.line(f"\n   [{text}]")
        sys.stdin.readline()
