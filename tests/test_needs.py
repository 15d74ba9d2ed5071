"""What is skipped for lack of something is named, with what installs it; CI skips nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.everything import Outcome, render
from ztunnel.demo.network import RedirectionUnavailableError

REPOSITORY = Path(__file__).parents[1]

TEST = """
import subprocess
import pytest
from tests.needs import needs_programs

def test_runs_it():
    subprocess.run(["dig", "-v"], check=True)

@needs_programs("nft", "make")
def test_says_so():
    subprocess.run(["sh", "-c", "nft --version"], check=True)

@pytest.fixture
def server():
    raise ExceptionGroup("two", [ValueError("x"), FileNotFoundError(2, "no", "/usr/bin/curl")])

def test_whose_fixture_runs_it(server): ...

def test_fails():
    open("/not/there/at/all")
"""


def run(tmp_path: Path, **environment: str) -> str:
    """A pytest run on a machine with an empty PATH."""
    (tmp_path / "test_lacking.py").write_text(TEST)
    (tmp_path / "bin").mkdir()
    script = (
        "import sys, pytest; from tests import needs; needs.deps.PATHS = sys.argv[1];"
        "from tests import conftest; sys.exit(pytest.main(sys.argv[2:], plugins=[conftest]))"
    )
    arguments = [str(tmp_path / "bin"), "-q", "-ra", "-p", "no:randomly", "-p", "no:cacheprovider"]
    arguments += ["--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PATH": str(tmp_path / "bin"), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_test_without_its_program_is_skipped_and_names_the_package(tmp_path: Path):
    file = tmp_path / "summary"
    output = run(tmp_path, TEST_SUMMARY_FILE=str(file))
    assert "1 failed, 3 skipped" in output
    assert "test_lacking.py::test_fails\n" in output
    assert "needs the program dig (Debian: dnsutils, Fedora: bind-utils; make deps)" in output
    assert "apt-get install curl dnsutils nftables\n" in output
    assert "dnf install bind-utils curl nftables\n" in output
    assert len(file.read_text().splitlines()) == 3


def test_in_ci_nothing_is_skipped(tmp_path: Path):
    output = run(tmp_path, CI="true")
    assert "2 failed" in output
    assert "2 errors" in output
    assert " skipped" not in output.splitlines()[-1]


def test_a_redirection_that_cannot_be_is_told_by_its_cause(monkeypatch: pytest.MonkeyPatch):
    error = RedirectionUnavailableError("iptables: no")
    monkeypatch.setattr(needs.deps, "is_there", lambda _: True)
    assert needs.lack_behind(error) == "needs a kernel with these rules: iptables: no"
    monkeypatch.setattr(needs.deps, "is_there", lambda name: name != "nft")
    assert (needs.lack_behind(error) or "").startswith("needs the program nft (Debian: nftables,")


def test_what_else_fails_stays_a_failure():
    assert needs.lack_behind(FileNotFoundError(2, "No such file", "/etc/nothing")) is None
    assert needs.lack_behind(OSError("no")) is None


def test_the_summary_counts_and_says_how_to_install():
    reasons = [f"Skipped: {needs.missing('dig')}"] * 2 + ["Skipped: needs root"]
    text = render([Outcome("unit", 0, 61.0), Outcome("e2e", 1, 5.0)], reasons)
    assert text == (
        "--- summary\n"
        "  unit       passed      61 s\n"
        "  e2e        FAILED       5 s\n"
        "3 tests were skipped.\n"
        "     2 for lack of dig\n"
        "     1 needs root\n"
        "The programs are in these packages (make deps):\n"
        "  Debian, Ubuntu:  apt-get install dnsutils\n"
        "  Fedora:          dnf install bind-utils\n"
    )
    assert render([], []).endswith("Nothing was skipped.\n")
