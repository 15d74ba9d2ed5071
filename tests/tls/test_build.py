"""The build of the compiled part of TLS: with a compiler, without one, required, and twice the same."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.needs import needs_programs

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "ztunnel/tls/accelerator.c"
LIBRARY = "ztunnel/tls/_accelerator.abi3.so"

pytestmark = needs_programs("cc", "python3-config")


@pytest.fixture(autouse=True, scope="module")
def records() -> None:
    """Instead of running each test twice: no connection is made here."""


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_compiles_without_a_warning_and_twice_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "cc -Werror -Wpedantic")
    made = [tmp_path / "one.so", tmp_path / "elsewhere/two.so"]
    made[1].parent.mkdir()
    for target in made:
        assert hook().compile_library(SOURCE, target) is None
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/no/such/cc -O1", "there is no C compiler (/no/such/cc)"), ("false", "false ended with 1")],
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    assert hook().compile_library(SOURCE, tmp_path / "x.so") == reason


def test_missing_header_files_are_named(tmp_path, monkeypatch):
    module = hook()
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
    assert module.compile_library(SOURCE, tmp_path / "x.so") == (
        f"Python's header files are not in {tmp_path}"
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a wheel is made of, in a directory of its own: a build writes the version into it."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "hatch_build.py"):
        shutil.copy2(ROOT / name, tmp_path)
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "_version.py")
    shutil.copytree(ROOT / "ztunnel", tmp_path / "ztunnel", ignore=left_out)
    return tmp_path


def build_wheel(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "import hatchling.build; hatchling.build.build_wheel('dist')"
    variables = {"SETUPTOOLS_SCM_PRETEND_VERSION": "1.2.3", "SOURCE_DATE_EPOCH": "1700000000"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=checkout,
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("compiler", ["cc", "/no/such/cc"])
def test_a_wheel_has_it_or_is_for_every_machine(checkout, compiler):
    done = build_wheel(checkout, CC=compiler)
    assert done.returncode == 0, done.stderr
    [wheel] = checkout.glob("dist/*.whl")
    built = compiler == "cc"
    with zipfile.ZipFile(wheel) as archive:
        assert (LIBRARY in archive.namelist()) == built
        assert "ztunnel/tls/accelerated.py" in archive.namelist()
    assert ("-cp311-abi3-linux_" in wheel.name) == built
    assert wheel.name.endswith("-py3-none-any.whl") != built
    assert ("in pure Python: there is no C compiler" in done.stdout + done.stderr) != built


def test_it_can_be_required_or_left_out(checkout):
    done = build_wheel(checkout, CC="/no/such/cc", ZTUNNEL_BUILD_ACCELERATOR="require")
    assert done.returncode != 0
    assert "the TLS accelerator cannot be built: there is no C compiler" in done.stderr
    done = build_wheel(checkout, ZTUNNEL_BUILD_ACCELERATOR="off")
    assert done.returncode == 0
    assert [one.name for one in (checkout / "dist").glob("*.whl")] == ["ztunnel-1.2.3-py3-none-any.whl"]
    done = build_wheel(checkout, ZTUNNEL_BUILD_ACCELERATOR="maybe")
    assert "ZTUNNEL_BUILD_ACCELERATOR is auto, off or require, not maybe" in done.stderr
