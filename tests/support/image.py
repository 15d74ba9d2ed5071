"""Builds the Dockerfile where there is no container engine: the same steps, in overlay layers.

Every step makes a layer below ``.cache/image``. Its name is a hash of what it depends on: the layers before
it, the instruction, the files it copies. A layer that exists is not made again. This machine's own programs
and libraries replace the base image, with a virtual environment at /usr/local, where the official Python
images have Python. What runs cannot see the checkout.

It knows only the instructions of our Dockerfile. Any other is an error.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.container import Container, Mount

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "image"
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
STEP_SECONDS = 600
KEPT_SECONDS = 3600


class ImageError(Exception):
    """A step failed; the text is its output."""


@dataclass
class Image:
    """The layers of the steps so far, and how the image is to be run."""

    layers: list[Path] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    key: str = ""

    @property
    def roots(self) -> list[str]:
        """The layers as a container takes them."""
        return [str(layer) for layer in reversed(self.layers)]


def machine_directories() -> list[str]:
    """Returns the directories of this machine that replace the base image: programs, libraries, settings."""
    paths = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc"]
    if not sys.base_prefix.startswith("/usr"):
        paths.append(sys.base_prefix)
    return [path for path in paths if Path(path).exists()]


def build(dockerfile: Path = REPOSITORY / "Dockerfile", **arguments: str) -> Image:
    """Carry out a Dockerfile; ``arguments`` are build arguments. Raises ImageError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = _Build(dockerfile.read_text(), arguments).run()
        _forget_old_layers()
        return image


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    for line in joined.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


class _Build:
    def __init__(self, text: str, arguments: dict[str, str]) -> None:
        self.text = text
        self.given = arguments
        self.stages: dict[str, Image] = {}
        self.outer: dict[str, str] = {}
        self.image = Image()
        self.begun = False

    def run(self) -> Image:
        for name, rest in instructions(self.text):
            outside = name == "FROM" or not self.begun
            text = rest if name == "RUN" else self._expand(rest, outside=outside)
            getattr(self, f"_{name.lower()}", self._unknown)(text)
        return self.image

    def _unknown(self, rest: str) -> None:
        raise ImageError(f"not an instruction that is known here: {rest}")

    def _expand(self, text: str, *, outside: bool) -> str:
        # What FROM says is outside of every stage, and so are the arguments before the first.
        known = self.outer if outside else self.image.environment | self.image.arguments
        return re.sub(r"\$\{(\w+)\}", lambda match: known[match[1]], text)

    def _from(self, rest: str) -> None:
        _, _, stage = rest.partition(" AS ")
        self.begun = True
        self.image = _base_image()
        if stage:
            self.stages[stage.strip()] = self.image

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        (self.image.arguments if self.begun else self.outer)[name] = self.given.get(name, default)

    def _env(self, rest: str) -> None:
        for assignment in shlex.split(rest):
            name, _, value = assignment.partition("=")
            self.image.environment[name] = value

    def _workdir(self, rest: str) -> None:
        self.image.directory = rest

    def _entrypoint(self, rest: str) -> None:
        self.image.entrypoint = json.loads(rest)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        target = os.path.join(self.image.directory, target)
        if sources[0].startswith("--from="):
            stage = self.stages[sources.pop(0).removeprefix("--from=")]
            [source] = sources
            layer, made = _layer(self.image, f"COPY {stage.key} {rest}")
            if made:
                for below in stage.layers:
                    found = below / source.lstrip("/")
                    if found.exists():
                        _merge(found, made / target.lstrip("/"))
        else:
            files = {
                target_of(path, source, target, many=len(sources) > 1 or rest.endswith("/")): path
                for source in sources
                for path in context(source)
            }
            if not files:
                raise ImageError(f"nothing to copy: {rest}")
            content = hashlib.sha256()
            for place, path in sorted(files.items()):
                content.update(f"{place}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
            layer, made = _layer(self.image, f"COPY {rest} {content.hexdigest()}")
            if made:
                for place, path in files.items():
                    copy = made / place.lstrip("/")
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)
        _finish(layer, made)

    def _run(self, rest: str) -> None:
        _run(self.image, ["/bin/sh", "-c", rest])


def _merge(source: Path, target: Path) -> None:
    """Merge a directory of a layer over the same directory of the layers below.

    A file that it removed is a character device 0:0, a directory that it replaced has an attribute: the
    kernel's
    overlayfs.rst, "whiteouts and opaque directories".
    """
    target.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(source):
        place = target / entry.name
        state = entry.stat(follow_symlinks=False)
        removed = stat.S_ISCHR(state.st_mode) and state.st_rdev == 0
        if entry.is_dir(follow_symlinks=False):
            if "trusted.overlay.opaque" in os.listxattr(entry.path):
                shutil.rmtree(place, ignore_errors=True)
            _merge(Path(entry.path), place)
            continue
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        if not removed:
            # Layers never change, so that one file can be in several.
            os.link(entry.path, place, follow_symlinks=False)


def target_of(path: Path, source: str, target: str, *, many: bool) -> str:
    """Returns the target of a file of the context when ``source``, which is or holds it, is copied."""
    inner = path.relative_to(REPOSITORY / source)
    if str(inner) == ".":
        return os.path.normpath(os.path.join(target, source) if many else target)
    return os.path.normpath(os.path.join(target, inner))


def context(source: str) -> Iterator[Path]:
    """The files of the checkout below a path that .dockerignore lets through."""
    patterns = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    start = REPOSITORY / source
    if start.is_file():
        yield from [start] if not _ignored(start.relative_to(REPOSITORY), patterns) else []
        return
    for directory, inner, names in os.walk(start):
        here = Path(directory)
        # As container engines do: what is in an ignored directory is not looked at.
        inner[:] = [
            name for name in sorted(inner) if not _ignored((here / name).relative_to(REPOSITORY), patterns)
        ]
        for name in sorted(names):
            if not _ignored((here / name).relative_to(REPOSITORY), patterns):
                yield here / name


def _ignored(path: Path, patterns: list[str]) -> bool:
    # The last pattern that fits the path, or a directory that it is in, decides.
    ignored = False
    parents = [path, *path.parents][:-1]
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        for candidate in parents:
            text = str(candidate)
            anywhere = bare.startswith("**/") and fnmatch.fnmatchcase(candidate.name, bare[3:])
            if anywhere or (("/" in bare or "/" not in text) and fnmatch.fnmatchcase(text, bare)):
                ignored = not pattern.startswith("!")
    return ignored


def _base_image() -> Image:
    image = Image(key=hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode()).hexdigest())
    if sys.base_prefix != "/usr/local":
        python = os.path.realpath(sys.executable)
        _run(image, [python, "-m", "venv", "/usr/local"])
    return image


def _layer(image: Image, instruction: str) -> tuple[Path, Path | None]:
    """Returns the layer of a step, and where to make it if it does not exist."""
    image.key = hashlib.sha256(f"{image.key}\n{instruction}".encode()).hexdigest()
    layer = CACHE / image.key[:24]
    image.layers.append(layer)
    if layer.exists():
        os.utime(layer)
        return layer, None
    return layer, Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))


def _finish(layer: Path, made: Path | None) -> None:
    if made is not None:
        made.chmod(0o755)
        made.rename(layer)


def _run(image: Image, command: list[str]) -> None:
    below = image.roots
    layer, made = _layer(image, f"RUN {image.directory} {command} {sorted(image.environment.items())}")
    if made is None:
        return
    in_directory = ["/bin/sh", "-c", 'mkdir -p "$0" && cd "$0" && exec "$@"', image.directory, *command]
    with tempfile.TemporaryDirectory(prefix="step-", dir=CACHE) as directory:
        scratch = Path(directory, "scratch")
        scratch.mkdir()
        container = Container(
            command=in_directory,
            layers=below,
            machine=machine_directories(),
            changes=str(made),
            scratch=str(scratch),
            # How this machine reaches the package index: its proxies, certificates, mirrors.
            environment=image.environment | network_settings(),
            mounts=[Mount(path, path, read_only=True) for path in _wheels()],
        )
        finished = subprocess.run(
            container.write(Path(directory, "step.json")),
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
    if finished.returncode != 0:
        shutil.rmtree(made, ignore_errors=True)
        raise ImageError(f"{shlex.join(command)}\n{finished.stdout}{finished.stderr}")
    _finish(layer, made)


def _wheels() -> list[str]:
    return [path for path in os.environ.get("PIP_FIND_LINKS", "").split() if Path(path).is_dir()]


def network_settings() -> dict[str, str]:
    pattern = re.compile(r"PIP_|SSL_|REQUESTS_|(?:https?|no|all)_proxy$", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if pattern.match(name)}


def _forget_old_layers() -> None:
    for path in CACHE.iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
