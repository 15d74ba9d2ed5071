"""usage: python -m tests.cluster build | up | down        (make cluster, make cluster-down)

build makes programs and images only. CLUSTER_CACHE names another place than .cache/cluster for them.
"""

import sys

from tests.cluster import cluster, programs, requirements
from tests.cluster.places import Progress, places
from tests.cluster.shell import CommandFailed


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 when it failed or something was left, 2 for wrong usage."""
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
    except (CommandFailed, TimeoutError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
