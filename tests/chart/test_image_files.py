"""The files that the image is built from agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def locked(name: str) -> dict[str, frozenset[str]]:
    """The packages of a lock file with their versions and markers, and the hashes of each."""
    text = (REPOSITORY / name).read_text()
    entries = re.split(r"(?m)^(?=[\w.-]+==)", text)
    return {
        entry.split("\\")[0].strip(): frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry))
        for entry in entries
        if "==" in entry.partition("\n")[0]
    }


def package(requirement: str) -> str:
    """The name in a requirement, as names are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


@pytest.mark.parametrize("name", ["requirements-runtime.lock", "requirements-build.lock"])
def test_the_image_has_the_versions_that_are_tested(name):
    tested = {entry.partition(" ;")[0]: hashes for entry, hashes in locked("requirements.lock").items()}
    for entry, hashes in locked(name).items():
        assert hashes, entry
        assert tested[entry.partition(" ;")[0]] == hashes


def test_the_runtime_lock_has_all_that_the_program_depends_on_and_no_tools():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    names = {package(entry) for entry in locked("requirements-runtime.lock")}
    assert {package(requirement) for requirement in project["project"]["dependencies"]} <= names
    tools = {package(requirement) for requirement in project["dependency-groups"]["dev"]}
    assert not names & tools


def test_the_build_lock_has_what_the_build_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    names = {package(entry) for entry in locked("requirements-build.lock")}
    assert {package(requirement) for requirement in project["build-system"]["requires"]} <= names
