"""Suites stand alone: what one borrows from another lives in tests/support/."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PATCHED = re.compile(r'(?:setattr\(|patch\(|patch\.object\()\s*(?:[^,"]+,\s*)?"(?:\w+\.)*_?[A-Z][A-Z0-9_]+"')
RUNNERS = {"fuzz"}
"""Suites that run the properties of others, for longer."""


def imported(file: Path) -> Iterator[str]:
    """The modules of tests/ that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("tests."))


def suite_of(name: str) -> str | None:
    """The suite that a dotted name below ``tests`` is in, None for what lies beside the suites."""
    first = name.split(".")[1]
    return first if (TESTS / first).is_dir() else None


def borrowed(file: Path) -> list[str]:
    own = file.relative_to(TESTS).parts[0]
    if own in RUNNERS:
        return []
    return [name for name in imported(file) if suite_of(name) not in (None, own, "support")]


def test_no_suite_borrows_from_another():
    found = {str(file.relative_to(TESTS)): names for file in TESTS.rglob("*.py") if (names := borrowed(file))}
    assert found == {}


def test_a_loan_is_seen(tmp_path):
    file = TESTS / "support" / "logs.py"
    assert [name for name in imported(file) if suite_of(name)] == []
    assert suite_of("tests.e2e.mesh.Mesh") == "e2e"
    assert suite_of("tests.needs.unavailable") is None


def test_nobody_patches_a_constant():
    """A test that wants another bound hands it in: `ztunnel.bounds`."""
    found = [str(file) for file in TESTS.rglob("*.py") if PATCHED.search(file.read_text(encoding="utf-8"))]
    assert found == []


def test_a_patched_constant_is_seen():
    patch = "monkeypatch.set" + "attr({}, 8)"
    assert PATCHED.search(patch.format('"ztunnel.sockets.source._PORTS"'))
    assert PATCHED.search(patch.format('source, "PORTS"'))
    assert not PATCHED.search(patch.format('source, "Watch"'))


ON_REAL_TIME = {"bare", "bench", "chaos", "cluster", "e2e", "fuzz", "interop", "soak", "support"}
"""Suites with other processes, for whom no clock of ours stands still, and what they share."""


def naps(text: str) -> list[str]:
    """The tests that sleep on the real clock. A loop that looks for something may, and who says why may."""
    found, lines = [], text.splitlines()
    for test in ast.parse(text).body:
        if not isinstance(test, ast.AsyncFunctionDef) or not test.name.startswith("test_"):
            continue
        fixtures = {argument.arg for argument in (*test.args.args, *test.args.kwonlyargs)}
        looking = {
            id(inner) for loop in ast.walk(test) if isinstance(loop, ast.While) for inner in ast.walk(loop)
        }
        if "autojump_clock" not in fixtures and any(
            isinstance(call, ast.Call)
            and ast.unparse(call.func) == "trio.sleep"
            and id(call) not in looking
            and "# real time: " not in lines[call.lineno - 1]
            for call in ast.walk(test)
        ):
            found.append(test.name)
    return found


def test_no_test_sleeps_on_the_real_clock():
    """It asks for ``autojump_clock``, or waits for what it is about."""
    found = {
        str(file.relative_to(TESTS)): names
        for file in TESTS.rglob("test_*.py")
        if file.relative_to(TESTS).parts[0] not in ON_REAL_TIME
        and (names := naps(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_a_nap_is_seen():
    test = "async def test_it({}):\n    {}await trio.sleep(1)"
    assert naps(test.format("", "")) == ["test_it"]
    assert naps(test.format("", "") + "  # real time: jitter") == []
    assert naps(test.format("autojump_clock", "")) == naps(test.format("", "while wanting(): ")) == []


def unused_fixtures(text: str) -> list[str]:
    """The asynchronous fixtures with ``autouse``: pytest-trio runs none that the test does not ask for."""
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.AsyncFunctionDef)
        and any("autouse=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


def test_no_fixture_is_left_out():
    found = {
        str(file.relative_to(TESTS)): names
        for file in TESTS.rglob("*.py")
        if (names := unused_fixtures(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_a_fixture_that_is_left_out_is_seen():
    decorated = "@pytest.fixture(autouse=True)\n{} first(): ...\n@pytest.fixture\nasync def second(): ..."
    assert unused_fixtures(decorated.format("async def")) == ["first"]
    assert unused_fixtures(decorated.format("def")) == []
