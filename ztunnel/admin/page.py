"""A page of the admin server."""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.admin.http import Handler


@dataclass(frozen=True, slots=True)
class Page:
    """What the index says of a page, and who answers."""

    description: str
    handler: Handler
