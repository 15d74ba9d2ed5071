"""What pages name is there: metrics, environment variables, pages of the admin server, make's targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.scripts import load_script
from ztunnel.observe.families import CATALOGUE

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OURS = r"(?:istio|workload_manager|ztunnel|process|tokio)"
FAMILIES = {family.name for family in CATALOGUE} | {name for family in CATALOGUE for name in family.samples}
VARIABLES = {
    name for group in yaml.safe_load((ROOT / "scripts/variables.yaml").read_text()).values() for name in group
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_that_a_page_names_exist(page: Path):
    named = re.findall(rf"`({OURS}_[a-z0-9_]+_(?:total|count|fds|bytes|open|seconds))`", page.read_text())
    assert [name for name in named if name not in FAMILIES] == []


@pytest.mark.parametrize("page", ["operate.md", "troubleshoot.md", "concepts.md", "replace.md", "install.md"])
def test_variables_of_ours_that_a_page_names_exist(page: str):
    named = re.findall(r"`(ZTUNNEL_[A-Z0-9_]+|ISTIO_META_[A-Z0-9_]+)", (ROOT / "docs" / page).read_text())
    assert [name for name in named if name not in VARIABLES] == []


def test_pages_of_the_admin_server_that_are_named_exist():
    known = set(re.findall(r"^\| `(/[\w/]+)`", (ROOT / "docs/reference/admin.md").read_text(), re.MULTILINE))
    for page in ("operate.md", "troubleshoot.md"):
        named = re.findall(
            r"[`0](/(?:debug|config_dump|explain|logging)[\w/]*)", (ROOT / "docs" / page).read_text()
        )
        assert {name.rstrip("/") for name in named} <= known, page


def test_the_reference_is_what_the_code_says():
    assert load_script("reference.py").main(["--check"]) == 0
