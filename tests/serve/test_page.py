"""The page at / in headless Chromium, where one is installed."""

import shutil

import numpy as np
import pytest

from poolexport.runtime import session
from serve.conftest import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is looked at through playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is looked at in Chromium, which is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        with_browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield with_browser
        with_browser.close()


@pytest.fixture
def page(browser, server):
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.faults, opened.asked = [], []
    opened.on("console", lambda message: message.type == "error" and opened.faults.append(message.text))
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(f"http://{server.address}/")
    opened.wait_for_selector("#models button")
    yield opened
    opened.close()


def answers(bundles, x):
    return session(bundles / "soft").run(None, {"input": x})


def test_the_page_says_what_is_served_and_what_was_proven(page):
    page.click("#models button:has-text('soft')")
    assert page.inner_text("#name") == "soft"
    assert "PASS" in page.inner_text("#facts")
    shape = page.inner_text("#ports tbody tr td:nth-child(4)").split(" \N{MULTIPLICATION SIGN} ")
    assert shape == ["any", "3", "any", "any"]
    assert page.faults == []


def test_nothing_is_loaded_from_elsewhere(page, server):
    assert all(url.startswith((f"http://{server.address}/", "data:")) for url in page.asked)


def test_an_array_is_answered_as_the_session_answers_it(page, bundles, tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 9), np.float32)
    np.save(tmp_path / "x.npy", x)
    page.click("#models button:has-text('soft')")
    page.set_input_files("#inputs input[type=file]", tmp_path / "x.npy")
    page.click("#send")
    page.wait_for_selector("#answer table")
    [want] = answers(bundles, x)
    first = page.inner_text("#answer tr:nth-child(2) td:nth-child(2)")
    np.testing.assert_allclose(float(first), want.max(), rtol=1e-5)
    place = page.inner_text("#answer tr:nth-child(2) td:nth-child(1)")
    assert place == str([int(i) for i in np.unravel_index(want.argmax(), want.shape)])
    assert "answered in" in page.inner_text("#state")
    assert page.faults == []


def test_an_image_is_resized_and_scaled(page, bundles, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (12, 9, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "x.png")
    page.click("#models button:has-text('soft')")
    page.set_input_files("#inputs input[type=file]", tmp_path / "x.png")
    page.click("#send")
    page.wait_for_selector("#answer table")
    x = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    [want] = answers(bundles, x)
    first = page.inner_text("#answer tr:nth-child(2) td:nth-child(2)")
    np.testing.assert_allclose(float(first), want.max(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.npy", b"no array", "is not a .npy file"),
        ("x.png", b"no image", "is no image that this browser reads"),
        ("f8.npy", np.zeros((1, 3, 8, 8)), "holds FP64"),
        ("c.npy", np.zeros((1, 2, 8, 8), np.float32), "shape"),
    ],
)
def test_bad_files_are_told_in_a_sentence(page, tmp_path, name, content, said):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    page.click("#models button:has-text('soft')")
    page.set_input_files("#inputs input[type=file]", tmp_path / name)
    page.click("#send")
    page.wait_for_selector("#state.error")
    assert said in page.inner_text("#state")
    assert page.is_hidden("#answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser, server, scheme):
    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    phone.goto(f"http://{server.address}/")
    phone.wait_for_selector("#models button")
    assert phone.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    light = phone.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(n => n > 200)")
    assert light == (scheme == "light")
    phone.close()


def test_a_server_with_tokens_asks_for_one(browser, bundles, tmp_path):
    (tmp_path / "tokens").write_text("open-sesame\n")
    with serving(bundles / "mean", "--tokens", tmp_path / "tokens", cwd=tmp_path) as server:
        guarded = browser.new_page()
        guarded.goto(f"http://{server.address}/")
        guarded.wait_for_selector("#access:not([hidden])")
        assert "token" in guarded.inner_text("#server")
        assert guarded.locator("#models button").count() == 0
        guarded.fill("#token", "open-sesame")
        guarded.click("#access button")
        guarded.wait_for_selector("#models button")
        guarded.close()
        assert server.get("/static/models.json").status == 401
