"""The site in a browser: what a reader can do with it, in both themes, at a desk and on a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_site import Made

pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or not DRIVER, reason="no Chromium with its driver: apt install chromium chromium-driver"
    ),
]

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

BOARD = "scannet-synthetic-scannet-paper-1-medium.html"
LEADERBOARD = f"{BOARD.removesuffix('.html')}-leaderboard"
DESK, PHONE = (1280, 900), (390, 844)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """Chromium on one site; notes what it was asked to fetch and what it complained of."""

    def __init__(self, site: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in _FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        self._site = site

    def open(self, page: str, size: tuple[int, int] = DESK, theme: str = "light") -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get("about:blank")
        self.driver.get((self._site / page.partition("#")[0]).as_uri() + page[len(page.partition("#")[0]) :])

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text.splitlines()[0] for element in self.all(selector) if element.is_displayed()]

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))  # type: ignore[no-untyped-call]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(made: Made) -> Iterator[Browser]:
    browser = Browser(made.site)
    yield browser
    browser.driver.quit()


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: nothing was complained of, nothing was fetched from elsewhere, nothing is remembered."""
    browser: Browser = request.getfixturevalue("browser")
    yield
    assert browser.complaints() == []
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data", "about"}
    browser.run("if (location.protocol === 'file:') localStorage.clear()")


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_fits_the_window(browser: Browser, made: Made, size: tuple[int, int], theme: str) -> None:
    for page in sorted(path.name for path in made.site.glob("*.html")):
        browser.open(page, size, theme)
        assert browser.run("return document.documentElement.scrollWidth") <= size[0], page
        assert browser.one("h1").is_displayed(), page


def _names(browser: Browser) -> list[list[str]]:
    """Names of the leaderboard's visible rows, section by section."""
    bodies = browser.all(f"#{LEADERBOARD} tbody")
    found = [[n.text for n in b.find_elements(By.CSS_SELECTOR, ".name") if n.is_displayed()] for b in bodies]
    return [names for names in found if names]


def test_a_heading_sorts_within_sections_and_says_so(browser: Browser) -> None:
    browser.open(BOARD)
    before = _names(browser)
    head = browser.one(f"#{LEADERBOARD} thead th:nth-child(2)")
    button = head.find_element(By.TAG_NAME, "button")
    column = f"#{LEADERBOARD} tbody:first-of-type tr:not(.section) td:nth-child(2)"

    def values() -> list[float]:
        return [float(cell.get_attribute("data-value") or "nan") for cell in browser.all(column)]

    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    # Submitted and training-free rows have stayed where they were.
    assert [sorted(names) for names in _names(browser)] == [sorted(names) for names in before]
    assert len(before) == 3


def test_the_keyboard_sorts_and_empty_cells_stay_last(browser: Browser) -> None:
    browser.open(BOARD)
    buttons = browser.all(f"#{LEADERBOARD} thead button")
    memory = next(b for b in buttons if b.text == "Memory")
    browser.run("arguments[0].focus()", memory)
    memory.send_keys(Keys.ENTER)
    assert browser.one(f"#{LEADERBOARD} th[aria-sort]").text.startswith("Memory")
    method = buttons[0]
    browser.run("arguments[0].focus()", method)
    method.send_keys(Keys.SPACE)
    first = _names(browser)[0]
    assert first == sorted(first, key=str.lower)


def test_the_filter_leaves_rows_that_have_all_words(browser: Browser) -> None:
    browser.open(BOARD)
    everything = _names(browser)
    field = browser.one(f"input[data-filter='{LEADERBOARD}']")
    field.send_keys("ligs QUERY")
    kept = _names(browser)
    assert kept == [[n for n in everything[0] if "ligs" in n and "query" in n]]
    total = sum(map(len, everything))
    assert browser.one(f"[data-count='{LEADERBOARD}']").text == f"{len(kept[0])} of {total} rows"
    field.clear()
    field.send_keys(" ")
    browser.one(f"input[data-complete='{LEADERBOARD}']").click()
    left = {name for names in _names(browser) for name in names}
    assert not left & {"only-here", "voxel-vote", "raw-masks"}


def test_differences_can_be_put_away(browser: Browser) -> None:
    browser.open(BOARD)
    differences = browser.all(f"#{LEADERBOARD} .diff")
    assert any(d.is_displayed() for d in differences)
    assert browser.all(f"#{LEADERBOARD} .diff.grey")
    browser.one(f"input[data-differences='{LEADERBOARD}']").click()
    assert not any(d.is_displayed() for d in differences)


def test_one_metric_at_a_time(browser: Browser) -> None:
    browser.open(BOARD)
    shown = "#scenes figure.table .caption"
    assert browser.texts(shown)[0].startswith("PQ by scene")
    button = next(b for b in browser.all("#scenes .segments button") if b.text == "mCov")
    button.click()
    assert len(browser.texts(shown)) == 1
    assert browser.texts(shown)[0].startswith("mCov by scene")
    assert button.get_attribute("aria-pressed") == "true"


def test_a_figure_leads_to_its_command(browser: Browser) -> None:
    browser.open(BOARD)
    browser.one("#scenes td a").click()
    assert "results.html#r-" in browser.driver.current_url
    row = browser.one("tr:target")
    assert row.find_element(By.TAG_NAME, "details").get_attribute("open")
    command = row.find_element(By.CSS_SELECTOR, ".command")
    assert command.is_displayed()
    assert command.text.startswith("panbench fit ")
    copy = row.find_element(By.CSS_SELECTOR, ".copy")
    copy.click()
    assert copy.text in ("Copied", "Selected", "Copy")


def _luminance(color: str) -> float:
    parts = [float(p) / 255 for p in color[color.index("(") + 1 : -1].split(",")[:3]]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, two: str) -> float:
    high, low = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(browser: Browser, theme: str) -> None:
    browser.open(BOARD, theme=theme)
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (_luminance(background) < 0.1) == (theme == "dark")
    texts = (
        "body",
        ".lead",
        ".hash",
        ".notes",
        ".diff.grey",
        ".sd",
        ".unit",
        "tr.section th",
        ".rank",
        "td a",
        ".within a",
    )
    for selector in texts:
        color = browser.run("return getComputedStyle(document.querySelector(arguments[0])).color", selector)
        assert _contrast(color, background) >= 4.5, (selector, color)
    for i in range(8):
        script = "return getComputedStyle(document.querySelector(arguments[0])).fill"
        if browser.all(f"svg .mark.c{i}"):
            assert _contrast(browser.run(script, f"svg .mark.c{i}"), background) >= 3, i


def test_the_theme_follows_the_system_until_it_is_chosen_and_then_stays(browser: Browser) -> None:
    def dark() -> bool:
        return _luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.1

    browser.open("index.html", theme="dark")
    assert dark()
    assert browser.one("#theme").get_attribute("aria-pressed") == "true"
    browser.one("#theme").click()
    assert not dark()
    browser.open("paper.html", theme="dark")
    assert not dark()
    browser.one("#theme").click()
    assert dark()


def _sources(browser: Browser) -> list[str]:
    return [str(browser.one(f"#image-{side}").get_attribute("src")) for side in ("left", "right")]


def _loaded(browser: Browser) -> bool:
    return bool(browser.run("return ['left','right'].every(s => document.getElementById('image-'+s).naturalWidth > 0)"))


def _pick(browser: Browser, name: str) -> Callable[[str], None]:
    return Select(browser.one(f"#{name}")).select_by_visible_text


def test_the_slider_lays_two_methods_side_by_side(browser: Browser) -> None:
    browser.open("compare.html")
    assert browser.texts(".tag") == ["3dgs-query, seed 0", "ligs-query, seed 0"]
    assert all("instance" in source for source in _sources(browser))
    browser.driver.set_script_timeout(5)
    assert _loaded(browser)
    _pick(browser, "right")("ground truth")
    assert "truth_instance" in _sources(browser)[1]
    _pick(browser, "kind")("render")
    assert ["render" in _sources(browser)[0], "photo" in _sources(browser)[1]] == [True, True]
    _pick(browser, "left")("voxel-vote")
    assert str(browser.one("#image-left").get_attribute("alt")).startswith("voxel-vote: render of view 0")
    browser.all("#views button")[1].click()
    assert all("/40." in source for source in _sources(browser))
    assert browser.all("#views button")[1].get_attribute("aria-pressed") == "true"


def test_the_edge_moves_by_keys_and_by_pointer(browser: Browser) -> None:
    browser.open("compare.html")

    def edge() -> float:
        script = "const a = id => document.getElementById(id).getBoundingClientRect();"
        return float(browser.run(f"{script} return (a('edge').left + 1 - a('stage').left) / a('stage').width"))

    slider = browser.one("#split")
    assert edge() == pytest.approx(0.5, abs=0.01)
    browser.run("arguments[0].focus()", slider)
    slider.send_keys(Keys.ARROW_LEFT * 10)
    assert edge() == pytest.approx(0.4, abs=0.01)
    slider.send_keys(Keys.END)
    assert edge() == pytest.approx(1.0, abs=0.01)
    width = slider.size["width"]
    move = ActionChains(browser.driver).move_to_element_with_offset(slider, width // 4, 0)
    move.click_and_hold().move_by_offset(-width // 2, 0).release().perform()
    assert edge() == pytest.approx(0.25, abs=0.03)
    clip = browser.run("return getComputedStyle(document.getElementById('image-left')).clipPath")
    assert clip.startswith("inset(0")


def test_a_comparison_has_an_address(browser: Browser) -> None:
    browser.open("compare.html")
    _pick(browser, "left")("voxel-vote")
    _pick(browser, "kind")("error")
    browser.all("#views button")[1].click()
    before, address = _sources(browser), browser.driver.current_url
    browser.open("compare.html#" + address.partition("#")[2])
    assert _sources(browser) == before


def test_the_gallery_shows_the_worst_first_and_filters(browser: Browser) -> None:
    browser.open("instances.html")
    visible = "#gallery li:not([hidden])"
    assert browser.one("#gallery-count").text == "3 of 9 instances"
    Select(browser.one("[data-by='method']")).select_by_visible_text("all")
    damages = [float(str(item.get_attribute("data-damage"))) for item in browser.all(visible)]
    assert damages == sorted(damages, reverse=True)
    assert len(damages) == 9
    Select(browser.one("[data-by='verdict']")).select_by_visible_text("split")
    assert {item.get_attribute("data-verdict") for item in browser.all(visible)} == {"split"}
    assert browser.one("#gallery-count").text == "3 of 9 instances"
    image = browser.one(f"{visible} img")
    browser.run("arguments[0].scrollIntoView()", image)
    assert str(image.get_attribute("alt")).startswith("photo of chair")


def test_without_javascript_all_tables_are_there(browser: Browser) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(BOARD)
        captions = browser.texts("#scenes figure.table .caption")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(captions) > 5
