"""`make lint` finds signs that lead nowhere, and tables that are behind the code."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
HERE = ROOT / "ztunnel" / "proxy" / "pod.py"


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(name, str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def signs() -> ModuleType:
    return script("signs")


@pytest.mark.parametrize(
    "line",
    [
        "see docs/routing.md",
        "see docs/protocol/operations.md#rotation",
        "[x](protocol/data-path.md#hbone-client)",
        "`ztunnel.proxy.pod` and `ztunnel.bounds.TunnelBounds`",
        "tests/proxy/test_relay.py, proxy/relay.py",
        "https://example.com/page.md and /etc/page.md",
    ],
)
def test_what_is_there_is_found(signs, line):
    assert list(signs.wrong(HERE, line)) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("see docs/nowhere.md", "there is no page docs/nowhere.md"),
        ("docs/protocol/operations.md#no-such", "docs/protocol/operations.md has no section no-such"),
        ("`ztunnel.proxy.nowhere`", "there is no ztunnel.proxy.nowhere"),
        ("`ztunnel.bounds.NoBounds`", "there is no ztunnel.bounds.NoBounds"),
        ("tests/proxy/test_nowhere.py", "there is no file tests/proxy/test_nowhere.py"),
        ("Source: operations reference, 6.3", "it names a document that is not in the repository"),
        ("Source: reference 1.5", "it names a document that is not in the repository"),
    ],
)
def test_what_is_not_there_is_told(signs, line, what):
    assert list(signs.wrong(HERE, line)) == [what]


def test_the_sections_of_a_page_are_those_of_its_headings(signs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n## What, then?\n\n```\n# no heading\n```\n")
    assert signs.sections(page) == {"a-page", "what-then"}


def test_the_table_of_bounds_has_a_row_for_each():
    bounds = script("bounds")
    rows = bounds.table().splitlines()
    assert "| `tunnel.ping_interval` | 10 s | from an answered PING to the next |" in rows
    assert any(row.startswith("| `dns.query_bytes` | 4 MiB |") for row in rows)


def test_exceptions_for_unused_code_are_names(signs):
    assert "mermaid" in script("unused").allowed()


def test_a_private_variable_that_nothing_reads_is_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "_LIMIT = 1\n_LEFT = 2\n\n"
        "class A:\n    def __init__(self):\n        self._kept = _LIMIT\n        self._lost = 3\n"
    )
    other = tmp_path / "other.py"
    other.write_text("def kept(a):\n    _ = a\n    return a._kept\n")
    assert list(script("unused").private_variables([file, other])) == [
        f"{file}:2: unused variable '_LEFT'",
        f"{file}:7: unused variable '_lost'",
    ]
