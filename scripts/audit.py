#!/usr/bin/env python3
"""Compares the locked libraries with a copy of known vulnerabilities. Works without a network.

usage: python scripts/audit.py [--advisories PATH] [--lock FILE]...

PATH is a copy of advisories in the OSV format (https://ossf.github.io/osv-schema/): a directory of JSON or YAML files, such
as a clone of pypa/advisory-database, or a zip of JSON files, such as OSV's export for PyPI. Without PATH, or where there is
nothing at it, the audit is skipped, and says so: status 0, since a machine without a copy is no fault of the libraries. A
library that is affected is named with its advisory: status 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-runtime.lock", "requirements-build.lock")
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def normal(name: str) -> str:
    """The name of a distribution as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(paths: list[Path]) -> dict[str, set[str]]:
    """The versions of each library in lock files."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for name, version in _PINNED.findall(path.read_text(encoding="utf-8")):
            found.setdefault(normal(name), set()).add(version)
    return found


def advisories(path: Path) -> Iterator[Mapping[str, Any]]:
    """All advisories of a copy. Raises ValueError for one that cannot be read."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield json.loads(archive.read(name))
        return
    for file in sorted(path.rglob("*")):
        if file.suffix == ".json":
            yield json.loads(file.read_bytes())
        elif file.suffix in {".yaml", ".yml"}:
            loaded = yaml.safe_load(file.read_bytes())
            if isinstance(loaded, dict) and "affected" in loaded:
                yield loaded


def affects(affected: Mapping[str, Any], version: str) -> bool:
    """Whether an ``affected`` entry names a version, by its list or by its ranges."""
    if version in (affected.get("versions") or ()):
        return True
    try:
        ours = Version(version)
        return any(
            _within(one["events"], ours) for one in affected.get("ranges") or () if one["type"] == "ECOSYSTEM"
        )
    except InvalidVersion:
        return False


def _within(events: list[Mapping[str, str]], version: Version) -> bool:
    inside = False
    for event in events:
        if "introduced" in event:
            inside = inside or event["introduced"] == "0" or version >= Version(event["introduced"])
        elif ("fixed" in event and version >= Version(event["fixed"])) or (
            "last_affected" in event and version > Version(event["last_affected"])
        ):
            inside = False
    return inside


def findings(libraries: Mapping[str, set[str]], known: Iterator[Mapping[str, Any]]) -> tuple[list[str], int]:
    """A line for each library that is affected, and how many advisories were looked at."""
    lines, count = [], 0
    for advisory in known:
        count += 1
        if advisory.get("withdrawn"):
            continue
        for affected in advisory.get("affected") or ():
            package = affected.get("package") or {}
            if package.get("ecosystem") != "PyPI":
                continue
            name = normal(package["name"])
            for version in sorted(libraries.get(name, ())):
                if affects(affected, version):
                    summary = advisory.get("summary") or str(advisory.get("details", "")).partition("\n")[0]
                    lines.append(f"{name} {version}: {advisory['id']} {summary}".rstrip())
    return sorted(set(lines)), count


def say(line: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(line + "\n")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--advisories", type=Path)
    parser.add_argument("--lock", type=Path, action="append")
    arguments = parser.parse_args()
    libraries = locked(arguments.lock or [ROOT / name for name in LOCKS])
    path = arguments.advisories
    if path is None or not path.exists():
        say(
            f"audit SKIPPED: no copy of advisories{f' at {path}' if path else ''}; {len(libraries)} libraries are locked"
        )
        return 0
    lines, count = findings(libraries, advisories(path))
    if not count:
        say(f"audit FAILED: {path} holds no advisory")
        return 1
    for line in lines:
        say(f"VULNERABLE {line}")
    say(f"audit: {len(libraries)} libraries, {count} advisories, {len(lines)} findings")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
