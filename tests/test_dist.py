"""For which architectures `make dist` builds the image, and with which base."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/dist.py"
BASE = "localhost/python:dist"


@pytest.fixture(scope="module")
def dist() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dist", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def buildah(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which prints ``manifest`` and ``image``. A missing file is its failure."""
    program = tmp_path / "buildah"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = manifest ] && exec cat {tmp_path}/manifest\nexec cat {tmp_path}/image\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_a_base_that_is_a_list_serves_the_architectures_on_it(dist: ModuleType, buildah: Path) -> None:
    entries = [{"platform": {"architecture": name, "os": "linux"}} for name in ("amd64", "arm64")]
    (buildah / "manifest").write_text(json.dumps({"manifests": entries}))
    assert dist.has_base(BASE, "amd64")
    assert dist.has_base(BASE, "arm64")
    (buildah / "manifest").write_text(json.dumps({"manifests": entries[:1]}))
    assert not dist.has_base(BASE, "arm64")


def test_a_base_that_is_one_image_serves_its_own(dist: ModuleType, buildah: Path) -> None:
    (buildah / "image").write_text(json.dumps({"OCIv1": {"architecture": "arm64"}}))
    assert dist.has_base(BASE, "arm64")
    assert not dist.has_base(BASE, "amd64")
    (buildah / "manifest").write_text(json.dumps({"schemaVersion": 2, "config": {}}))
    assert dist.has_base(BASE, "arm64"), "not a list, whatever else buildah says of it"


def test_a_base_that_is_not_there_ends_it(dist: ModuleType, buildah: Path) -> None:
    with pytest.raises(SystemExit, match="buildah inspect"):
        dist.has_base(BASE, "amd64")


@pytest.mark.parametrize(("machine", "own"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_a_machine_runs_its_own_programs(
    dist: ModuleType, monkeypatch: pytest.MonkeyPatch, machine: str, own: str
) -> None:
    monkeypatch.setattr(dist.platform, "machine", lambda: machine)
    assert dist.can_run(own)


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({}, ["ACCELERATOR=require"]),
        (
            {"PYTHON_IMAGE": BASE},
            [f"PYTHON_IMAGE={BASE}", f"BUILD_IMAGE={BASE}-build", "ACCELERATOR=require"],
        ),
        ({"PYTHON_IMAGE": "mine"}, ["PYTHON_IMAGE=mine"]),
        (
            {"PYTHON_IMAGE": "mine", "BUILD_IMAGE": "with-gcc"},
            ["PYTHON_IMAGE=mine", "BUILD_IMAGE=with-gcc", "ACCELERATOR=require"],
        ),
    ],
    ids=["official", "made", "foreign", "pair"],
)
def test_the_compiled_part_is_in_the_image_unless_a_foreign_base_has_no_compiler(
    dist: ModuleType, environment: dict[str, str], arguments: list[str]
) -> None:
    assert dist.base_arguments(environment) == arguments
