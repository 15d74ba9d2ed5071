"""Runs a program as a container runtime does: ``python container.py FILE``, FILE being a `Container` as JSON.

The program gets a mount namespace and a process namespace of its own (it is process 1), a root file system
made of overlay layers, /proc, /sys and /dev as in a container, its mounts, and only the capabilities
that it is granted. The network namespace is that of the caller. SIGTERM and SIGINT are passed
on; the exit status is the program's.

It imports the standard library alone, and no other module of the tests, so that it starts fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 32, 4096, 8192, 16384, 1 << 18

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
OPENED = "/usr/local"
READ_ONLY_IN_PROC = ("sys", "sysrq-trigger", "irq", "bus")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Mount:
    """A directory or file of the machine, mounted in the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass
class Container:
    """What to run, and in which root file system.

    layers: directories that make up the root file system, topmost first.
    machine: directories of this machine that are seen in it as well, read-only, in the place of a base image.
    Below OPENED the layers are seen instead.
    changes: the directory that receives what the program writes. If it is None, it cannot write.
    scratch: an empty directory on the file system of ``changes``, for the kernel and for mount points.
    capabilities: those granted, named as in capabilities(7) without CAP_. If it is None, all are.
    """

    command: list[str]
    layers: list[str]
    machine: list[str]
    scratch: str
    changes: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    mounts: list[Mount] = field(default_factory=list)
    user: int = 0
    group: int = 0
    capabilities: list[str] | None = None

    def write(self, file: Path) -> list[str]:
        """Write the specification. Returns the command line that runs it."""
        file.write_text(json.dumps(asdict(self)))
        return [sys.executable, "-S", "-E", __file__, str(file)]

    @classmethod
    def read(cls, file: Path) -> Container:
        """Returns the container that `write` wrote."""
        values: dict[str, Any] = json.loads(file.read_text())
        values["mounts"] = [Mount(**mount) for mount in values["mounts"]]
        return cls(**values)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {source} on {target}",
    )


def _bind(source: str, target: str, *, read_only: bool) -> None:
    _mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        # A bind mount takes its flags in a second step only.
        _mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _overlay(target: str, layers: list[str], changes: str | None, work: Path) -> None:
    data = f"lowerdir={':'.join(layers)}"
    if changes is not None:
        Path(changes).mkdir(parents=True, exist_ok=True)
        work.mkdir()
        data += f",upperdir={changes},workdir={work}"
    _mount("overlay", target, "overlay", MS_RDONLY if changes is None else 0, data)


def _make_root(container: Container) -> str:
    """Put the root file system together.

    The machine's own root cannot be a layer, since the other layers lie in it; its directories are bound.
    """
    scratch = Path(container.scratch)
    root, points, empty, empty_too = (scratch / name for name in ("root", "points", "empty", "empty-too"))
    for directory in (root, points, empty, empty_too):
        directory.mkdir()
    # As runtimes do: what something is to be mounted on is made in a layer of the container's own.
    for name in ("proc", "sys", "dev", "tmp"):
        (points / name).mkdir()
    for path in ["/var/run", *container.machine]:
        point = points / path.lstrip("/")
        point.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_symlink():  # /bin, /lib and their like
            point.symlink_to(Path(path).readlink())
        else:
            point.mkdir(exist_ok=True)
    for mount in container.mounts:
        point = points / os.path.realpath(mount.target).lstrip("/")
        if Path(mount.source).is_dir():
            point.mkdir(parents=True, exist_ok=True)
        else:
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()
    _overlay(str(root), [str(points), *container.layers], container.changes, scratch / "work")
    for path in container.machine:
        if not Path(path).is_symlink():
            _bind(path, f"{root}{path}", read_only=True)
    opened = [layer + OPENED for layer in container.layers if Path(layer + OPENED).is_dir()]
    if sys.base_prefix.startswith(OPENED):
        opened.append(OPENED)
    changes = None if container.changes is None else container.changes + OPENED
    # An overlay without changes wants two layers at least.
    _overlay(str(root) + OPENED, [*opened, str(empty), str(empty_too)], changes, scratch / "opened-work")
    return str(root)


def _furnish(root: str, container: Container) -> None:
    """Mount what a runtime mounts in every container, then what this one is to have."""
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in READ_ONLY_IN_PROC:
        if Path(root, "proc", name).exists():
            _bind(f"{root}/proc/{name}", f"{root}/proc/{name}", read_only=True)
    _mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    if container.changes is not None:
        _mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID, "mode=755")
    for name in DEVICES:
        Path(root, "dev", name).touch()
        _bind(f"/dev/{name}", f"{root}/dev/{name}", read_only=False)
    Path(root, "dev/shm").mkdir()
    _mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV)
    for mount in container.mounts:
        target = root + os.path.realpath(mount.target)
        _bind(mount.source, target, read_only=mount.read_only)


def _become(container: Container) -> None:
    """In the new process: set everything up, then execute the program."""
    _mount("none", "/", flags=MS_REC | MS_PRIVATE)
    root = _make_root(container)
    _furnish(root, container)
    os.chdir(root)
    _mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir(container.directory)
    command = ["setpriv", f"--reuid={container.user}", f"--regid={container.group}", "--clear-groups"]
    if container.capabilities is not None:
        granted = ",".join(f"+{name.lower()}" for name in container.capabilities)
        command += [f"--bounding-set=-all{granted and ','}{granted}", "--inh-caps=-all"]
    os.execve("/usr/bin/setpriv", [*command, "--", *container.command], container.environment)


def main(file: str) -> int:
    """Run a container to its end. Returns the exit status; for a signal, 128 plus its number."""
    container = Container.read(Path(file))
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWPID), "unshare")
    passed_on = (signal.SIGTERM, signal.SIGINT)
    # A signal that comes while there is nobody yet to take it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
            _become(container)
        except OSError as error:
            sys.stderr.write(f"container: {error}\n")
        finally:
            os._exit(125)

    def forward(number: int, frame: object) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass

    for number in passed_on:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
