"""Pictures of slices with lesion are drawn once, and removed when their files change."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import nifti_bytes, save_map, save_mask
from pipeline.pages.figures import DSC_FIGURE, GAP, Case, draw_cases, remove_outdated
from pipeline.scripts.files import write_durably


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
    assert draw_cases([case], out) == 1  # a picture is missing
    empty = np.zeros((40, 32, 6), dtype=np.uint8)
    save_mask(empty, case.mask, case.image)
    assert draw_cases([case], out) == 1  # the mask has changed
    assert names(out) == ["slice_003.png", "slice_004.png"]


def test_uncertainty_stands_beside(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    map_file = case.mask.with_name("A_uncertainty.nii.gz")
    assert draw_cases([Case("A", case.image, case.mask, None, map_file)], out) == 1
    assert names(out) == ["slice_004.png", "slice_005.png"]
    picture = np.asarray(Image.open(out / "A" / "slice_004.png")).astype(int)
    assert picture.shape == (80, 64 + GAP + 64, 3)
    left, gap, right = np.split(picture, [64, 64 + GAP], axis=1)
    assert not gap.any()
    assert draw_cases([Case("A", case.image, case.mask)], tmp_path / "alone") == 1
    assert np.array_equal(left, np.asarray(Image.open(tmp_path / "alone" / "A" / "slice_004.png")))
    assert left[:, -1].any()
    assert right[:, 0].any()
    assert (right[25:35, 22:42, 0] - right[25:35, 22:42, 1] > 40).mean() > 0.9


def test_a_volume_with_nothing_has_one_picture(case: Case, tmp_path: Path) -> None:
    save_mask(np.zeros((40, 32, 6), dtype=np.uint8), case.mask, case.image)
    assert draw_cases([Case("A", case.image, case.mask)], tmp_path / "figures") == 1
    assert names(tmp_path / "figures") == ["slice_004.png"]


def test_several_are_drawn_at_once_and_faults_are_reported(case: Case, tmp_path: Path) -> None:
    others = [Case(name, case.image, case.mask, case.label) for name in "BC"]
    assert draw_cases([case, *others], tmp_path / "figures") == 3
    case.label.write_bytes(b"no NIfTI") if case.label else None
    with pytest.raises(PipelineError, match=r"A_label\.nii\.gz: no readable NIfTI"):
        draw_cases([case, *others], tmp_path / "figures")
    case.mask.unlink()
    with pytest.raises(PipelineError, match=r"A_mask\.nii\.gz: cannot be read"):
        draw_cases([case], tmp_path / "figures")


def test_pictures_of_other_files_and_of_no_case_are_removed(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    remove_outdated([case], out)  # no folder, nothing to remove
    gone, kept = Case("B", case.image, case.mask, case.label), Case("C", case.image, case.mask)
    draw_cases([case, gone], out)
    draw_cases([kept], out, all_slices=True)
    (out / DSC_FIGURE).write_bytes(b"of earlier scores")
    (out / "own").mkdir()
    remove_outdated([case, kept], out)
    assert sorted(path.name for path in out.iterdir()) == ["A", "A.gif", "C", "C.gif", "own"]
    save_mask(np.zeros((40, 32, 6), dtype=np.uint8), case.mask, case.image)
    remove_outdated([case, kept], out)
    assert [path.name for path in out.iterdir()] == ["own"]


def test_pictures_keep_the_shape_of_voxels_that_are_no_squares(case: Case, tmp_path: Path) -> None:
    """The same volume, with rows twice as far apart as columns."""
    turned = np.array([[0.0, -0.9, 0, 0], [-1.8, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]])
    for path in (case.image, case.mask, case.label, case.mask.with_name("A_uncertainty.nii.gz")):
        assert path
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), turned)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
    draw_cases([case], tmp_path / "figures")
    assert Image.open(tmp_path / "figures" / "A" / "slice_003.png").size == (64, 160)
