"""Builds the optional compiled part of TLS (ztunnel/tls/accelerator.c) into the wheel.

Without a C compiler or Python's header files the package is pure Python, with a warning.
ZTUNNEL_BUILD_ACCELERATOR=require makes that an error, =off does not try. An editable installation has the
library beside its source.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("ztunnel/tls/accelerator.c")
LIBRARY = Path("ztunnel/tls/_accelerator.abi3.so")
FLAGS = (
    *("-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fstack-protector-strong"),
    *("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wl,-z,relro,-z,now", "-Wl,--build-id=none", "-s"),
)


class AcceleratorHook(BuildHookInterface[Any]):
    """Hatchling calls it for each wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the library to what is built. version: ``standard`` or ``editable``."""
        wanted = os.environ.get("ZTUNNEL_BUILD_ACCELERATOR", "auto")
        if wanted not in {"auto", "off", "require"}:
            raise ValueError(f"ZTUNNEL_BUILD_ACCELERATOR is auto, off or require, not {wanted}")
        root = Path(self.root)
        if version == "editable":
            target = root / LIBRARY
            target.unlink(missing_ok=True)
        else:
            self._made = tempfile.TemporaryDirectory(prefix="ztunnel-accelerator-")
            target = Path(self._made.name, LIBRARY.name)
        problem = "it was switched off" if wanted == "off" else compile_library(root / SOURCE, target)
        if problem is not None:
            if wanted == "require":
                raise RuntimeError(f"the TLS accelerator cannot be built: {problem}")
            self.app.display_warning(f"without the TLS accelerator, in pure Python: {problem}")
        elif version != "editable":
            build_data["force_include"][str(target)] = str(LIBRARY)
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written; the library is in it."""
        del build_data, artifact_path
        if version != "editable":
            self._made.cleanup()


def compile_library(source: Path, target: Path) -> str | None:
    """Compile ``source`` to ``target``. Returns what went wrong, or None."""
    command = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(command[0]) is None:
        return f"there is no C compiler ({command[0]})"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        return f"Python's header files are not in {include}"
    done = subprocess.run(
        [*command, *FLAGS, f"-I{include}", str(source), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
    return None
