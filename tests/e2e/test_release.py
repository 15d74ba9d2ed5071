"""A release as a stranger gets it: the files of `make dist`, and the demo from the wheel alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.needs import needs_programs, unavailable
from tests.tools import NO_FAULT_OF_THE_STEPS

ROOT = Path(__file__).parents[2]
LIMIT = 600

pytestmark = needs_programs("cc", "python3-config")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    output = done.stdout + done.stderr
    if done.returncode != 0 and any(sign in output for sign in NO_FAULT_OF_THE_STEPS):
        unavailable(f"the package index is not reached from here: {output[-500:]}")
    assert done.returncode == 0, output
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release without its image."""
    out: Path = tmp_path_factory.mktemp("release") / "dist"
    said = run(sys.executable, "scripts/dist.py", "--no-image", "--out", out)
    assert "built twice and the same" in said
    return out


def test_every_file_has_its_checksum(release: Path):
    lines = (release / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    files = {file.name for file in release.iterdir()} - {"SHA256SUMS"}
    assert set(sums) == files
    assert {name: hashlib.sha256((release / name).read_bytes()).hexdigest() for name in files} == sums
    assert sorted(Path(name).suffix for name in files) == [".gz", ".json", ".tgz", ".whl"]


def test_the_wheel_has_the_compiled_part_of_tls(release: Path):
    [wheel] = release.glob("*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"ztunnel/tls/_accelerator.abi3.so", "ztunnel/tls/records.py"} <= names


def test_the_chart_has_the_version_of_the_release(release: Path):
    [archive] = release.glob("*.tgz")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        file = packed.extractfile("ztunnel/Chart.yaml")
        assert file is not None
        chart = yaml.safe_load(file.read())
    assert archive.name == f"ztunnel-chart-{chart['version']}.tgz"
    assert chart["version"] == chart["appVersion"] != "0.0.0"
    inside = {Path(name).name for name in names if name.startswith("ztunnel/")}
    assert {"README.md", "values.yaml", "daemonset.yaml"} <= inside


def test_the_bill_of_materials_names_what_is_locked(release: Path):
    [file] = release.glob("*.cdx.json")
    bill = json.loads(file.read_text())
    named = {part["name"].lower().replace("_", "-") for part in bill["components"]}
    locked = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements-runtime.lock").read_text().splitlines()
        if "==" in line and not line.startswith(" ")
    }
    assert locked <= named


def test_the_demo_runs_from_the_wheel_and_files_alone(release: Path, tmp_path: Path):
    house = tmp_path / "wheels"
    binary = ["--only-binary", ":all:", "--require-hashes"]
    run(
        sys.executable, "-m", "pip", "download", "-q", *binary, "-r", "requirements-runtime.lock", "-d", house
    )
    venv.create(tmp_path / "venv", with_pip=True)
    [wheel] = release.glob("*.whl")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--find-links", house, wheel, cwd=tmp_path)
    shown = run(tmp_path / "venv/bin/ztunnel", "demo", cwd=tmp_path)
    assert "Hello from the pod web." in shown
    version = wheel.name.split("-")[1]
    assert f'Version:"{version}"' in run(tmp_path / "venv/bin/ztunnel", "version", cwd=tmp_path)
    files = run(python, "-m", "pip", "show", "-f", "ztunnel", cwd=tmp_path)
    assert "licenses/LICENSE" in files
    assert "licenses/NOTICE" in files
