"""The audit finds what advisories say of locked libraries, and says when it did not look."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "audit.py"
LOCK = "Some_Lib==1.4.0 \\\n    --hash=sha256:00\nother==2.0 ; python_version > '3'\n"


def advisory(number: int, name: Any = "some-lib", **fields: Any) -> dict[str, object]:
    affected: dict[str, object] = {"package": {"ecosystem": "PyPI", "name": name}, **fields}
    return {"id": f"PYSEC-{number}", "summary": "a hole", "affected": [affected]}


def events(*pairs: tuple[str, str]) -> dict[str, object]:
    return {"ranges": [{"type": "ECOSYSTEM", "events": [{key: value} for key, value in pairs]}]}


def audit(
    tmp_path: Path, *advisories: dict[str, object], how: str = "json"
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "lock").write_text(LOCK)
    path = tmp_path / "advisories"
    if how == "zip":
        path = tmp_path / "all.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for one in advisories:
                archive.writestr(f"{one['id']}.json", json.dumps(one))
    else:
        (path / "vulns").mkdir(parents=True)
        for one in advisories:
            (path / "vulns" / f"{one['id']}.{how}").write_text(json.dumps(one))
    return run("--advisories", str(path), "--lock", str(tmp_path / "lock"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("how", ["json", "yaml", "zip"])
def test_an_affected_library_is_named(tmp_path: Path, how: str):
    done = audit(tmp_path, advisory(1, **events(("introduced", "0"), ("fixed", "1.4.1"))), how=how)
    assert done.returncode == 1
    assert "VULNERABLE some-lib 1.4.0: PYSEC-1 a hole" in done.stdout


@pytest.mark.parametrize(
    ("found", "fields"),
    [
        (True, events(("introduced", "1.0"), ("fixed", "1.4.1"))),
        (False, events(("introduced", "1.0"), ("fixed", "1.4.0"))),
        (False, events(("introduced", "1.4.1"))),
        (True, events(("introduced", "0"), ("fixed", "1.1"), ("introduced", "1.3"), ("fixed", "1.5"))),
        (False, events(("introduced", "0"), ("fixed", "1.1"), ("introduced", "1.5"))),
        (True, events(("introduced", "1.0"), ("last_affected", "1.4.0"))),
        (False, events(("introduced", "1.0"), ("last_affected", "1.3.9"))),
        (True, {"versions": ["1.4.0"]}),
        (False, {"versions": ["1.4"]}),
    ],
)
def test_ranges_are_those_of_the_format(tmp_path: Path, found: bool, fields: dict[str, object]):
    done = audit(tmp_path, advisory(1, **fields))
    assert (done.returncode == 1) is found, done.stdout


def test_others_and_withdrawn_ones_are_passed_over(tmp_path: Path):
    everything = events(("introduced", "0"))
    withdrawn = advisory(1, **everything) | {"withdrawn": "2026-01-01T00:00:00Z"}
    elsewhere = advisory(2, **everything)
    elsewhere["affected"][0]["package"] = {"ecosystem": "npm", "name": "some-lib"}  # type: ignore[index]
    done = audit(tmp_path, withdrawn, elsewhere, advisory(3, "third", **everything))
    assert done.returncode == 0
    assert "2 libraries, 3 advisories, 0 findings" in done.stdout


def test_without_a_copy_it_says_that_it_was_skipped(tmp_path: Path):
    for arguments in ((), ("--advisories", str(tmp_path / "nothing"))):
        done = run(*arguments)
        assert done.returncode == 0
        assert "audit SKIPPED" in done.stdout


def test_an_empty_copy_is_no_success(tmp_path: Path):
    assert audit(tmp_path).returncode == 1
