"""The image: what is in it, and that it runs by itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.needs import needs_programs
from tests.support import image as images
from tests.support.container import Container
from tests.support.image import Image, ImageError
from tests.tools import build_image


@pytest.fixture(scope="module")
def image() -> Image:
    """The image of the Dockerfile."""
    return build_image(ISTIO_VERSION="1.31.0", VERSION="1.2.3")


def run(image: Image, directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run something in the image to its end, without capabilities and without anything to write to."""
    scratch = directory / "scratch"
    scratch.mkdir()
    container = Container(
        command=list(command) or image.entrypoint,
        layers=image.roots,
        machine=images.machine_directories(),
        scratch=str(scratch),
        environment=image.environment,
        directory=image.directory,
        group=1337,
        capabilities=[],
    )
    return subprocess.run(
        container.write(directory / "container.json"), capture_output=True, text=True, check=False, timeout=60
    )


def normal(name: str) -> str:
    """A package's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_starts_ztunnel_in_the_root_directory(image):
    assert image.entrypoint == ["/usr/local/bin/ztunnel"]
    assert image.directory == "/"


def test_version_names_the_version_of_istio_that_it_was_built_for(image, tmp_path):
    shown = run(image, tmp_path, *image.entrypoint, "version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith('version.BuildInfo{Version:"1.2.3"')
    assert 'IstioVersion:"1.31.0"' in shown.stdout


@needs_programs("cc", "python3-config")
def test_it_has_the_compiled_part_of_tls(image, tmp_path):
    program = "from ztunnel.tls import accelerated as a; print(a._accelerator.__file__, a.unavailable())"
    shown = run(image, tmp_path, "/usr/local/bin/python", "-c", program)
    assert shown.returncode == 0, shown.stderr
    file, why_not = shown.stdout.split()
    assert file.startswith("/usr/local/lib/python")
    assert why_not == "None"


def test_istios_version_is_unknown_unless_the_build_is_told():
    assert build_image().environment["ISTIO_META_ISTIO_VERSION"] == "unknown"


def test_every_module_can_be_imported_from_what_is_in_the_image(image, tmp_path):
    program = """
import importlib, json, pkgutil, sys, ztunnel
names = [found.name for found in pkgutil.walk_packages(ztunnel.__path__, "ztunnel.")]
names.remove("ztunnel.tools.top_app")  # for the terminal of a person: its library is an extra
for name in names:
    importlib.import_module(name)
print(json.dumps([ztunnel.__file__, names]))
"""
    shown = run(image, tmp_path, "/usr/local/bin/python", "-W", "error", "-c", program)
    assert shown.returncode == 0, shown.stderr
    file, names = json.loads(shown.stdout)
    assert file.startswith("/usr/local/lib/python")
    assert "ztunnel.app" in names


def test_it_holds_the_locked_packages_at_their_versions_and_nothing_of_the_build(image, tmp_path):
    lock = (images.REPOSITORY / "requirements-runtime.lock").read_text()
    locked = {(normal(name), version) for name, version in re.findall(r"(?m)^([\w.-]+)==([^ ;\\]+)", lock)}
    program = """
import importlib.metadata, json
print(json.dumps([[found.name, found.version] for found in importlib.metadata.distributions()]))
"""
    shown = run(image, tmp_path, "/usr/local/bin/python", "-c", program)
    installed = {normal(name): version for name, version in json.loads(shown.stdout)}
    # setuptools is the base image's: the virtual environment's that takes its place, with an older Python.
    others = {
        name: version
        for name, version in installed.items()
        if name not in ("setuptools", "wheel") and (name, version) not in locked
    }
    assert others == {"ztunnel": "1.2.3"}
    assert {"trio", "grpcio", "cryptography", "pyroute2"} <= installed.keys()


def test_nothing_can_be_installed_in_it(image, tmp_path):
    shown = run(image, tmp_path, "/usr/local/bin/python", "-m", "pip", "--version")
    assert shown.returncode == 1
    assert "No module named pip" in shown.stderr


def test_modules_are_compiled_beforehand_since_nothing_can_be_written_later(image, tmp_path):
    program = "import ztunnel.app, sys; print(sys.modules['ztunnel.app'].__cached__)"
    shown = run(image, tmp_path, "/usr/local/bin/python", "-c", program)
    cached = shown.stdout.strip().lstrip("/")
    assert cached.startswith("usr/local/lib/")
    assert any((layer / cached).exists() for layer in image.layers)


def test_nothing_that_running_does_not_need_is_in_it(image):
    ours = [path for layer in image.layers[1:] for path in layer.rglob("*") if path.is_file()]
    assert [path for path in ours if path.name == "ztunnel" and path.parent.name == "bin"]
    waste = [
        path for path in ours if "_tests" in path.parts or path.suffix in {".pyi", ".c", ".h", ".pyx", ".pxd"}
    ]
    tools = [path for path in ours if path.parent.name == "bin" and path.name != "ztunnel"]
    assert (waste, tools) == ([], [])


def test_only_what_the_image_needs_is_sent_to_a_container_engine():
    sent = {str(path.relative_to(images.REPOSITORY)) for path in images.context(".")}
    assert {"pyproject.toml", "ztunnel/cli.py", "requirements-runtime.lock"} <= sent
    assert not [path for path in sent if path.endswith(".so")]  # the image builds its own
    top = {path.partition("/")[0] for path in sent}
    assert top == {
        "LICENSE",
        "NOTICE",
        "README.md",
        "hatch_build.py",
        "pyproject.toml",
        "requirements-build.lock",
        "requirements-runtime.lock",
        "ztunnel",
    }
    assert not [path for path in sent if "__pycache__" in path]


def test_a_step_that_fails_is_an_error_with_its_output(image, tmp_path):
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM base\nRUN echo so it is >&2; exit 3\n")
    with pytest.raises(ImageError, match="so it is"):
        images.build(dockerfile)


def test_packages_with_other_contents_than_locked_are_refused(image, tmp_path):
    dockerfile = tmp_path / "Dockerfile"
    wrong = f"h11==0.16.0 --hash=sha256:{'0' * 64}"
    dockerfile.write_text(
        f"FROM base\nRUN echo '{wrong}' >/r && python -m pip install --require-hashes --no-deps -r /r\n"
    )
    with pytest.raises(ImageError, match="DO NOT MATCH THE HASHES"):
        images.build(dockerfile)
