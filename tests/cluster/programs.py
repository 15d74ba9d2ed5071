"""The cluster's programs, built once from their Go modules and kept in the cache.

Versions are pinned in go-modules/*/go.mod and go.sum, and nowhere else. A program's directory in the cache
carries the version of its module, so that a new version is built beside the old one. Compilers run one at a
time and last in line for the processor; a cold build of everything takes half an hour to three quarters of an
hour on one core.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.places import Places, Progress

SOURCES = Path(__file__).parent / "go-modules"


@dataclass(frozen=True)
class Module:
    """A directory below go-modules/ with a go.mod.

    The module it builds from, and how that is told its version.
    """

    name: str
    path: str
    version_variables: tuple[str, ...] = ()  # what -ldflags -X sets to the version
    tags: str = ""

    @property
    def pinned(self) -> str:
        """The version in go.mod, as "v1.34.4"."""
        text = (SOURCES / self.name / "go.mod").read_text()
        found = re.search(rf"^\s*(?:require )?{re.escape(self.path)} (v\S+)", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"{self.name}/go.mod requires no {self.path}")
        return found[1]


ETCD = Module("etcd", "go.etcd.io/etcd/server/v3")
KUBE = Module(
    "kube",
    "k8s.io/kubernetes",
    ("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"),
)
COREDNS = Module("coredns", "github.com/coredns/coredns")
# Of the ways to find targets that it has, the tests use one; the others are half of a cloud's clients.
PROMETHEUS = Module(
    "prometheus", "github.com/prometheus/prometheus", tags="remove_all_sd,enable_kubernetes_sd"
)
ISTIO = Module("istio", "istio.io/istio", ("istio.io/istio/pkg/version.buildVersion",))

# The module proxy has Istio's commits under pseudo-versions; this is the release that the pinned commit
# leads to.
ISTIO_RELEASE = "1.31.0"


@dataclass(frozen=True)
class Program:
    name: str
    module: Module
    package: str

    def path(self, places: Places) -> Path:
        return places.programs / f"{self.module.name}-{self.module.pinned}" / self.name


PROGRAMS = (
    Program("etcd", ETCD, "go.etcd.io/etcd/server/v3"),
    Program("coredns", COREDNS, "."),
    Program("kube-apiserver", KUBE, "k8s.io/kubernetes/cmd/kube-apiserver"),
    Program("kubelet", KUBE, "k8s.io/kubernetes/cmd/kubelet"),
    Program("kube-controller-manager", KUBE, "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Program("kube-scheduler", KUBE, "k8s.io/kubernetes/cmd/kube-scheduler"),
    Program("kube-proxy", KUBE, "k8s.io/kubernetes/cmd/kube-proxy"),
    Program("pilot-discovery", ISTIO, "istio.io/istio/pilot/cmd/pilot-discovery"),
    Program("pilot-agent", ISTIO, "istio.io/istio/pilot/cmd/pilot-agent"),
    Program("install-cni", ISTIO, "istio.io/istio/cni/cmd/install-cni"),
    Program("istio-cni", ISTIO, "istio.io/istio/cni/cmd/istio-cni"),
    Program("prometheus", PROMETHEUS, "github.com/prometheus/prometheus/cmd/prometheus"),
    Program("istioctl", ISTIO, "istio.io/istio/istioctl/cmd/istioctl"),
)


def program(name: str) -> Program:
    """The program of that name. Raises KeyError."""
    return {each.name: each for each in PROGRAMS}[name]


def missing(places: Places) -> list[Program]:
    """The programs that are not in the cache."""
    return [each for each in PROGRAMS if not each.path(places).exists()]


def istio_source() -> Path:
    """Where the module proxy's source of the pinned Istio lies: Istio's charts are in it."""
    return Path(_go(program("pilot-discovery"), "list", "-m", "-f", "{{.Dir}}", ISTIO.path).strip())


def charts() -> Path:
    """Istio's own Helm charts."""
    return istio_source() / "manifests" / "charts"


def build(places: Places, progress: Progress, wanted: Iterable[Program] = PROGRAMS) -> None:
    """Builds what is missing, one after the other.

    Raises subprocess.CalledProcessError with the compiler's words printed.
    """
    todo = [each for each in wanted if not each.path(places).exists()]
    if not todo:
        return
    if shutil.which("go") is None:
        raise SystemExit(
            "The cluster's programs are built from their source, which needs Go 1.26: https://go.dev/dl/"
        )
    progress.say(
        f"{len(todo)} programs to build, once; the first time this takes 30 to 45 minutes on one core"
    )
    for number, each in enumerate(todo, 1):
        _build(each, places, progress, f"[{number}/{len(todo)}] {each.name} {each.module.pinned}")


def _build(each: Program, places: Places, progress: Progress, label: str) -> None:
    target = each.path(places)
    target.parent.mkdir(parents=True, exist_ok=True)
    release = ISTIO_RELEASE if each.module is ISTIO else each.module.pinned
    flags = " ".join(["-s -w", *(f"-X {variable}={release}" for variable in each.module.version_variables)])
    started = time.monotonic()
    progress.step(f"{label}: what it needs")
    packages = len(_go(each, "list", "-deps", "-tags", each.module.tags, each.package).split())
    half = target.with_name(target.name + ".new")
    # Istio is compiled as tests/interop does it, so that Go's cache has most of it when those tests were run.
    trim = [] if each.module is ISTIO else ["-trimpath"]
    compile_to = (
        "build",
        "-v",
        "-p",
        "1",
        *trim,
        "-tags",
        each.module.tags,
        "-ldflags",
        flags,
        "-o",
        half,
        each.package,
    )
    command = [str(part) for part in ("nice", "-n", "19", "go", *compile_to)]
    compiled = 0
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=SOURCES / each.module.name,
        env=_environment(each.module),
        stderr=subprocess.PIPE,
        text=True,
    ) as compiler:
        assert compiler.stderr is not None
        for line in compiler.stderr:
            said = [*said[-20:], line]
            compiled += not line.startswith("go: ")  # go: downloading ...
            took = time.monotonic() - started
            progress.step(f"{label}: {compiled} packages compiled, at most {packages}; {took:.0f} s")
    if compiler.returncode:
        progress.say("".join(said))
        raise subprocess.CalledProcessError(compiler.returncode, command)
    half.rename(target)
    progress.say(f"{label}: built in {time.monotonic() - started:.0f} s, {target.stat().st_size >> 20} MB")


def _go(each: Program, *arguments: str) -> str:
    return subprocess.run(
        ["nice", "-n", "19", "go", *arguments],
        cwd=SOURCES / each.module.name,
        env=_environment(each.module),
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _environment(module: Module) -> dict[str, str]:
    goes_alone = {} if module is ISTIO else {"CGO_ENABLED": "0"}  # static: CoreDNS has an image of its own
    return {**os.environ, "GOFLAGS": "-buildvcs=false", "GOMAXPROCS": "1", "GOWORK": "off", **goes_alone}
