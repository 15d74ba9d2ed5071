"""The two commands of docker that docs/install.md shows, where there is neither docker nor a registry.

usage: python -m tests.cluster.docker build [--build-arg X=Y] -t NAME . | push NAME

`build` is buildah's, with the stand-in for the base image; `push` brings the image to the cluster's nodes,
which then have it as if they had pulled it.
"""

import argparse
import sys

from tests.cluster.images import Images
from tests.cluster.places import CHECKOUT, Progress, places


def main(arguments: list[str]) -> None:
    """Does one of the two. Raises SystemExit for anything else, CommandFailed when it fails."""
    parser = argparse.ArgumentParser(prog="docker")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build")
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("-t", "--tag", required=True)
    build.add_argument("context", choices=["."])
    commands.add_parser("push").add_argument("name")
    asked = parser.parse_args(arguments)
    images = Images(places(), Progress())
    if asked.command == "build":
        images.build_dockerfile(asked.tag, CHECKOUT, [f"--build-arg={each}" for each in asked.build_arg])
    else:
        images.push_into_nodes(asked.name)


if __name__ == "__main__":
    main(sys.argv[1:])
