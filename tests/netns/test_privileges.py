"""What a ztunnel without the capabilities of in-pod mode says at its start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.needs import needs_programs
from tests.support.namespaces import needs_namespaces

PROGRAM = """
import sys, trio
from ztunnel.netns.privileges import MissingPrivilegeError, verify_privileges
try:
    trio.run(verify_privileges, int(sys.argv[1]) or None)
except MissingPrivilegeError as error:
    print(error.code, error)
else:
    print("all is permitted")
"""

pytestmark = [needs_namespaces, needs_programs("setpriv")]


def said(mark: int, *without: str) -> str:
    """What the check says in a process that can never have some capabilities."""
    missing = ",".join(f"-{name}" for name in without)
    drop = ["setpriv", f"--bounding-set={missing}", f"--inh-caps={missing}"] if without else []
    command = [*drop, sys.executable, "-c", PROGRAM, str(mark)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_with_all_of_them_nothing_is_said():
    assert said(1337) == "all is permitted"


@pytest.mark.parametrize("mark", [0, 1337])
def test_namespaces_need_sys_admin(mark: int):
    text = said(mark, "sys_admin")
    assert text.startswith("ZT-NET-030 A network namespace cannot be entered (")
    assert "Operation not permitted" in text
    assert text.endswith("this needs CAP_SYS_ADMIN.")


def test_marks_need_net_admin_or_net_raw():
    text = said(1337, "net_admin", "net_raw")
    assert text.startswith("ZT-NET-030 Packets cannot be marked (Operation not permitted")
    assert said(1337, "net_raw") == "all is permitted"
    assert said(0, "net_admin", "net_raw") == "all is permitted", "no mark is configured"
