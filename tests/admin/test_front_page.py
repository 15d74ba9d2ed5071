"""The front page in a real browser: live, by keyboard, light and dark, for a screen reader, and safe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.admin.test_pages import admin
from tests.support.chromium import Browser, chromium
from tests.support.serving import serving
from tests.support.shown_node import CERTIFICATES, EVIL, Node
from ztunnel.admin.inspection import Inspection

TABLES = ("refusals", "connections", "waits", "tunnels", "pods", "certificates")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


async def in_browser(browser: Browser, act: Any) -> Any:
    """Serve the node, open the page, and do something in the browser while it is served."""
    node = Node()
    inspection = Inspection(node.ask, lambda: CERTIFICATES, overview=node.overview)
    async with serving(admin(pages=inspection.pages()).handle) as served:

        def run() -> Any:
            browser.console.clear()
            browser.open(f"http://127.0.0.1:{served.port}/")
            browser.wait("Number(document.body.dataset.looked) >= 1")
            return act(browser)

        return await trio.to_thread.run_sync(run)


def text(browser: Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({selector!r}).innerText"))


async def test_the_node_is_shown_live(browser):
    def act(page: Browser) -> None:
        assert text(page, "#live") == "Live"
        figures = text(page, "#figures")
        for part in ("node-1", "Shared", "not connected to https://istiod:15012", "30 of 1000"):
            assert part in figures
        for name in TABLES:
            assert page.evaluate(f"document.querySelectorAll('#{name}-table tbody tr').length") >= 1
        assert "Nothing listens there." in text(page, "#refusals-table")
        assert "spiffe://sooner" in text(page, "#certificates-table tbody tr:first-child")
        page.wait("/[1-9][0-9.]* [kM]?B\\/s/.test(document.querySelector('#connections-table').innerText)")
        page.evaluate("document.querySelector('#tree-button').click()")
        page.wait("document.querySelector('#tree').innerText.includes('[nursery')")
        assert page.console == []

    await in_browser(browser, act)


async def test_the_old_list_of_links_is_there(browser):
    def act(page: Browser) -> None:
        links = page.evaluate("[...document.querySelectorAll('#pages a')].map((a) => a.getAttribute('href'))")
        assert {"config_dump", "logging", "quitquitquit", "debug/tasks", "explain", "connections"} <= set(
            links
        )

    await in_browser(browser, act)


async def test_what_a_peer_says_of_itself_stays_text(browser):
    def act(page: Browser) -> None:
        assert EVIL in text(page, "#connections-table")
        assert page.evaluate("document.title") == "Ztunnel Admin"
        assert page.evaluate("document.querySelectorAll('main img').length") == 0

    await in_browser(browser, act)


async def test_it_works_by_keyboard(browser):
    def act(page: Browser) -> None:
        page.press("Tab", 9)
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.evaluate("document.querySelector('#refusals-table button').focus()")
        page.press("Enter", 13, "\r")
        page.wait("document.querySelector('#answer').open")
        assert "Connection a-2 of pod shop/web" in text(page, "#answer-text")
        page.press("Escape", 27)
        page.wait("!document.querySelector('#answer').open")
        assert page.evaluate("document.activeElement.closest('table').id") == "refusals-table"
        before = page.evaluate("document.body.dataset.looked")
        page.wait(f"document.body.dataset.looked > {before}")
        assert page.evaluate("document.activeElement.textContent") == "explain"

    await in_browser(browser, act)


async def test_a_question_is_asked_and_answered(browser):
    def act(page: Browser) -> None:
        page.evaluate(
            "(() => { const form = document.querySelector('#ask'); form.elements.from.value = 'shop/web';"
            " form.elements.to.value = 'db:80'; form.requestSubmit(); })()"
        )
        page.wait("document.querySelector('#answer').open")
        assert "=> It goes." in text(page, "#answer-text")

    await in_browser(browser, act)


async def test_it_can_be_paused(browser):
    def act(page: Browser) -> None:
        page.evaluate("document.querySelector('#pause').click()")
        assert text(page, "#live") == "Paused"
        assert page.evaluate("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
        page.evaluate("document.querySelector('#pause').click()")
        assert text(page, "#pause") == "Pause"

    await in_browser(browser, act)


CONTRAST = """
(() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.match(/\\d+/g).map((part) => {
      const c = part / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = 21;
  for (const e of document.querySelectorAll("h1, h2, a, dt, dd, td, th, caption, button, label, #live")) {
    if (!e.innerText || !e.innerText.trim() || e.classList.contains("skip")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    worst = Math.min(worst, (a + 0.05) / (b + 0.05));
  }
  return worst;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_has_enough_contrast_in_light_and_dark(browser, scheme, tmp_path):
    def act(page: Browser) -> None:
        page.prefer(scheme)
        # WCAG 2.1, 1.4.3: at least 4.5
        assert page.evaluate(CONTRAST) >= 4.5
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        page.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"front-{scheme}.png")

    await in_browser(browser, act)


async def test_a_screen_reader_is_told_what_everything_is(browser):
    def act(page: Browser) -> None:
        nodes = page.accessible()
        for role in ("button", "link", "textbox", "combobox", "table", "region"):
            named = [node["name"] for node in nodes if node["role"] == role]
            assert named, role
            assert all(named), role
        buttons = [node["name"] for node in nodes if node["role"] == "button"]
        assert "explain connection a-2" in buttons
        tables = [node["name"] for node in nodes if node["role"] == "table"]
        assert "The pods of this node" in tables
        assert "status" in {node["role"] for node in nodes}
        assert page.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
        assert page.evaluate("document.documentElement.lang") == "en"

    await in_browser(browser, act)


async def test_a_node_that_does_not_answer_is_told_of(browser):
    def act(page: Browser) -> None:
        page.evaluate("window.fetch = async () => { throw new Error('gone'); }")
        page.wait("document.querySelector('#live').innerText.startsWith('Not live: gone')")

    await in_browser(browser, act)


async def test_nothing_is_loaded_from_elsewhere(browser):
    def act(page: Browser) -> None:
        port = page.evaluate("location.port")
        loaded = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
        assert loaded
        assert all(name.startswith((f"http://127.0.0.1:{port}/", "data:")) for name in loaded)
        refused = page.evaluate("fetch('http://127.0.0.2:1/').then(() => 'loaded', () => 'refused')")
        assert refused == "refused"
        assert any("Content Security Policy" in line for line in page.console)

    await in_browser(browser, act)
