"""The report in a real browser loads without error or request, and every control works."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.pages.report import write_report
from tests.browser.conftest import drawn, pixels
from tests.pages.evaluations import (
    DEPTH,
    HOSTILE,
    WORST_FIRST,
    hostile_page,
    make_run,
    make_runs,
    many_patients,
    trained_on,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def written(runs: list[Path]) -> Path:
    return write_report(runs)[0]


@pytest.fixture(scope="module")
def hostile(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_page(runs[0], tmp_path_factory.mktemp("hostile") / "run")


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


def test_browser_turns_no_slices_without_the_first_button(browser: Callable[..., Any], written: Path) -> None:
    """A context menu swallows the event that ends a drag, and so may a window that opens meanwhile."""
    driver = browser(written)
    state = drawn(driver)
    script = """
        const viewer = document.getElementById("viewer");
        for (const [type, button, buttons, clientX] of arguments[0])
          viewer.dispatchEvent(new PointerEvent(type, {pointerType: "touch", button, buttons, clientX}))"""
    for button, buttons in ((2, 2), (1, 4)):
        driver.execute_script(script, [("pointerdown", button, buttons, 0), ("pointermove", -1, 1, 80)])
    driver.execute_script(script, [("pointerdown", 0, 1, 0), ("pointermove", -1, 0, 80), ("pointermove", -1, 1, 80)])
    driver.execute_script(script, [("pointerdown", 0, 1, 0), ("pointermove", -1, 1, 8), ("pointerup", 0, 0, 8)])
    assert drawn(driver, state).split()[1] == str(int(state.split()[1]) + 1)  # the last alone


def test_browser_outlines_the_truth_with_dashes_over_the_prediction(browser: Callable[..., Any], written: Path) -> None:
    """The second run's prediction is the truth."""
    driver = browser(written)
    state = drawn(driver)
    script = """
        const canvas = document.getElementById("canvas-1");
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const count = (color) => data.reduce((sum, _, at) => sum
          + (at % 4 === 0 && color.every((value, part) => Math.abs(data[at + part] - value) < 20)), 0);
        return [[230, 159, 0], [86, 180, 233]].map(count)"""
    solid, dashed = driver.execute_script(script)
    assert 0.4 < dashed / (solid + dashed) < 0.7
    viewer = driver.find_element("id", "viewer")
    viewer.send_keys("t")
    state = drawn(driver, state)
    whole, none = driver.execute_script(script)
    assert (whole, none) == (pytest.approx(solid + dashed, rel=0.1), 0)
    viewer.send_keys("tp")
    drawn(driver, state)
    assert driver.execute_script(script) == [0, pytest.approx(dashed, rel=0.1)]


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
    assert driver.find_element("id", "caption-0").text == "DSC not defined"
    assert not driver.find_element("id", "after").is_enabled()
    assert driver.get_log("browser") == []


def test_browser_says_where_a_mask_is_missing(browser: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    (second / "masks" / "7_mask.nii.gz").unlink()
    write_report([first, second])
    assert "second: no mask in masks/: 7" in (first / "report.html").read_text()
    driver = browser(first / "report.html")
    drawn(driver)
    assert driver.find_element("id", "caption-1").text == "DSC 1.0000, no mask in its folder"
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
    slider.send_keys(Keys.ARROW_RIGHT)  # one step only, although slider and page both see the key
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

    *_, head = driver.find_elements("css selector", "#patients th[aria-sort]")
    for order in ("ascending", "descending"):
        head.find_element("tag name", "button").click()
        assert head.get_attribute("aria-sort") == order
        voxels = [int(value) for value in column(8)]
        assert voxels == sorted(voxels, reverse=order == "descending")
    names = driver.find_elements("css selector", "#patients th[aria-sort]")[0]
    names.find_element("tag name", "button").click()
    assert column(1) == ["3", "7", "9", "12"]
    assert head.get_attribute("aria-sort") == "none"
    for _ in range(2):  # a patient without a DSC is last in both orders
        driver.find_elements("css selector", "#patients th[aria-sort]")[1].find_element("tag name", "button").click()
        assert column(1)[-1] == "9"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_browser_page_fits_the_window(browser: Callable[..., Any], written: Path, width: int, scheme: str) -> None:
    driver = browser(written, width, scheme)
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    colors = driver.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g)[0])"
    )
    ink, paper = map(int, colors)
    dark, bright = (ink, paper) if scheme == "light" else (paper, ink)
    assert dark < 64
    assert bright > 190
    # Charts use the page's text color.
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


@pytest.fixture(scope="module")
def large(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four runs of 110 patients, of whom 100 were trained on."""
    root = tmp_path_factory.mktemp("large")
    names = ("basic_unet", "attention_unet", "basic_unet_plusplus", "three_averaged_flips")
    four = [many_patients(runs[0], root / name, 110) for name in names]
    ids = [f"TEST_CS_{number:04d}_1996" for number in range(110)]
    for run in four:
        trained_on(run, *(patient for number, patient in enumerate(ids) if number % 11))
    return write_report(four)[0]


def box(driver: Any, selector: str) -> dict[str, float]:
    found = driver.execute_script(
        "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
    )
    return {str(side): float(value) for side, value in found.items()}


def test_browser_shows_four_runs_on_a_telephone_and_on_a_desk(browser: Callable[..., Any], large: Path) -> None:
    driver = browser(large, 390)
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    assert box(driver, "#runs tbody td")["right"] <= 390  # mean DSC
    assert box(driver, "#patients tbody td:nth-child(4)")["right"] <= 390  # DSC of three runs
    for chart in range(1, 3):
        assert box(driver, f".charts figure:nth-child({chart}) svg")["right"] <= 390
    for text in ("p.soft", "figcaption"):
        assert box(driver, text)["right"] <= 390
    wide = browser(large, 1400)
    drawn(wide)
    assert box(wide, "#canvas-3")["top"] == box(wide, "#canvas-0")["top"]
    for table in ("#runs", "#patients"):
        assert box(wide, table)["right"] <= box(wide, "body")["right"]
        assert (
            wide.execute_script(
                f"const e = document.querySelector('{table}').parentNode; return e.scrollWidth - e.clientWidth"
            )
            <= 0
        )


def test_browser_breaks_ids_at_their_separators_alone(browser: Callable[..., Any], large: Path) -> None:
    driver = browser(large, 390)
    drawn(driver)
    script = """
        const range = document.createRange(), parts = [];
        const walker = document.createTreeWalker(document.querySelector("#patients tbody td"), NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) { range.selectNodeContents(walker.currentNode);
          const text = walker.currentNode.textContent.trim();
          if (text) parts.push([text, range.getClientRects().length]); }
        return parts"""
    parts = driver.execute_script(script)
    assert "".join(text for text, _ in parts).startswith("TEST_CS_")
    assert {lines for _, lines in parts} == {1}


def test_browser_folds_patients_that_were_trained_on(browser: Callable[..., Any], large: Path) -> None:
    driver = browser(large, 1400)
    drawn(driver)
    assert len(driver.find_elements("css selector", "#patients tbody tr")) == 10
    folded = driver.find_element("id", "trained-on")
    assert not folded.is_displayed()
    driver.find_element("css selector", "details.more > summary").click()
    assert folded.is_displayed()
    assert box(driver, ".tall")["height"] <= 700  # a hundred rows scroll inside their frame
    for chart in driver.find_elements("css selector", ".charts svg"):
        assert chart.size["height"] < 600


def test_browser_changes_gray_values_and_zoom(browser: Callable[..., Any], written: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = browser(written)
    state = drawn(driver)
    driver.find_element("css selector", "#tools > summary").click()
    viewer, canvas = (driver.find_element("id", name) for name in ("viewer", "canvas-0"))

    def value(name: str) -> float:
        return float(driver.find_element("id", name).get_property("value"))

    begin, window, level = pixels(driver), value("window"), value("level")
    for name in ("window", "level", "zoom"):
        before = pixels(driver)
        driver.find_element("id", name).send_keys(Keys.ARROW_RIGHT * 4)
        state = drawn(driver, state)
        assert pixels(driver) != before, name
    assert (value("window"), value("zoom")) == (window + 4, 2.0)
    driver.find_element("id", "reset").click()
    state = drawn(driver, state)
    assert (value("window"), value("level"), value("zoom")) == (window, level, 1)
    assert pixels(driver) == begin
    slice_shown = state.split()[1]
    ActionChains(driver).key_down(Keys.SHIFT).click_and_hold(canvas).move_by_offset(40, 0).release().key_up(
        Keys.SHIFT
    ).perform()
    state = drawn(driver, state)
    assert value("window") == pytest.approx(window + 20, abs=1)
    viewer.send_keys("+")
    state = drawn(driver, state)
    assert value("zoom") == pytest.approx(1.25)
    viewer.send_keys("dd")  # dragging moves the picture
    before = pixels(driver)
    ActionChains(driver).click_and_hold(canvas).move_by_offset(15, 10).release().perform()
    drawn(driver, state)
    assert pixels(driver) != before
    viewer.send_keys("0")
    assert drawn(driver).split()[1] == slice_shown  # none of this changed the slice
    viewer.send_keys("n")
    drawn(driver)
    assert value("zoom") == 1
    assert driver.get_log("browser") == []


def test_browser_spreads_gray_values_over_the_head(browser: Callable[..., Any], tmp_path: Path) -> None:
    """The image has values from 60 to 160, which are shown from black to white."""
    driver = browser(write_report([make_run(tmp_path / "run", 0)])[0])
    drawn(driver)
    for name in ("prediction", "truth", "errors"):
        driver.find_element("id", name).click()
    drawn(driver)
    script = """
        const canvas = document.getElementById("canvas-0"), context = canvas.getContext("2d");
        const {data} = context.getImageData(0, canvas.height / 3, canvas.width, canvas.height / 3);
        const gray = [...data].filter((_, index) => index % 4 === 0);
        return [Math.min(...gray.slice(0, 60000)), Math.max(...gray.slice(0, 60000))]"""
    low, high = driver.execute_script(script)
    assert low < 40
    assert high > 215
