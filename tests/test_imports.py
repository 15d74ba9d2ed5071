"""A name has one home: it is imported from the module that defines it, but for the face of ztunnel.hbone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FACES = {"ztunnel.hbone"}
"""Packages whose ``__init__`` is their interface. Nobody else re-exports."""


def sources(*directories: str) -> list[Path]:
    return [
        file
        for directory in directories
        for file in (ROOT / directory).rglob("*.py")
        if not file.is_relative_to(ROOT / "ztunnel" / "pb")
    ]


def module_file(dotted: str) -> Path | None:
    path = ROOT.joinpath(*dotted.split("."))
    compiled = path.with_suffix(".pyi")
    return next(
        (one for one in (path.with_suffix(".py"), path / "__init__.py", compiled) if one.is_file()), None
    )


@cache
def defined(file: Path) -> frozenset[str]:
    """The names that a module defines itself."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return frozenset(names)


def detours(file: Path) -> Iterator[str]:
    """The names that a file imports from where they are not at home."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module or node.module in FACES:
            continue
        home = module_file(node.module)
        if node.module.split(".")[0] != "ztunnel" or home is None or node.module.startswith("ztunnel.pb"):
            continue
        for alias in node.names:
            if alias.name not in defined(home) and module_file(f"{node.module}.{alias.name}") is None:
                yield f"{node.module}.{alias.name}"


def test_names_are_imported_from_where_they_are_defined():
    found = {
        str(file.relative_to(ROOT)): names
        for file in sources("ztunnel", "tests")
        if (names := [*detours(file)])
    }
    assert found == {}
