#!/usr/bin/env python3
"""Makes a release in dist/: wheel, sdist, chart, image, bill of materials, checksums.

usage: python scripts/dist.py [--no-image] [--out DIRECTORY]

All are made twice, from two copies of the commit in two directories, and compared byte by byte: the same commit gives
the same files anywhere (SOURCE_DATE_EPOCH is the commit's time), the image where its base is the same. buildah builds it from
the Dockerfile, for this machine's architecture and, where qemu can run it, for the other one too. Where the registry of its
base image cannot be reached, name another base: `scripts/base-image` makes one, PYTHON_IMAGE=localhost/python:dist takes it.
The compiled part of TLS is in the image: its build is an error without a compiler. A base of another name may lack one, then
the image is pure Python, unless BUILD_IMAGE names the same base with a compiler.
What else buildah has to be told on this machine is in BUILDAH_OPTIONS: a mount of its certificates, for instance.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
EMULATORS = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}
LOCAL_BASE = "localhost/python:dist"
LOCAL_BUILD = f"{LOCAL_BASE}-build"


def run(command: Sequence[str | Path], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end; gives what it printed. Its failure ends this program."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(part) for part in command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def commit_time() -> str:
    """When the commit was made, as SOURCE_DATE_EPOCH wants it."""
    return run(["git", "log", "-1", "--format=%ct"]).strip()


def clone(target: Path) -> Path:
    """The commit alone, with its tags: what is not committed is in no release."""
    run(["git", "clone", "-q", "--no-hardlinks", ROOT, target])
    return target


def make_files(source: Path, out: Path, epoch: str) -> str:
    """Wheel, sdist, chart and bill of materials of a checkout; gives the version."""
    out.mkdir(parents=True)
    env = {
        "SOURCE_DATE_EPOCH": epoch,
        "SETUPTOOLS_SCM_IGNORE_VCS_ROOTS": "",
        "ZTUNNEL_BUILD_ACCELERATOR": "require",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    build = [BIN / "uv", "build", "-q", "--offline", "--no-build-isolation", "--python", sys.executable]
    run([*build, "--out-dir", out, source], cwd=source, env=env)
    (out / ".gitignore").unlink(missing_ok=True)
    [wheel] = out.glob("*.whl")
    version = wheel.name.split("-")[1]
    pack_chart(source / "charts/ztunnel", out, semver(version), int(epoch))
    bill_of_materials(source, out, version)
    return version


def semver(version: str) -> str:
    """A Python version as Helm wants it: 1.2.0.dev3+g12ab is 1.2.0-dev3+g12ab."""
    return re.sub(
        r"^(\d+\.\d+\.\d+)(?:\.?((?:a|b|rc|dev|post)\d+))?",
        lambda m: m[1] + (f"-{m[2]}" if m[2] else ""),
        version,
    )


def pack_chart(chart: Path, out: Path, version: str, epoch: int) -> None:
    """The chart as `helm package` would pack it, with the version of the release and the same bytes each time."""
    text = (chart / "Chart.yaml").read_text()
    stamped, count = re.subn(r"(?m)^(version|appVersion): .*$", rf"\1: {version}", text)
    if count != 2:
        sys.exit("Chart.yaml has not the two lines that name a version")
    files = {
        f"ztunnel/{path.relative_to(chart)}": stamped.encode()
        if path.name == "Chart.yaml"
        else path.read_bytes()
        for path in sorted(chart.rglob("*"))
        if path.is_file()
    }
    pack(files, out / f"ztunnel-chart-{version}.tgz", epoch)


def pack(files: Mapping[str, bytes], target: Path, epoch: int) -> None:
    """A compressed tar archive of files by their names in it: the same bytes each time."""
    with (
        target.open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(content), epoch, 0o644
            archive.addfile(entry, io.BytesIO(content))


def bill_of_materials(source: Path, out: Path, version: str) -> None:
    """What is in the image beside the base: each package with its version and hashes (CycloneDX)."""
    # Not by its own script, which names the checkout where it was made.
    tool = [release_tools() / "bin/python", "-m", "cyclonedx_py"]
    target = out / f"ztunnel-{version}.cdx.json"
    options = ["--output-reproducible", "--of", "JSON", "--sv", "1.6", "--pyproject", "pyproject.toml"]
    run([*tool, "requirements", "requirements-runtime.lock", *options, "-o", target], cwd=source)


def release_tools() -> Path:
    """The environment with what only a release needs, made from its lock unless it is there."""
    lock = ROOT / "requirements-release.lock"
    directory = ROOT / ".cache" / f"release-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if not (directory / "bin/cyclonedx-py").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(exist_ok=True)
        run([BIN / "uv", "venv", "-q", "--python", sys.executable, directory])
        run(
            [
                BIN / "uv",
                "pip",
                "install",
                "-q",
                "--python",
                directory / "bin/python",
                "--require-hashes",
                "-r",
                lock,
            ]
        )
    return directory


def can_run(architecture: str) -> bool:
    """Whether this machine runs programs of an architecture: its own, or with qemu as the kernel's interpreter."""
    own = ARCHITECTURES.get(platform.machine(), platform.machine())
    return architecture == own or Path("/proc/sys/fs/binfmt_misc", EMULATORS[architecture]).exists()


def has_base(base: str, architecture: str) -> bool:
    """Whether a local base, an image or a list of images, is there for an architecture."""
    command = ["buildah", "manifest", "inspect", base]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode == 0 and "manifests" in (known := json.loads(listed.stdout)):
        return architecture in {entry["platform"]["architecture"] for entry in known["manifests"]}
    image = json.loads(run(["buildah", "inspect", "--type", "image", base]))
    return bool(image["OCIv1"]["architecture"] == architecture)


def base_arguments(environ: Mapping[str, str]) -> list[str]:
    """The Dockerfile's arguments for a base: which, where to compile, and whether there has to be a compiler."""
    base = environ.get("PYTHON_IMAGE")
    build = environ.get("BUILD_IMAGE") or (LOCAL_BUILD if base == LOCAL_BASE else None)
    arguments = [f"PYTHON_IMAGE={base}"] if base else []
    arguments += [f"BUILD_IMAGE={build}"] if build else []
    # A base of one's own may have neither a compiler nor a way to one.
    return arguments + (["ACCELERATOR=require"] if build or not base else [])


def make_images(source: Path, out: Path, version: str, epoch: str) -> list[str]:
    """An archive of the image for each architecture that can be built here; gives those."""
    made = []
    base = os.environ.get("PYTHON_IMAGE")
    for architecture in sorted(
        ARCHITECTURES.values(), key=lambda name: ARCHITECTURES.get(platform.machine()) != name
    ):
        if not can_run(architecture):
            sys.stdout.write(
                f"no image for {architecture}: this machine cannot run its programs (qemu-user-static)\n"
            )
            continue
        if base and base.startswith("localhost/") and not has_base(base, architecture):
            sys.stdout.write(
                f"no image for {architecture}: {base} is not there for it (scripts/base-image)\n"
            )
            continue
        tag = f"localhost/ztunnel:{version.replace('+', '_')}-{architecture}"
        arguments = [f"VERSION={version}", *base_arguments(os.environ)]
        run(
            [
                *("buildah", "build", "--quiet", "--no-cache", "--network=host", "--timestamp", epoch),
                *("--arch", architecture, "--label", f"org.opencontainers.image.version={version}"),
                *(part for argument in arguments for part in ("--build-arg", argument)),
                *shlex.split(os.environ.get("BUILDAH_OPTIONS", "")),
                *("--tag", tag, source),
            ],
        )
        with tempfile.TemporaryDirectory(prefix="ztunnel-image-") as name:
            layout = Path(name, "layout")
            run(["buildah", "push", "--quiet", tag, f"oci:{layout}:ztunnel:{version.replace('+', '_')}"])
            # An OCI archive is its layout in a tar. buildah's own has the time of the build in it.
            parts = sorted(path for path in layout.rglob("*") if path.is_file())
            files = {str(path.relative_to(layout)): path.read_bytes() for path in parts}
            pack(files, out / f"ztunnel-image-{version}-{architecture}.tar.gz", int(epoch))
        made.append(architecture)
    return made


def compare(first: Path, second: Path) -> list[str]:
    """The names of files that two directories do not have in common, byte by byte."""
    names = {file.name for directory in (first, second) for file in directory.iterdir()}
    return sorted(name for name in names if digest(first / name) != digest(second / name))


def digest(file: Path) -> str:
    """The SHA-256 of a file; empty if it is not there."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def main(arguments: Sequence[str]) -> int:
    """Make everything; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--no-image",
        action="store_true",
        help="without the image, for which buildah and a base image are needed",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="the directory to make (default: dist)"
    )
    options = parser.parse_args(arguments)
    if run(["git", "status", "--porcelain"]).strip():
        sys.stdout.write("note: what is not committed is not in it\n")
    epoch = commit_time()
    with tempfile.TemporaryDirectory(prefix="ztunnel-dist-") as name:
        places = [Path(name, "a"), Path(name, "another-place")]
        sources = [clone(place / "source") for place in places]
        [version, _] = [
            make_files(source, place / "out", epoch) for source, place in zip(sources, places, strict=True)
        ]
        out = places[0] / "out"
        if not options.no_image:
            for source, place in zip(sources, places, strict=True):
                make_images(source, place / "out", version, epoch)
        if different := compare(out, places[1] / "out"):
            sys.exit(f"built twice, and not the same: {', '.join(different)}")
        lines = [f"{digest(file)}  {file.name}\n" for file in sorted(out.iterdir())]
        (out / "SHA256SUMS").write_text("".join(lines))
        shutil.rmtree(options.out, ignore_errors=True)
        shutil.copytree(out, options.out)
    sys.stdout.write(
        f"{options.out}: version {version}, built twice and the same\n"
        + "".join(f"  {line}" for line in lines)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
