"""What mkdocs does beside its configuration: pages that nobody has put into the navigation are listed under "More"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add what the navigation lacks, and leave out what is not there."""
    docs = Path(config.docs_dir)
    nav = [item for item in (_existing(item, docs) for item in config.nav or []) if item is not None]
    named = set(_pages(nav))
    rest = sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))
    more = [page for page in rest if page not in named]
    config.nav = [*nav, {"More": more}] if more else nav
    return config


def _pages(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    parts = item.values() if isinstance(item, dict) else item
    return [page for part in parts for page in _pages(part)]


def _existing(item: Any, docs: Path) -> Any:
    if isinstance(item, str):
        return item if (docs / item).exists() else None
    if isinstance(item, dict):
        kept = {title: _existing(part, docs) for title, part in item.items()}
        return {title: part for title, part in kept.items() if part} or None
    return [part for part in (_existing(part, docs) for part in item) if part is not None]
