"""Both commands of README.md on a bare Debian: as root and as a user, with and without user namespaces."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.bare.root import CACHE, BareMachine, BareRootError, bare_machine
from tests.needs import needs_programs, unavailable
from ztunnel.demo.namespaces import may_make_namespaces

# Everything runs once, as a user. Otherwise what meets the machine: namespaces, sockets, files, programs.
MACHINE = (
    "tests/demo tests/netns tests/sockets tests/dataplane tests/dns tests/system "
    "tests/test_cli.py tests/test_needs.py"
)
# The kernel under a bare machine is this one's, so a few end-to-end tests of each kind do.
SOME = "tests/e2e/test_traffic.py tests/e2e/test_socks5.py tests/e2e/test_dns.py tests/e2e/test_harness.py"

OUTPUT = CACHE / "output.txt"
FAILURES = re.compile(r"^=+ (?:FAILURES|ERRORS) =+$.*?^=+ short test summary", re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not may_make_namespaces(), reason="needs root and the right to make namespaces"
    ),
    needs_programs("debootstrap", "unshare", "setpriv", "git"),
    pytest.mark.slow,
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def machine() -> Iterator[BareMachine]:
    """One machine for all tests: what one user has set up is there for that user's next command."""
    try:
        with bare_machine() as made:
            yield made
    except BareRootError as error:
        unavailable(f"no bare machine can be made here: {error}")


def assert_passed(done: subprocess.CompletedProcess[str]) -> str:
    """Gives what was printed. Of a failure the tests that failed come first."""
    OUTPUT.write_text(done.stdout)
    failures = "\n".join(part[:20_000] for part in FAILURES.findall(done.stdout))
    assert done.returncode == 0, f"{failures}\n{done.stdout[-6000:]}\nall of it: {OUTPUT}"
    return done.stdout


def assert_demo(output: str) -> None:
    assert "Hello from the pod web." in output
    assert "Everything that was made has been removed." in output.partition("That took")[2]


def assert_test(output: str) -> str:
    """All passed, and the summary names what is missing and what installs it; gives the summary."""
    summary = output.partition("--- summary\n")[2]
    for target in ("lint", "types", "unit", "e2e"):
        assert any(line.split()[:2] == [target, "passed"] for line in summary.splitlines()), output[-12_000:]
    assert "tests were skipped." in summary
    return summary


def test_as_root(machine: BareMachine) -> None:
    assert_demo(assert_passed(machine.run("make demo")))
    summary = assert_test(assert_passed(machine.run(f"make test PATHS='{MACHINE}' E2E='{SOME}'")))
    assert "for lack of dig" in summary
    assert "  Debian, Ubuntu:  apt-get install " in summary
    assert "  Fedora:          dnf install " in summary


def test_as_a_user_with_user_namespaces(machine: BareMachine) -> None:
    output = assert_passed(machine.run("make demo", user=1000))
    assert_demo(output)
    assert "unprivileged user namespace" in " ".join(output.split())
    summary = assert_test(assert_passed(machine.run("make test", user=1000)))
    assert "needs root and the right to make network namespaces" in summary


def test_as_a_user_without_user_namespaces(machine: BareMachine) -> None:
    output = assert_passed(machine.run("make demo", user=1000, user_namespaces=False))
    assert_demo(output)
    assert "permits neither network namespaces nor unprivileged user namespaces" in " ".join(output.split())
    command = f"make test PATHS='{MACHINE}'"
    assert_test(assert_passed(machine.run(command, user=1000, user_namespaces=False)))
