"""A bare machine: Debian as debootstrap makes it, with what README.md asks for and nothing else.

It is made once, below ``.cache/bare``, and seen through an overlay, so that what runs in it never changes it.
This machine's way to the package index (its proxies, certificates, mirrors: environment and files of pip) is
lent to it read-only, since without it nothing could be installed here. Nothing of that is in the project.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.image import network_settings

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "bare"
SUITE = "bookworm"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
DEBOOTSTRAP_SECONDS = 600
USER = 1000
HOME = "/home/user"

# Files and directories that say how pip and TLS reach the index from here.
_LENT = ("/etc/pip.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/ssl", "/usr/local/share/ca-certificates")


class BareRootError(Exception):
    """The root cannot be made on this machine; the text says why."""


def readme_packages() -> list[str]:
    """The packages that README.md says are needed before anything else."""
    text = (REPOSITORY / "README.md").read_text()
    match = re.search(r"^apt-get install ([\w -]+?)\s*(?:#.*)?$", text, re.MULTILINE)
    assert match is not None, "README.md does not say what to install first"
    return match[1].split()


def make_root() -> Path:
    """The root of the machine, made unless it is there. Raises BareRootError."""
    packages = readme_packages()
    name = "-".join([SUITE, *sorted(packages)])
    root = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            return root
        made = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
        made.chmod(0o755)
        include = ",".join(["ca-certificates", *packages])
        command = ["debootstrap", "--variant=minbase", f"--include={include}", SUITE, str(made), MIRROR]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DEBOOTSTRAP_SECONDS
        )
        if done.returncode != 0:
            shutil.rmtree(made, ignore_errors=True)
            raise BareRootError(f"debootstrap failed: {(done.stdout + done.stderr).strip()[-600:]}")
        shutil.rmtree(made / "var/cache/apt", ignore_errors=True)
        made.rename(root)
    return root


@dataclass
class BareMachine:
    """A root to run commands in. What they change is kept until it is closed."""

    root: Path
    directory: Path

    def run(
        self,
        command: str,
        *,
        user: int = 0,
        user_namespaces: bool = True,
        environment: Mapping[str, str] | None = None,
        timeout: float = 900,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the checkout of a user.

        user_namespaces: whether the user may make some. The kernel refuses them to a process in a chroot.
        """
        home = HOME if user else "/root"
        variables = {
            "HOME": home,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            **network_settings(),
            **(environment or {}),
        }
        inner = f"cd {home}/ztunnel && {command}"
        drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        program = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), "sh", "-c", inner]
        script = "\n".join(
            [
                "set -e",
                *self._mounts(),
                *_enter(self.target, user_namespaces),
                "exec chroot . " + shlex.join([*drop, *program]),
            ]
        )
        return subprocess.run(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
        )

    @property
    def target(self) -> str:
        """Where the root is mounted, in the namespace of a command."""
        return str(self.directory / "root")

    def _mounts(self) -> Iterator[str]:
        target = self.target
        changes, work = self.directory / "changes", self.directory / "work"
        yield f"mount -t overlay overlay -o lowerdir={self.root},upperdir={changes},workdir={work} {target}"
        yield f"mount -t proc proc {target}/proc"
        yield f"mount -t sysfs -o ro sysfs {target}/sys"
        yield f"mount --rbind /dev {target}/dev"
        yield f"mount -t tmpfs -o mode=1777 tmpfs {target}/tmp"
        yield f"mount -t tmpfs tmpfs {target}/run"
        for path in [*_LENT, *_wheels()]:
            if not Path(path).exists():
                continue
            source = os.path.realpath(path)
            point = target + path
            if Path(source).is_dir():
                yield f"mkdir -p {point}"
            else:
                yield f"rm -f {point}; mkdir -p {os.path.dirname(point)}; touch {point}"
            yield f"mount --bind {source} {point} && mount -o remount,bind,ro {point}"


def _enter(target: str, user_namespaces: bool) -> list[str]:
    if user_namespaces:
        return [f"cd {target}", "mount --move . /"]
    return [f"cd {target}"]


def _wheels() -> list[str]:
    return [path for path in os.environ.get("PIP_FIND_LINKS", "").split() if Path(path).is_dir()]


@contextmanager
def bare_machine() -> Iterator[BareMachine]:
    """A machine with a clone of this checkout, changes that are not committed included, for root and a user.

    The user's home is closed to others. Raises BareRootError.
    """
    root = make_root()
    with tempfile.TemporaryDirectory(prefix="machine-", dir=CACHE) as name:
        directory = Path(name)
        changes = directory / "changes"
        for made in ("root", "work", "changes/root", f"changes{HOME}"):
            (directory / made).mkdir(parents=True)
        passwd = (root / "etc/passwd").read_text() + f"user:x:{USER}:{USER}::{HOME}:/bin/sh\n"
        (changes / "etc").mkdir()
        (changes / "etc/passwd").write_text(passwd)
        for home, owner in (("root", 0), (HOME.lstrip("/"), USER)):
            clone = changes / home / "ztunnel"
            _clone(clone)
            (changes / home).chmod(0o700)
            subprocess.run(["chown", "-R", f"{owner}:{owner}", str(changes / home)], check=True)
        yield BareMachine(root, directory)


def _clone(target: Path) -> None:
    """A clone of this checkout, with the files as they are now."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(REPOSITORY), str(target)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name for name in listed.stdout.split("\0") if name}
    for name in names:
        source = REPOSITORY / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    for name in subprocess.run(
        ["git", "ls-files", "-z"], cwd=target, capture_output=True, text=True, check=True
    ).stdout.split("\0"):
        if name and not (REPOSITORY / name).exists():
            (target / name).unlink()
