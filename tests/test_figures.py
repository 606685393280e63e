"""Pictures: contours where the masks end, files for slices with something in them, nothing drawn twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.figures import Case, draw_cases
from pipeline.overlays import (
    GREEN,
    RED,
    contour_frame,
    gif_bytes,
    heat_frame,
    slices_of_interest,
)
from pipeline.plots import dsc_png
from pipeline.scripts.files import write_durably
from pipeline.volumes import nifti_bytes, save_map, save_mask


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((40, 32), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def test_contour_follows_the_edge_of_the_mask() -> None:
    grey = np.full((40, 32), 100, dtype=np.uint8)
    frame = contour_frame(grey, square(slice(10, 20), slice(8, 24)), None).astype(int)
    assert frame.shape == (80, 64, 3)
    reddish = frame[..., 0] - frame[..., 1] > 40
    rows, columns = np.nonzero(reddish)
    # The outline runs through the middle between mask and air: screen pixels 19 to 20 and 39 to 40, 15 to 16, 47 to 48.
    assert (rows.min(), rows.max()) in {(19, 40), (18, 40), (19, 41), (18, 41)}
    assert (columns.min(), columns.max()) in {(15, 48), (14, 48), (15, 49), (14, 49)}
    assert not reddish[25:35, 22:42].any()  # the lesion itself stays as it is
    assert (frame[25:35, 22:42] == 100).all()


def test_prediction_is_red_truth_green_both_yellow() -> None:
    grey = np.zeros((40, 32), dtype=np.uint8)
    one, other = square(slice(10, 20), slice(8, 24)), square(slice(24, 30), slice(8, 24))
    frame = contour_frame(grey, one, other)
    assert set(map(tuple, frame[18:22, 20:40].reshape(-1, 3)[:, 1:] <= RED[1])) == {(True, True)}
    assert frame[18:22, 30, 0].max() > 200  # red above
    assert frame[46:50, 30, 1].max() > 180  # green below
    assert frame[46:50, 30, 0].max() == 0
    both = contour_frame(grey, one, one)[18:22, 30].max(axis=0)
    assert both[0] > 200
    assert both[1] > 180
    assert GREEN[0] == 0


def test_a_mask_at_the_border_is_drawn() -> None:
    grey = np.zeros((40, 32), dtype=np.uint8)
    frame = contour_frame(grey, np.ones_like(grey), None)
    assert frame[0, 30, 0] > 60
    assert frame[40, 0, 0] > 60


def test_slices_of_interest_are_those_of_either_mask() -> None:
    volume = np.zeros((4, 4, 6), dtype=np.uint8)
    one, other = volume.copy(), volume.copy()
    one[1, 1, 2] = other[2, 2, 4] = 1
    assert slices_of_interest(one, other) == [2, 4]
    assert slices_of_interest(one, None) == [2]
    assert slices_of_interest(volume) == []


def test_heat_is_drawn_where_the_map_is_not_0() -> None:
    grey = np.full((40, 32), 90, dtype=np.uint8)
    values = np.zeros((40, 32), dtype=np.float32)
    values[10:20, 10:20] = 0.5
    frame = heat_frame(grey, values, 0.5)
    assert (frame[:10] == 90).all()
    assert frame[30, 30, 0] > 200


@pytest.fixture
def case(tmp_path: Path) -> Case:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 32, 6, 3), dtype=np.uint8)
    truth = np.zeros((40, 32, 6), dtype=np.uint8)
    truth[10:20, 8:24, 2:4] = 1
    mask = np.roll(truth, 1, axis=2)
    files = {kind: tmp_path / f"A_{kind}.nii.gz" for kind in ("image", "label", "mask", "uncertainty")}
    write_durably(files["image"], nifti_bytes(image))
    write_durably(files["label"], nifti_bytes(truth))
    save_mask(mask, files["mask"], files["image"])
    save_map((mask * 0.3).astype(np.float32), files["uncertainty"], files["image"])
    return Case("A", files["image"], files["mask"], files["label"])


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "A").glob("*.png"))


def test_pictures_are_drawn_of_slices_with_something_in_them(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert draw_cases([case], out) == 1
    assert names(out) == ["slice_003.png", "slice_004.png", "slice_005.png"]
    assert Image.open(out / "A" / "slice_003.png").size == (64, 80)
    gif = Image.open(out / "A.gif")
    assert gif.n_frames == 3
    assert draw_cases([case], out, all_slices=True) == 1
    assert len(names(out)) == 6


def test_pictures_that_are_there_are_not_drawn_again(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    draw_cases([case], out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert draw_cases([case], out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == stamps
    (out / "A" / "slice_004.png").unlink()
    assert draw_cases([case], out) == 1  # one is missing
    empty = np.zeros((40, 32, 6), dtype=np.uint8)
    save_mask(empty, case.mask, case.image)
    assert draw_cases([case], out) == 1  # the mask is another
    assert names(out) == ["slice_003.png", "slice_004.png"]


def test_uncertainty_stands_beside(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    map_file = case.mask.with_name("A_uncertainty.nii.gz")
    assert draw_cases([Case("A", case.image, case.mask, None, map_file)], out) == 1
    assert names(out) == ["slice_004.png", "slice_005.png"]
    picture = np.asarray(Image.open(out / "A" / "slice_004.png")).astype(int)
    assert picture.shape == (80, 2 * 64 + 4, 3)
    assert (
        picture[25:35, 64 + 4 + 22 : 64 + 4 + 42, 0] - picture[25:35, 64 + 4 + 22 : 64 + 4 + 42, 1] > 40
    ).mean() > 0.9


def test_a_volume_with_nothing_has_one_picture(case: Case, tmp_path: Path) -> None:
    save_mask(np.zeros((40, 32, 6), dtype=np.uint8), case.mask, case.image)
    assert draw_cases([Case("A", case.image, case.mask)], tmp_path / "figures") == 1
    assert names(tmp_path / "figures") == ["slice_004.png"]


def test_several_are_drawn_at_once_and_faults_are_told(case: Case, tmp_path: Path) -> None:
    others = [Case(name, case.image, case.mask, case.label) for name in "BC"]
    assert draw_cases([case, *others], tmp_path / "figures") == 3
    case.label.write_bytes(b"no NIfTI") if case.label else None
    with pytest.raises(PipelineError, match=r"A_label\.nii\.gz: no readable NIfTI"):
        draw_cases([case, *others], tmp_path / "figures")
    case.mask.unlink()
    with pytest.raises(PipelineError, match=r"A_mask\.nii\.gz: cannot be read"):
        draw_cases([case], tmp_path / "figures")


def test_dsc_chart_is_a_picture_that_grows_with_the_patients() -> None:
    import io

    few = Image.open(io.BytesIO(dsc_png({"A": 0.5, "$B_$^": 1.0}, (0.5, 1.0))))
    many = Image.open(io.BytesIO(dsc_png({f"P{n}": n / 60 for n in range(60)}, (0.4, 0.6))))
    assert few.format == "PNG"
    assert many.size[1] > 3 * few.size[1]


def test_gif_keeps_every_frame() -> None:
    import io

    frames = [np.full((8, 8, 3), 40 * n, dtype=np.uint8) for n in range(5)]
    gif = Image.open(io.BytesIO(gif_bytes(frames)))
    assert gif.n_frames == 5
    assert gif.info["loop"] == 0


def test_gif_keeps_the_colours_of_contours() -> None:
    import io

    grey = np.random.default_rng(0).integers(0, 160, (160, 160), dtype=np.uint8)
    mask = np.zeros_like(grey)
    mask[60:70, 60:76] = 1
    for prediction, truth in ((mask, None), (None, mask), (mask, mask)):
        frame = contour_frame(grey, prediction, truth)
        shown = np.asarray(Image.open(io.BytesIO(gif_bytes([frame, frame]))).convert("RGB")).astype(int)
        assert np.abs(shown - frame).max(axis=-1).mean() < 3
        assert np.abs(shown - frame).max() < 70
