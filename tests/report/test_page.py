"""The page in headless Chromium, where one is installed."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from poolexport.report.page import page
from report.conftest import Place

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENS = [(width, scheme) for width in (1200, 360) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page is looked at through playwright")
    if CHROMIUM is None:
        pytest.skip("the page is looked at in Chromium, which is not installed")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def look(browser):
    """Opens a page and takes down what goes wrong and what is asked for."""
    pages = []

    def opened(address: str, width: int = 1200, scheme: str = "light") -> Any:
        shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(shown)
        shown.faults, shown.asked = [], []
        shown.on("console", lambda message: shown.faults.append(message.text))
        shown.on("pageerror", lambda error: shown.faults.append(str(error)))
        shown.on("request", lambda request: shown.asked.append(request.url))
        shown.goto(address)
        return shown

    yield opened
    for shown in pages:
        shown.close()


@pytest.mark.parametrize("name", ["good", "bent"])
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_fits_every_screen_and_asks_for_nothing(place: Place, look: Any, name: str, width: int, scheme: str):
    shown = look(place.page(name).as_uri(), width, scheme)
    assert shown.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    # the heat maps need no scrolling of their own either
    assert shown.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    light = shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(n => n > 200)")
    assert light == (scheme == "light")
    assert shown.faults == []
    assert [url for url in shown.asked if not url.startswith("data:")] == [place.page(name).as_uri()]


def test_the_verdict_comes_first(place: Place, look: Any):
    shown = look(place.page("good").as_uri())
    assert shown.inner_text(".word").split() == ["PASS", "within", "rounding"]
    assert "units in the last place" in shown.inner_text(".verdict")
    assert shown.locator(".cell.failed").count() == 1  # in the legend
    assert "sha256" in shown.inner_text("dl")
    assert shown.inner_text("pre") == place.report("good")["command"]


def test_the_cell_that_fails_is_red_and_says_so(place: Place, look: Any):
    shown = look(place.page("bent").as_uri())
    failed = {check["values"] for check in place.report("bent")["checks"] if check["counts"] and not check["passed"]}
    for values in ("normal", "zeros"):
        row = shown.locator(".heat").first.locator("tr", has=shown.locator(f"th:text-is('{values}')"))
        cell = row.locator("td").first
        assert ("failed" in cell.get_attribute("class")) == (values in failed)
        assert cell.locator(".told").inner_text().startswith("failed" if values in failed else "passed")
    assert "normal" in failed
    assert "zeros" not in failed


def test_pictures_and_bars_have_words(place: Place, look: Any):
    shown = look(place.page("bent").as_uri())
    images = shown.locator("img")
    assert images.count() == 4
    assert all(images.nth(k).get_attribute("alt") for k in range(4))
    assert all(images.nth(k).evaluate("image => image.naturalWidth > 1") for k in range(4))
    assert "Histogram: " in shown.locator("svg.histogram").get_attribute("aria-label")
    shown.click("summary")
    assert shown.locator("details tbody tr").count() == shown.locator("svg.histogram rect").count()
    # headings go down one level at a time, and every table has heads
    levels = shown.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert shown.evaluate("[...document.querySelectorAll('table')].every(t => t.querySelector('thead th[scope=col]'))")


def test_words_can_be_read(place: Place, look: Any):
    """Contrast of text in cells and of the verdict, by the formula of WCAG 2."""
    script = """() => {
      const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
      const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number)
        return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b) }
      const ground = e => { while (getComputedStyle(e).backgroundColor.endsWith(', 0)')) e = e.parentElement
        return getComputedStyle(e).backgroundColor }
      return [...document.querySelectorAll('td.cell, .word, .about, dt, small, .legend li, th')].map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x)
        return [(a + 0.05) / (b + 0.05), e.className || e.tagName]})
    }"""
    for scheme in ("light", "dark"):
        ratios = look(place.page("bent").as_uri(), 1200, scheme).evaluate(script)
        assert min(ratios)[0] >= 4.0, (scheme, min(ratios))


def test_culprits_and_a_witness_have_their_place(good: dict[str, Any]):
    layer = {"path": "2", "node": "n1", "operator": "Conv", "created": 3e-3, "allowed": 1e-4, "inherited": 1e-7}
    good["culprits"] = [layer]
    good["witness"] = {"file": "witness.npz", "script": "witness.py", "shapes": [[1, 2, 3, 3]], "reason": "too far"}
    text = page(good)
    assert "Layers that introduce the error" in text
    assert "Conv, n1; created 0.003, inherited 1e-07" in text
    assert "python witness.py" in text


def test_names_cannot_break_out_of_the_page(good: dict[str, Any]):
    evil = '"><script>alert(1)</script>'
    good["subject"]["path"] = good["reason"] = good["command"] = good["checks"][0]["values"] = evil
    good["outputs"][0]["name"] = good["against"] = None
    good["outputs"][0]["name"] = evil

    found = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            found.add(tag)

    Tags().feed(page(good))
    assert "table" in found
    assert "script" not in found
