"""The front page: a live overview of the node in a browser; for other clients the list of all pages.

Its three files are served unchanged. A content security policy keeps the page from loading anything from
elsewhere, and data from being run as script.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files

from ztunnel.admin.http import Request, Response
from ztunnel.admin.page import Page

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
_TYPES = {
    "front.css": "text/css; charset=utf-8",
    "front.js": "text/javascript; charset=utf-8",
}


class FrontPage:
    """Serves ``/`` and its files. ``pages``: the list of pages that it shows."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        directory = files("ztunnel.admin.front")
        rows = "\n".join(
            f'<tr><td><a href="{escape(path.lstrip("/"))}">{escape(path.lstrip("/"))}</a></td>'
            f"<td>{escape(page.description)}</td></tr>"
            for path, page in pages.items()
        )
        html = directory.joinpath("front.html").read_text(encoding="utf-8").replace("@PAGES@", rows)
        self._answers = {"/": Response(200, html.encode(), "text/html; charset=utf-8", _HEADERS)}
        for name, kind in _TYPES.items():
            body = directory.joinpath(name).read_bytes()
            self._answers[f"/{name}"] = Response(200, body, kind, _HEADERS)

    def answer(self, request: Request) -> Response | None:
        """Returns the page or one of its files, None for any other path."""
        return self._answers.get(request.path)
