"""``make fuzz MINUTES=n``: all targets in turn, guided by coverage, or those that are named.

usage: python -m tests.fuzz [--minutes N] [TARGET ...]

New inputs go to .cache/fuzz/, where the next run finds them; the corpus of the repository is only read. What
makes a target fail is kept there too; when its reason has been mended, it goes into tests/fuzz/corpus/.
Without atheris (it has wheels for few platforms) hypothesis makes the inputs up.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.seeds import CORPUS
from tests.fuzz.targets import TARGETS

KEPT = Path(__file__).parents[2] / ".cache" / "fuzz"
LONGEST = 4096
SLOW_SECONDS = 20


def main() -> int:
    """Fuzz; the status is 1 when a target failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for all of them together")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = options.targets or list(TARGETS)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed here: hypothesis makes up the inputs instead, without guidance")
        command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz", "--hypothesis-profile=deep"]
        return subprocess.run(command, check=False).returncode
    seconds = max(1, int(options.minutes * 60 / len(names)))
    failed = [name for name in names if not fuzz(name, seconds)]
    for name in failed:
        print(
            f"{name} FAILED: the input is in {KEPT / name}/, a file that begins with crash-, oom- or timeout-"
        )
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> bool:
    """Run one target for some seconds; gives whether it held."""
    own = KEPT / name
    found = own / "inputs"
    found.mkdir(parents=True, exist_ok=True)
    began = time.time() - 2  # a file system's clock may be a little behind
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.guided", name),
            *(f"-max_total_time={seconds}", f"-artifact_prefix={own}/", f"-max_len={LONGEST}"),
            *(f"-timeout={SLOW_SECONDS}", "-rss_limit_mb=2048", "-print_final_stats=1"),
            *(str(found), str(CORPUS / name)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    (own / "output").write_text(output)
    runs = output.rpartition("stat::number_of_executed_units:")[2].split()[:1]
    coverage = output.rpartition(" cov: ")[2].split()[:1]
    held = done.returncode == 0
    print(
        f"{name:<18}{'held' if held else 'FAILED':<8}{(runs or ['?'])[0]:>9} inputs, "
        f"{(coverage or ['?'])[0]:>6} edges, {seconds} s",
        flush=True,
    )
    if not held:
        print("\n".join(line[:500] for line in output.splitlines()[-40:]))
        print(cases(own, began), flush=True)
    return held


def cases(directory: Path, since: float) -> str:
    """The inputs that made a target fail, as Python writes them: where this ran, the files may soon be gone.

    since: in seconds, as `time.time` has it; older files are of other runs.
    """
    found = sorted(
        path
        for kind in ("crash", "leak", "oom", "timeout", "slow-unit")
        for path in directory.glob(f"{kind}-*")
        if path.stat().st_mtime >= since
    )
    return "\n".join(f"{path.name}: {path.read_bytes()!r}" for path in found) or "no input was kept"


if __name__ == "__main__":
    sys.exit(main())
