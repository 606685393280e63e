"""The report in a real browser: it loads without error or request, and every control does what it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.pages.report import write_report
from tests.pages.evaluations import DEPTH, HOSTILE, WORST_FIRST, hostile_page, make_runs

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def written(runs: list[Path]) -> Path:
    return write_report(runs)[0]


@pytest.fixture(scope="module")
def hostile(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_page(runs[0], tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """Opens a page in headless Chromium at a window's width and a colour scheme."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    opened = []

    def open_page(page: Path, width: int = 1300, scheme: str = "light") -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
            *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
            f"window-size={width},900",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        opened.append(driver)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        return driver

    yield open_page
    for driver in opened:
        driver.quit()


def drawn(driver: Any, before: str | None = None) -> str:
    """What the viewer has drawn last: patient, slice, channel, number of the drawing; waits for another than before."""
    from selenium.webdriver.support.ui import WebDriverWait

    def last(driver: Any) -> str | None:
        found = driver.find_element("id", "viewer").get_attribute("data-drawn")
        return found if found != before else None

    return str(WebDriverWait(driver, 30).until(last))


def pixels(driver: Any, index: int = 0) -> str:
    return str(driver.execute_script(f"return document.getElementById('canvas-{index}').toDataURL()"))


def test_browser_loads_without_error_or_request(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    assert drawn(driver).startswith("7 ")
    options = driver.find_elements("css selector", "#patient option")
    assert tuple(option.get_attribute("value") for option in options) == WORST_FIRST
    assert driver.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [a for a in addresses if not a.startswith("data:")] == [written.as_uri()]


def test_browser_turns_slices_on_keys_drag_and_wheel(browser: Callable[..., Any], written: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = browser(written)
    state = drawn(driver)
    viewer = driver.find_element("id", "viewer")
    shown = pixels(driver)
    for key, expected in (
        (Keys.HOME, 0),
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_UP, 2),
        (Keys.ARROW_LEFT, 1),
        (Keys.END, DEPTH - 1),
        (Keys.ARROW_DOWN, DEPTH - 2),
        (Keys.PAGE_DOWN, 0),
    ):
        viewer.send_keys(key)
        state = drawn(driver, state)
        assert state.split()[1] == str(expected), key
        assert driver.find_element("id", "where").text == f"slice {expected + 1} of {DEPTH}"
    assert pixels(driver) != shown
    ActionChains(driver).click_and_hold(viewer).move_by_offset(24, 0).release().perform()
    assert drawn(driver).split()[1] == "3"
    before = drawn(driver)
    driver.execute_script(
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -100, cancelable: true}))", viewer
    )
    assert drawn(driver, before).split()[1] == "4"


def test_browser_toggles_layers_channels_and_patients(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    state = drawn(driver)
    viewer = driver.find_element("id", "viewer")
    for key, box in (("p", "prediction"), ("t", "truth"), ("e", "errors")):
        before = pixels(driver)
        assert driver.find_element("id", box).is_selected()
        viewer.send_keys(key)
        state = drawn(driver, state)
        assert not driver.find_element("id", box).is_selected()
        assert pixels(driver) != before, box
    before = [pixels(driver, index) for index in range(2)]
    driver.find_element("id", "map").click()
    state = drawn(driver, state)
    assert pixels(driver, 0) == before[0]  # the first run has no uncertainty
    assert pixels(driver, 1) != before[1]
    shown = pixels(driver)
    viewer.send_keys("c")
    state = drawn(driver, state)
    assert state.split()[2] == "2"
    assert pixels(driver) != shown
    for press, expected in (("n", "12"), ("n", "3"), ("b", "12")):
        viewer.send_keys(press)
        state = drawn(driver, state)
        assert state.split()[0] == expected
    driver.find_element("id", "before").click()
    state = drawn(driver, state)
    assert state.split()[0] == "7"
    assert not driver.find_element("id", "before").is_enabled()
    driver.find_element("css selector", "button[data-patient='9']").click()
    state = drawn(driver, state)
    assert state.split()[0] == driver.find_element("id", "patient").get_attribute("value") == "9"
    assert driver.find_element("id", "dsc-0").text == "not defined"
    assert not driver.find_element("id", "after").is_enabled()
    assert driver.get_log("browser") == []


def test_browser_says_where_a_mask_is_missing(browser: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    (second / "masks" / "7_mask.nii.gz").unlink()
    write_report([first, second])
    assert "second: no mask of 7" in (first / "report.html").read_text()
    driver = browser(first / "report.html")
    drawn(driver)
    assert driver.find_element("id", "dsc-1").text == "1.0000, no mask in its folder"
    assert driver.find_element("id", "canvas-1").is_displayed()


def test_browser_slider_and_keys_away_from_the_picture(browser: Callable[..., Any], written: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = browser(written)
    state = drawn(driver)
    slider = driver.find_element("id", "slice")
    slider.send_keys(Keys.HOME)
    state = drawn(driver, state)
    assert state.split()[1] == "0"
    slider.send_keys(Keys.ARROW_RIGHT)  # by one, not by the slider and the page both
    state = drawn(driver, state)
    assert state.split()[1] == "1"
    driver.find_element("id", "truth").send_keys("p")
    state = drawn(driver, state)
    assert not driver.find_element("id", "prediction").is_selected()
    driver.execute_script("document.activeElement.blur()")
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert drawn(driver, state).split()[1] == "2"


def test_browser_sorts_tables(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)

    def column(place: int) -> list[str]:
        cells = driver.find_elements("css selector", f"#patients tbody td:nth-child({place})")
        return [cell.get_attribute("data-value") for cell in cells]

    head = driver.find_elements("css selector", "#patients th[aria-sort]")[1]
    for order in ("ascending", "descending"):
        head.find_element("tag name", "button").click()
        assert head.get_attribute("aria-sort") == order
        voxels = [int(value) for value in column(2)]
        assert voxels == sorted(voxels, reverse=order == "descending")
    names = driver.find_elements("css selector", "#patients th[aria-sort]")[0]
    names.find_element("tag name", "button").click()
    assert column(1) == ["3", "7", "9", "12"]
    assert head.get_attribute("aria-sort") == "none"
    for _ in range(2):  # without a DSC: last, up and down
        driver.find_elements("css selector", "#patients th[aria-sort]")[2].find_element("tag name", "button").click()
        assert column(1)[-1] == "9"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_browser_page_fits_the_window(browser: Callable[..., Any], written: Path, width: int, scheme: str) -> None:
    driver = browser(written, width, scheme)
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    colours = driver.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g)[0])"
    )
    ink, paper = map(int, colours)
    dark, bright = (ink, paper) if scheme == "light" else (paper, ink)
    assert dark < 64
    assert bright > 190
    # Charts take the page's colour.
    fill = driver.execute_script("return getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert int(re.findall(r"\d+", fill)[0]) == ink


def test_browser_shows_hostile_names_as_text(browser: Callable[..., Any], hostile: Path) -> None:
    driver = browser(hostile)
    drawn(driver)
    assert driver.execute_script("return window.hacked") is None
    assert driver.get_log("browser") == []
    assert HOSTILE in driver.find_element("id", "runs").text
    patient = HOSTILE.replace("/", "\u2215")
    assert patient in driver.find_element("id", "patients").text
    assert patient in driver.find_element("id", "patient").text


def test_browser_long_names_do_not_overflow(browser: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    name = "P" * 100
    for path in run.glob("*/7_*"):
        path.rename(path.with_name(name + path.name[1:]))
    (run / "scores.csv").write_text((run / "scores.csv").read_text().replace("\n7,", f"\n{name},"))
    write_report([run], names=["R" * 100])
    driver = browser(run / "report.html", 360)
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360


def test_browser_prints_tables_and_examples(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not driver.find_element("id", "look").is_displayed()
    assert driver.find_element("id", "runs").is_displayed()
    assert len(driver.find_elements("css selector", ".examples figure")) == 3
    printed = driver.execute_cdp_cmd("Page.printToPDF", {})
    assert printed["data"].startswith("JVBERi")  # %PDF
