"""usage: python -m tests.cluster build | up | down | test [PYTEST'S ARGUMENTS]

make cluster, cluster-down and cluster-test. build makes programs only; test brings the cluster up when it is
not, and down again unless it was up or KEEP is set. CLUSTER_CACHE names another place than .cache/cluster for
them.
"""

import os
import subprocess
import sys

from tests.cluster import cluster, programs, requirements
from tests.cluster.places import CHECKOUT, Places, Progress, places
from tests.cluster.shell import CommandFailed
from tests.cluster.smoke import smoke


def test(where: Places, progress: Progress, arguments: list[str]) -> int:
    """Runs the scenarios; pytest's exit status, or 1 when something was left behind."""
    was_up = (where.state / "ztunnel-tag").exists()
    cluster.up(where, progress)
    scenarios = arguments or [str(CHECKOUT / "tests" / "cluster")]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:randomly", "-p", "no:xdist", *scenarios]
    status = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
    if was_up or os.environ.get("KEEP"):
        return status
    left = cluster.down(where)
    print("\n".join(["Left behind:", *left]) if left else "The cluster is gone; nothing is left of it.")
    return status or int(bool(left))


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 if it failed or left something, 2 for wrong usage, 130 for Ctrl-C."""
    where, progress = places(), Progress()
    try:
        match arguments:
            case ["build"]:
                programs.build(where, progress)
            case ["up"]:
                cluster.up(where, progress)
                print(cluster.hints(where))
            case ["down"]:
                left = cluster.down(where)
                print(
                    "\n".join(["Left behind:", *left])
                    if left
                    else "The cluster is gone; nothing is left of it."
                )
                return 1 if left else 0
            case ["test", *rest]:
                return test(where, progress, rest)
            case ["smoke", seconds]:
                return smoke(float(seconds))
            case ["missing"]:
                print(
                    "\n".join(
                        [
                            *requirements.missing(),
                            *(f"to build: {each.name}" for each in programs.missing(where)),
                        ]
                    )
                )
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (CommandFailed, TimeoutError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted: `make cluster` goes on from here, `make cluster-down` ends what there is",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
