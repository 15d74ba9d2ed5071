"""Istiod's own discovery server as a process beside the tests (tests/interop/istiod/main.go).

`build` compiles it, which takes minutes the first time; Go's own cache and ``.cache/istiod`` keep the result.
`Istiod` runs it. Every call blocks; from trio use a thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.support.fake_ca import FakeCertificateAuthority

SOURCE = Path(__file__).parent / "istiod"
BINARY = Path(__file__).parents[2] / ".cache" / "istiod" / "istiod"
BUILD_SECONDS = 3600
ANSWER_SECONDS = 60


def is_built() -> bool:
    """Whether there is a binary that is not older than its source."""
    if not BINARY.exists():
        return False
    built = BINARY.stat().st_mtime
    return all(built >= file.stat().st_mtime for file in SOURCE.iterdir())


def build() -> None:
    """Compile the program unless it is built. Raises RuntimeError with what Go said."""
    if is_built():
        return
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        raise RuntimeError("there is no Go compiler (go) on the PATH")
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [go, "build", "-buildvcs=false", "-p", "1", "-o", str(BINARY), "."],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"go build failed: {done.stderr.strip()}")
    os.utime(BINARY)


class IstiodError(Exception):
    """The program refused a command or ended."""


class Istiod:
    """A running istiod. ``ca.root`` is what its certificate is verified with; ``address`` is for XDS_ADDRESS.

    ``objects`` are what Kubernetes holds at first. ``multi_network`` turns that feature of istiod on.
    """

    def __init__(self, directory: Path, objects: str, *, multi_network: bool = False) -> None:
        self._flags = ["-multi-network"] if multi_network else []
        self._directory = directory
        self._objects = objects
        self._process: subprocess.Popen[str] | None = None
        self.ca = FakeCertificateAuthority()
        self.address = ""

    def __enter__(self) -> Self:
        key, chain = self.ca.server("127.0.0.1", "localhost")
        files = {"key.pem": key, "cert.pem": chain, "objects.yaml": self._objects.encode()}
        for name, content in files.items():
            (self._directory / name).write_bytes(content)
        with (self._directory / "istiod.log").open("w") as log:
            self._process = subprocess.Popen(
                [str(BINARY), "-cert=cert.pem", "-key=key.pem", "-objects=objects.yaml", *self._flags],
                cwd=self._directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.address = "https://" + self._read()["address"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def apply(self, *objects: str) -> None:
        """Create or replace Kubernetes objects."""
        self._command({"apply": "\n---\n".join(objects)})

    def delete(self, *objects: str) -> None:
        """Delete Kubernetes objects."""
        self._command({"delete": "\n---\n".join(objects)})

    def hold(self, *, on: bool) -> None:
        """Cut all connections and keep new ones out, or stop doing so."""
        self._command({"hold": on})

    def log(self) -> str:
        """What the program wrote to its log."""
        return (self._directory / "istiod.log").read_text()

    def _command(self, command: Mapping[str, object]) -> None:
        pipe = self._pipe("stdin")
        pipe.write(json.dumps(command) + "\n")
        pipe.flush()
        answer = self._read()
        if answer.get("error"):
            raise IstiodError(answer["error"])

    def _read(self) -> dict[str, str]:
        process = self._process
        assert process is not None
        alarm = threading.Timer(ANSWER_SECONDS, process.kill)
        alarm.start()
        try:
            line = self._pipe("stdout").readline()
        finally:
            alarm.cancel()
        if not line:
            raise IstiodError(f"istiod ended or did not answer: {self.log()[-2000:]}")
        answer: dict[str, str] = json.loads(line)
        return answer

    def _pipe(self, name: str) -> IO[str]:
        assert self._process is not None
        pipe: IO[str] = getattr(self._process, name)
        return pipe
