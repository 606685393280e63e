"""Masks as DICOM SEG: the marked voxels lie where the lesion is, and refer to the slices of the series."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import RLELossless

from pipeline.errors import PipelineError
from pipeline.imaging.dicom import Series, convert
from pipeline.imaging.dicom_seg import write_segmentation
from tests.imaging.series import PLACES, SAGITTAL, edit, one, write_enhanced, write_series


@pytest.mark.parametrize("affine", [PLACES, SAGITTAL], ids=["axial", "sagittal"])
def test_a_mask_as_dicom_seg_lies_where_the_lesion_is(
    affine: NDArray[np.float64], voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", voxels, affine)
    assert_segmentation_fits(one(tmp_path / "a"), voxels.shape, affine, tmp_path)


def assert_segmentation_fits(
    series: Series, shape: tuple[int, ...], affine: NDArray[np.float64], folder: Path
) -> highdicom.seg.Segmentation:
    """Check that the marked voxels lie where the lesion is."""
    image = nib.load(convert(series, folder / "out"))
    lesion = np.zeros(shape, np.uint8)
    lesion[3:9, 5:12, 2:6] = 1
    mask = nib.Nifti1Image(lesion, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(image.affine))
    )
    write_segmentation(folder / "seg.dcm", np.asarray(mask.dataobj), image.affine, series)
    segmentation = highdicom.seg.segread(folder / "seg.dcm")
    found = segmentation.get_volume(combine_segments=True)
    marked = np.argwhere(found.array.squeeze() > 0)
    places = nib.affines.apply_affine(np.diag([-1.0, -1, 1, 1]) @ found.affine, marked)
    expected = nib.affines.apply_affine(affine, np.argwhere(lesion))
    assert len(places) == len(expected)
    assert np.allclose(sorted(map(tuple, places.round(2))), sorted(map(tuple, expected.round(2))), atol=0.02)
    return segmentation


@pytest.mark.parametrize("affine", [PLACES, SAGITTAL], ids=["axial", "sagittal"])
@pytest.mark.parametrize("per_frame", [False, True], ids=["shared", "per frame"])
@pytest.mark.parametrize("order", [None, (7, 6, 5, 4, 3, 2, 1, 0), (3, 0, 7, 1, 5, 2, 6, 4)], ids=str)
def test_frames_of_an_enhanced_file_are_referred_to(
    order: tuple[int, ...] | None,
    per_frame: bool,
    affine: NDArray[np.float64],
    voxels: NDArray[np.int16],
    tmp_path: Path,
) -> None:
    write_enhanced(tmp_path / "a" / "1.dcm", voxels, affine, order=order, per_frame=per_frame)
    segmentation = assert_segmentation_fits(one(tmp_path / "a"), voxels.shape, affine, tmp_path)
    own = pydicom.dcmread(tmp_path / "a" / "1.dcm").PerFrameFunctionalGroupsSequence
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = own[source.ReferencedFrameNumber - 1].PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, place, atol=0.01)


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_single_slice_has_its_thickness(enhanced: bool, voxels: NDArray[np.int16], tmp_path: Path) -> None:
    if enhanced:
        write_enhanced(tmp_path / "a" / "1.dcm", voxels[..., :1], PLACES)
    else:
        write_series(tmp_path / "a", voxels[..., :1], PLACES)
    series = one(tmp_path / "a")
    image = nib.load(convert(series, tmp_path / "out"))
    assert np.allclose(nib.affines.voxel_sizes(image.affine), [0.9, 0.9, 5], atol=1e-4)
    write_segmentation(tmp_path / "seg.dcm", np.ones(image.shape), image.affine, series)
    assert highdicom.seg.segread(tmp_path / "seg.dcm").NumberOfFrames == 1


def test_slices_may_be_compressed(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    for path in write_series(tmp_path / "a", voxels, PLACES):
        edit(path, lambda header: header.compress(RLELossless))
    assert_segmentation_fits(one(tmp_path / "a"), voxels.shape, PLACES, tmp_path)


def test_headers_that_make_no_dicom_seg_are_a_line(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    for path in write_series(tmp_path / "a", voxels, PLACES):
        header = pydicom.dcmread(path)
        del header.PatientID, header.StudyID
        header.save_as(path)
    with pytest.raises(PipelineError, match=r"series 3: no DICOM SEG can be made of its headers"):
        write_segmentation(tmp_path / "seg.dcm", np.ones(voxels.shape), PLACES, one(tmp_path / "a"))
