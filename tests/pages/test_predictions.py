"""The page of predictions lists what was found, shows each volume, and needs no other file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_label
from pipeline.pages.predictions import write_predictions_page
from tests.pages.evaluations import HOSTILE, data_of, make_predictions, slices_of


@pytest.fixture
def predictions(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    return make_predictions(tmp_path)


def test_page_says_what_was_found(predictions: tuple[Path, dict[str, Path]]) -> None:
    page = write_predictions_page(*predictions)
    assert page == predictions[0] / "predictions.html"
    text = re.sub(r"\s+", " ", page.read_text())
    assert "0.812, low" in text
    assert "low: under 0.89" in text
    for fact in ("1.23", "12 of 30", "not known", "-3.5, 4.0, 5.5", "ab" * 32, "cd" * 32, "torch 2.13.0"):
        assert fact in text
    assert "not predicted: broken.nii.gz: no NIfTI" in text
    assert text.count("Research only") >= 2
    for word in ('id="truth"', 'id="errors"', "DSC 0", ">Worse<"):
        assert word not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "Content-Security-Policy" in text


def test_masks_in_any_orientation_lie_on_their_images(predictions: tuple[Path, dict[str, Path]]) -> None:
    """Masks and images are shown with rows to the back and columns to the patient's left."""
    data = data_of(write_predictions_page(*predictions))
    assert data["order"] == ["b", "a", HOSTILE.replace("/", "-")]  # lowest agreement first, unknown agreement last
    view = data["patients"]["b"]
    shown = slices_of(view, view["masks"]["prediction"]) > 0
    mask = load_label(predictions[0] / "b_mask.nii.gz")
    assert shown.sum() == mask.sum() > 0
    gray = slices_of(view, view["channels"][1])
    assert gray[shown].mean() > 1.5 * gray[~shown].mean()
    assert view["truth"] is None
    assert view["aspect"] == pytest.approx(2.0)
    assert view["channels"][0] == view["channels"][2] == 1  # only FLAIR
    assert list(view["maps"]) == ["prediction"]
    assert view["captions"] == {"prediction": "1.23 ml in 12 of 30 slices"}
    other = data["patients"]["a"]
    assert (other["captions"], other["maps"]) == ({"prediction": "no lesion found"}, {})


def test_only_some_have_slices_where_there_are_many(predictions: tuple[Path, dict[str, Path]]) -> None:
    page = write_predictions_page(*predictions, viewers=1)
    assert data_of(page)["order"] == ["b"]
    assert "slices of 1 of 3 volumes: those whose networks agree least" in page.read_text()
    assert page.read_text().count("<tr data-patient=") == 3


def test_hostile_names_are_escaped(predictions: tuple[Path, dict[str, Path]]) -> None:
    text = write_predictions_page(*predictions).read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_failures_that_are_many_are_counted(predictions: tuple[Path, dict[str, Path]]) -> None:
    path = predictions[0] / "predictions.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "failed": {f"{n}.nii": "damaged" for n in range(9)}}))
    assert "not predicted: 6 more" in write_predictions_page(*predictions).read_text()


def test_a_mask_that_is_gone_is_reported(predictions: tuple[Path, dict[str, Path]]) -> None:
    (predictions[0] / "b_mask.nii.gz").unlink()
    with pytest.raises(PipelineError, match="b_mask"):
        write_predictions_page(*predictions)
    assert not (predictions[0] / "predictions.html").exists()
