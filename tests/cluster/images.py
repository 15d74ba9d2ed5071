"""The cluster's images, made on this machine by buildah.

Base systems come from debootstrap, our own image from the Dockerfile of this checkout.
All of them lie in one OCI layout in the cache, which shares their layers, and go from there into the
containerd of each node.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.cluster import nodes, programs, waypoint_image
from tests.cluster.places import CHECKOUT, Places, Progress
from tests.cluster.shell import run
from tests.cluster.topology import NODES

CONTEXT = Path(__file__).parent / "image-context"
DEBIAN = "bookworm"
PYTHON = "3.13"
PYTHON_BASE = f"localhost/python:{PYTHON}-slim-{DEBIAN}"
OURS = "localhost/mesh/ztunnel"

_TOOLS = "ca-certificates,iptables,nftables,iproute2,curl,python3,netbase,procps,conntrack"
_UNDER_PYTHON = (
    "ca-certificates,libssl3,libffi8,libsqlite3-0,libreadline8,libncursesw6,zlib1g,libbz2-1.0,liblzma5,libuuid1,libexpat1,"
    "netbase,tzdata"
)
_WASTE = (
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/lib/locale"),
    *("debootstrap", "etc/resolv.conf"),
)
_EMPTIED = ("var/cache/apt", "var/lib/apt/lists", "var/log")  # apt wants the directories
_NOT_OF_THE_INTERPRETER = (
    *("test", "tests", "idlelib", "tkinter", "_tkinter*", "*.a", "turtledemo"),
    *("__pycache__", "share", "site-packages/*"),
)
_OF_THE_PAST = 3

_PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

# name in the cluster -> (Dockerfile, what it copies besides the files of image-context/)
_MADE: dict[str, tuple[str, tuple[str, ...]]] = {
    "localhost/pause:1": ("pause", ("pause",)),
    "localhost/app:1": ("app", ()),
    "localhost/coredns:1": ("coredns", ("coredns",)),
    "localhost/istio/pilot:1": ("pilot", ("pilot-discovery",)),
    "localhost/prometheus:1": ("prometheus", ("prometheus",)),
    "localhost/istio/proxyv2:1": ("proxyv2", ("pilot-agent", "envoy")),
    "localhost/istio/install-cni:1": ("install-cni", ("install-cni", "istio-cni")),
}


class Images:
    """Makes images, and brings them to the nodes.

    Each step is skipped when what it was made from has not changed.
    """

    def __init__(self, places: Places, progress: Progress) -> None:
        self._places, self._progress = places, progress
        self._home = places.images
        self._home.mkdir(parents=True, exist_ok=True)
        storage = self._home / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self._home}/storage"\n'
            f'runroot = "{self._home}/run"\n'
        )
        self._env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)}

    def make(self) -> None:
        """Makes all of them. Raises CommandFailed, subprocess.TimeoutExpired."""
        self._base("localhost/tools:1", _TOOLS, None)
        self._base(PYTHON_BASE, _UNDER_PYTHON, _interpreter())
        context = self._home / "context"
        context.mkdir(exist_ok=True)
        for name, (dockerfile, wants) in _MADE.items():
            for source in CONTEXT.glob("*.py"):
                shutil.copy2(source, context)
            for each in wants:
                if each == "pause":
                    run("cc", "-O2", "-static", "-o", context / "pause", CONTEXT / "pause.c")
                elif each == "envoy":
                    waypoint_image.put_into(context)
                else:
                    run("cp", "-u", programs.program(each).path(self._places), context)
            self._progress.step(f"image {name}")
            self._build(name, CONTEXT / f"{dockerfile}.Dockerfile", context)
        self.make_ours()
        self._remove(context)

    def make_ours(self, name: str = f"{OURS}:1", source: Path = CHECKOUT) -> None:
        """Our own image, by the Dockerfile of the checkout, as it stands there."""
        self.build_dockerfile(
            name,
            source,
            [
                f"--build-arg=ISTIO_VERSION={programs.ISTIO_RELEASE}",
                f"--build-arg=VERSION={version('ztunnel')}",
                "--build-arg=ACCELERATOR=require",
            ],
        )

    def build_dockerfile(self, name: str, source: Path, arguments: Sequence[str]) -> None:
        """A checkout's Dockerfile with the stand-in for its base image, and what this machine needs."""
        self._progress.step(f"image {name}")
        machine = []  # what this machine needs to reach a package index: mounted, so that no layer has it
        for path in ("/etc/pip.conf", "/etc/ssl/certs"):
            if Path(path).exists():
                machine += ["--volume", f"{path}:{path}:ro"]
        base = f"--build-arg=PYTHON_IMAGE={PYTHON_BASE}"
        self._build(name, source / "Dockerfile", source, *machine, base, *arguments)

    def make_of_tool(self, name: str, tool: Path) -> None:
        """An image of one program, which scripts/tools has built."""
        self._progress.step(f"image {name}")
        with tempfile.TemporaryDirectory(dir=self._home) as context:
            shutil.copy2(tool, Path(context) / "program")
            self._build(name, CONTEXT / "tool.Dockerfile", Path(context))

    def push_into_nodes(self, name: str) -> None:
        """Brings one image of buildah's into each node's containerd, as a pull from a registry would."""
        archive = self._home / "one-image.tar"
        archive.unlink(missing_ok=True)
        try:
            self._buildah("push", "--quiet", name, f"docker-archive:{archive}:{name}")
            for node in NODES:
                importer = nodes.inside(node, self._places, "ctr", "-n", "k8s.io", "images", "import", "-")
                with archive.open("rb") as content:
                    subprocess.run(
                        importer, stdin=content, check=True, stdout=subprocess.DEVNULL, timeout=300
                    )
        finally:
            archive.unlink(missing_ok=True)

    def into_nodes(self) -> str:
        """Brings what is new into each node's containerd. Answers the tag of our own image."""
        layout = self._home / "layout"
        want = {name: self._identity(name) for name in (*_MADE, f"{OURS}:1")}
        # Its tag says what it is, so that a new image is an upgrade and an old one is none.
        ours = want.pop(f"{OURS}:1")
        tag = ours.removeprefix("sha256:")[:12]
        self._buildah("tag", f"{OURS}:1", f"{OURS}:{tag}")
        want[f"{OURS}:{tag}"] = ours
        self._forget_the_past(layout, len(want))
        for name, identity in want.items():
            mark = self._home / "pushed" / hashlib.sha256(name.encode()).hexdigest()[:12]
            if mark.exists() and mark.read_text() == identity:
                continue
            self._progress.step(f"image {name} into the layout")
            self._buildah("push", "--quiet", name, f"oci:{layout}:{name}")
            mark.parent.mkdir(exist_ok=True)
            mark.write_text(identity)
        for node in NODES:
            known = self._places.state / node.name / "images.json"
            if known.exists() and json.loads(known.read_text()) == want:
                continue
            self._progress.step(f"images into {node.name}")
            importer = nodes.inside(node, self._places, "ctr", "-n", "k8s.io", "images", "import", "-")
            with subprocess.Popen(["tar", "-C", layout, "-c", "."], stdout=subprocess.PIPE) as tar:
                subprocess.run(importer, stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL, timeout=300)
            known.write_text(json.dumps(want))
        return tag

    def _forget_the_past(self, layout: Path, wanted: int) -> None:
        """Begins the layout anew when there are more than a few images in it that nobody wants any more.

        All of it goes into each node whenever something changes.
        """
        index = layout / "index.json"
        if index.exists() and len(json.loads(index.read_text())["manifests"]) > wanted + _OF_THE_PAST:
            self._remove(layout)
            self._remove(self._home / "pushed")

    def _base(self, name: str, packages: str, interpreter: Path | None) -> None:
        made_of = f"{DEBIAN} {packages} {interpreter}"
        if interpreter is not None:
            made_of += f" {_NOT_OF_THE_INTERPRETER}"
        wanted = hashlib.sha256(made_of.encode()).hexdigest()
        mark = self._home / f"{wanted[:12]}.base"
        if mark.exists() and self._buildah("images", "--quiet", name, check=False).strip():
            return
        root = self._home / "root"
        self._remove(root)
        self._progress.say(f"base system of {name} by debootstrap; one to two minutes")
        run("nice", "debootstrap", "--variant=minbase", f"--include={packages}", DEBIAN, root, timeout=1200)
        for waste in _WASTE:
            self._remove(root / waste)
        for emptied in _EMPTIED:
            run("find", root / emptied, "-type", "f", "-delete")
        if interpreter is not None:
            _put_interpreter(interpreter, root)
        container = self._buildah("from", "scratch").strip()
        try:
            mounted = Path(self._buildah("mount", container).strip())
            run("cp", "-a", f"{root}/.", mounted)
            self._buildah("umount", container)
            self._buildah("config", "--env", _PATH, "--env", "LANG=C.UTF-8", container)
            self._buildah("commit", "--quiet", container, name, timeout=600)
        finally:
            self._buildah("rm", container)
        self._remove(root)
        mark.touch()

    def _build(self, name: str, dockerfile: Path, context: Path, *more: str) -> None:
        self._buildah(
            "build",
            "--quiet",
            "--layers",
            "--network=host",
            *more,
            "--file",
            str(dockerfile),
            "--tag",
            name,
            str(context),
            timeout=1200,
        )

    def _identity(self, name: str) -> str:
        return self._buildah("images", "--quiet", "--no-trunc", name).strip()

    def _buildah(self, *arguments: str, check: bool = True, timeout: float = 300.0) -> str:
        return run("buildah", *arguments, env=self._env, check=check, timeout=timeout)

    def _remove(self, path: Path) -> None:
        run("rm", "-rf", "--one-file-system", path)


def _interpreter() -> Path:
    """The prefix of a CPython of that version that is not Debian's own, as pyenv makes them.

    The official image has one in /usr/local, where our Dockerfile expects it. Raises SystemExit.
    """
    named = os.environ.get("CLUSTER_PYTHON")
    candidates = [Path(named)] if named else sorted((Path.home() / ".pyenv" / "versions").glob(f"{PYTHON}.*"))
    for prefix in reversed(candidates):
        if (prefix / "bin" / f"python{PYTHON}").exists():
            return prefix
    raise SystemExit(
        f"The stand-in for python:{PYTHON}-slim-{DEBIAN} needs a CPython {PYTHON} with a prefix of its own: "
        f"`pyenv install {PYTHON}`, or name its prefix in CLUSTER_PYTHON."
    )


def _put_interpreter(prefix: Path, root: Path) -> None:
    """Copies the interpreter and pip to /usr/local of a base system.

    Without tests, other packages, and without bytecode: the official image has none. It has the headers,
    with which the compiled part of TLS is built.
    """
    target = root / "usr/local"
    for source, excluded in (
        (".", _NOT_OF_THE_INTERPRETER),
        (f"lib/python{PYTHON}/site-packages/pip", ("__pycache__",)),
    ):
        excludes = [f"--exclude={each}" for each in excluded]
        with subprocess.Popen(["tar", "-C", prefix, *excludes, "-c", source], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-C", target, "--no-same-owner", "-x"], stdin=tar.stdout, check=True)
    for name in ("python", "python3"):
        link = target / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"python{PYTHON}")
    run("chroot", root, "ldconfig")
    run("chroot", root, "/usr/local/bin/python3", "-Bc", "import ctypes, sqlite3, ssl")
