"""A page of the admin server."""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.admin.http import Handler


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the admin server: its text in the index, and its handler."""

    description: str
    handler: Handler
