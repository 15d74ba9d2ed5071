"""What a stranger looks at first: it is there, readable by machines, and agrees with itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
YAML = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"]


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.name)
def test_yaml_is_yaml(file: Path):
    assert yaml.safe_load(file.read_text())


def test_ci_tests_every_python_that_is_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = [line.rpartition(" :: ")[2] for line in PROJECT["project"]["classifiers"] if ":: 3." in line]
    assert tested == named
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_ci_runs_what_the_workflow_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["test"]["steps"]]
    assert any(".ci/run" in command for command in commands)


def test_files_from_elsewhere_say_from_where_and_under_which_licence():
    for file in (ROOT / "protos").glob("*.proto"):
        head = file.read_text().partition("\nsyntax")[0]
        assert "Licensed under the Apache License, Version 2.0" in head, file
        assert re.search(r"^// Copyright .* Authors$", head, re.MULTILINE), file
        assert re.search(r"^// Source: https://github\.com/\S+ at [\da-f]{12}", head, re.MULTILINE), file
        assert file.name in (ROOT / "NOTICE").read_text()


def test_the_licence_is_the_one_that_is_named():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert {"LICENSE", "NOTICE"} <= set(PROJECT["project"]["license-files"])


def test_make_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):(?!=).*##", makefile, re.MULTILINE))
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in listed.stdout.splitlines()} == targets
    assert {"e2e", "check", "deps"} <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_links_lead_to_files_and_commands_to_targets(page: str):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z0-9-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_a_run_leaves_behind_is_not_in_the_repository():
    """An archive once slipped in with `git add -A`. Only pictures and the input of fuzzers are binary."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout of this user: {listed.stderr.strip()}")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    binary = [file.relative_to(ROOT) for file in files if file.is_file() and b"\0" in file.read_bytes()]
    allowed = (Path("tests/fuzz/corpus"), Path("docs/images"))
    assert [name for name in binary if not any(name.is_relative_to(place) for place in allowed)] == []
    # A link to a cache, once committed, replaced the cache that it led to.
    assert [file.relative_to(ROOT) for file in files if file.is_symlink()] == []


def test_every_python_program_is_linted_with_or_without_a_suffix():
    programs = {
        str(file)
        for file in (ROOT / "scripts").iterdir()
        if file.is_file() and re.match(rb"#!\S+ ?python3?\n", file.read_bytes())
    }
    assert str(ROOT / "scripts/deps") in programs
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert programs - set(done.stdout.splitlines()) == set()
