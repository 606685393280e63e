"""The docs' pictures: contours where the masks are, pages with a drawn viewer, small files, phantoms alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.pages.report import write_report
from tests.browser.conftest import CHROMIUM, DRIVER
from tests.conftest import ROOT
from tests.pages.evaluations import make_run
from tools import pictures

IMAGES = ROOT / "docs" / "images"
PHOTOGRAPHS = {
    "report.png": pictures.REPORT_PX,
    "predictions.png": pictures.PREDICTIONS_PX,
}


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)


def share_of(picture: np.ndarray[Any, Any], color: str) -> float:
    """Share of a picture's pixels that have a color, but for a little."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return float((np.abs(picture - wanted).max(axis=2) < 24).mean())


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = make_run(tmp_path / "run", 0)
    monkeypatch.setattr(pictures, "COUNT", 3)
    return run


def test_slices_have_both_contours(evaluation: Path, tmp_path: Path) -> None:
    pictures.draw_slices(evaluation, tmp_path / "slices.png")
    drawn = pixels(tmp_path / "slices.png")
    assert drawn.shape[1] == 1600
    slices = drawn[:-60]  # without the legend
    assert share_of(slices, pictures.PREDICTION) > 0.001
    assert share_of(slices, pictures.TRUTH) > 0.001


def test_too_few_patients_are_refused(evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "COUNT", 9)
    with pytest.raises(PipelineError, match=r"patients with a DSC \(expected at least 9\)\. Run: make demo"):
        pictures.draw_slices(evaluation, tmp_path / "slices.png")
    assert not (tmp_path / "slices.png").exists()


def test_grays_stay_gray_and_thin_colored_lines_keep_their_color(tmp_path: Path) -> None:
    picture = np.repeat(np.tile(np.arange(256), (256, 1))[..., None], 3, axis=2)
    picture[100] = (230, 159, 0)
    pictures.write_png(Image.fromarray(picture.astype(np.uint8)), tmp_path / "picture.png")
    found = pixels(tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").mode == "P"
    assert np.abs(found - picture).max() <= 4
    assert found[0, 255].tolist() == [255, 255, 255]  # paper stays white
    gray = np.delete(found, 100, axis=0)
    assert np.ptp(gray, axis=2).max() == 0


def test_a_picture_that_is_too_large_is_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    with pytest.raises(PipelineError, match=r"bytes \(expected at most 250000\)"):
        pictures.write_png(noise, tmp_path / "noise.png")
    assert not (tmp_path / "noise.png").exists()


def test_without_the_demo_nothing_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"results: does not exist\. Run: make demo"):
        pictures.main(["--demo", str(tmp_path), "--out", str(tmp_path / "images")])
    assert not (tmp_path / "images").exists()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")
def test_a_page_is_shown_with_its_viewer(evaluation: Path, tmp_path: Path) -> None:
    page, _ = write_report([evaluation])
    target = tmp_path / "report.png"
    pictures.photograph(page, target, (700, 1000), script=pictures.SHOW_REPORT)
    drawn = pixels(target)
    assert drawn.shape[1] == 700 * pictures.SCALE
    assert drawn.shape[0] <= 1000 * pictures.SCALE
    assert drawn[:, -8:].mean() > 200  # the page's margin
    # The canvas, black while nothing is drawn, fills the lower left; its caption ends the picture.
    canvas = drawn[-400:-100, 60:400]
    assert len(np.unique(canvas.reshape(-1, 3), axis=0)) > 20


def test_without_a_browser_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PipelineError, match="apt-get install chromium chromium-driver"):
        pictures.open_browser((100, 100))


@pytest.mark.parametrize("name", ["slices.png", *PHOTOGRAPHS])
def test_committed_pictures_are_small_and_not_empty(name: str) -> None:
    path = IMAGES / name
    assert path.stat().st_size <= pictures.MAX_BYTES
    with Image.open(path) as picture:
        assert set(picture.info) <= {"transparency"}  # no metadata
        size = picture.size
    if name in PHOTOGRAPHS:
        width, height = (round(side * pictures.SCALE) for side in PHOTOGRAPHS[name])
        assert size[0] == width
        assert height / 2 < size[1] < height  # to the viewer's end, which the window shows
    assert share_of(pixels(path), pictures.PREDICTION) > 0.0002


@pytest.mark.parametrize("name", ["pipeline.svg", "method.svg"])
def test_a_diagram_needs_no_other_file(name: str) -> None:
    text = (IMAGES / name).read_text()
    root = ElementTree.fromstring(text)
    ground = next(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert ground.get("fill", "").startswith("#f")  # its own ground: readable on dark pages as well
    assert re.findall(r"(?:href|src|@import)\b", text) == []
    assert set(re.findall(r"https?://[^\s\"]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_chart_of_two_sigmoids_is_drawn_anew_with_the_same_bytes(tmp_path: Path) -> None:
    pictures.draw_sigmoids(tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_bytes() == (IMAGES / "two-sigmoids.svg").read_bytes()


def test_every_picture_of_pixels_is_of_this_tool() -> None:
    """No picture of a patient gets among them unseen."""
    assert {path.name for path in IMAGES.iterdir() if path.suffix != ".svg"} == {"slices.png", *PHOTOGRAPHS}
