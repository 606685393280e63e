"""The page of predictions in a real browser causes no error and no request, and uses the report's viewer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.pages.predictions import write_predictions_page
from tests.browser.conftest import drawn, pixels
from tests.pages.evaluations import HOSTILE, make_predictions


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_predictions_page(*make_predictions(tmp_path_factory.mktemp("predictions")))


def test_browser_loads_predictions_without_error_or_request(browser: Callable[..., Any], written: Path) -> None:
    driver = browser(written)
    state = drawn(driver)
    assert state.startswith("b ")
    assert driver.find_element("id", "caption-0").text == "1.23 ml in 12 of 30 slices"
    assert not driver.find_element("id", "channel").is_displayed()  # only FLAIR
    for key in ("p", "u"):
        before = pixels(driver)
        driver.find_element("id", "viewer").send_keys(key)
        state = drawn(driver, state)
        assert pixels(driver) != before, key
    driver.find_element("id", "viewer").send_keys("te")  # no such layers
    driver.find_element("css selector", "button[data-patient='a']").click()
    assert drawn(driver, state).startswith("a ")
    assert driver.get_log("browser") == []
    assert driver.execute_script("return window.hacked") is None
    assert HOSTILE.replace("/", "-") in driver.find_element("id", "patients").text
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [a for a in addresses if not a.startswith("data:")] == [written.as_uri()]


def test_browser_keeps_the_shape_of_voxels(browser: Callable[..., Any], written: Path) -> None:
    """The volume has 40 rows and 36 columns, and rows are twice as far apart as columns."""
    driver = browser(written)
    drawn(driver)
    width, height = driver.execute_script(
        "const {width, height} = document.getElementById('canvas-0'); return [width, height]"
    )
    assert height / width == pytest.approx(2 * 40 / 36, rel=0.01)
    size = driver.find_element("id", "canvas-0").size
    assert size["height"] / size["width"] == pytest.approx(2 * 40 / 36, rel=0.02)
    assert size["height"] <= 900


@pytest.mark.parametrize("width", [390, 1400])
def test_browser_predictions_fit_the_window(browser: Callable[..., Any], written: Path, width: int) -> None:
    driver = browser(written, width, "dark")
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
