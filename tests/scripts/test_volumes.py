"""Volumes that the networks cannot read are refused in a line, by what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.scripts.volumes import check_image, read_voxels, voxel_fault


@pytest.mark.parametrize("name", ["a.nii.gz", "A.NII.GZ"])
def test_a_damaged_file_is_refused_however_its_name_is_written(tmp_path: Path, name: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (32, 32, 16), dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "good.nii.gz")
    content = bytearray((tmp_path / "good.nii.gz").read_bytes())
    path = tmp_path / name
    path.write_bytes(content)
    assert np.array_equal(read_voxels(path), voxels)
    content[-8] ^= 255  # of the checksum, behind the last voxel
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=f"{name}: damaged NIfTI file"):
        read_voxels(path)


@pytest.mark.parametrize(
    ("more", "fits"),
    [((), True), ((1,), True), ((3,), True), ((1, 3), True), ((1, 1), True), ((2,), False), ((3, 1), False)],
)
def test_an_image_has_one_channel_or_three(tmp_path: Path, more: tuple[int, ...], fits: bool) -> None:
    """ITK writes channels as a fifth dimension, behind time."""
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, *more), np.uint8), np.eye(4)), path)
    if fits:
        check_image(path)
        return
    with pytest.raises(PipelineError, match=r"expected .H, W, D. FLAIR, or"):
        check_image(path)


def test_what_is_below_zero_throughout_is_reported_how_to_go_on() -> None:
    assert voxel_fault(np.array([-1000, -3])).endswith("Add an offset, so that air is 0")
    assert voxel_fault(np.array([0, 0])).endswith("Check the volume")
    assert not voxel_fault(np.array([-1000, 3]))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_without_orientation_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), None), path)
    with pytest.raises(PipelineError, match=r"the header has no orientation .* pipeline\.segment"):
        read_voxels(path)
