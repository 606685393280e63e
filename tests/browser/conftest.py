"""Fixtures that open pages in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """A function that opens a page in headless Chromium, with a width of window and a color scheme."""
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
    """The viewer's last drawing: patient, slice, channel, number. Waits until it differs from ``before``."""
    from selenium.webdriver.support.ui import WebDriverWait

    def last(driver: Any) -> str | None:
        found = driver.find_element("id", "viewer").get_attribute("data-drawn")
        return found if found != before else None

    return str(WebDriverWait(driver, 30).until(last))


def pixels(driver: Any, index: int = 0) -> str:
    return str(driver.execute_script(f"return document.getElementById('canvas-{index}').toDataURL()"))
