"""DICOM series: FLAIR told from the others, geometry judged, converted, and masks written as DICOM SEG."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.imaging.dicom import (
    Series,
    choose_flair,
    convert,
    find_series,
    is_dicom,
    refuse_gaps,
    series_of,
    unpacked,
    write_segmentation,
)
from pipeline.scripts.volumes import oriented
from tests.imaging.series import write_series

PLACES = np.array([[0, -0.9, 0, 110.0], [-0.9, 0, 0, 120], [0, 0, 5, -30], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, -5.0, 30], [0, -0.9, 0, 110], [-0.9, 0, 0, 90], [0, 0, 0, 1]])


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 900, (24, 20, 8), dtype=np.int16)


def one(folder: Path) -> Series:
    (series,) = find_series(sorted(folder.iterdir()))[0]
    return series


@pytest.mark.parametrize("affine", [PLACES, SAGITTAL], ids=["axial", "sagittal"])
def test_a_series_becomes_a_volume_with_voxels_in_their_places(
    affine: NDArray[np.float64], voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", voxels, affine)
    series = one(tmp_path / "a")
    refuse_gaps(series)
    found = nib.load(convert(series, tmp_path / "out"))
    assert np.array_equal(oriented(np.asarray(found.dataobj), found.affine), oriented(voxels, affine))
    turned = nib.Nifti1Image(voxels, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(found.affine))
    )
    assert np.allclose(found.affine, turned.affine, atol=1e-4)
    assert b"Secret" not in bytes(found.header.binaryblock)


def test_flair_is_found_by_description_or_parameters(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    write_series(tmp_path, voxels, PLACES, description="t2_tirm_tra_dark-fluid", number=4)
    write_series(tmp_path, voxels, PLACES, description="T1 MPRAGE", number=5, InversionTime=900, EchoTime=3)
    series, _ = find_series(sorted(tmp_path.iterdir()))
    assert choose_flair(series, tmp_path).number == "4"
    write_series(tmp_path / "x", voxels, PLACES, description="ax", number=7, InversionTime=2500, EchoTime=110)
    assert choose_flair([one(tmp_path / "x")], tmp_path).number == "7"


def test_no_flair_or_two_are_a_line_that_lists_the_series(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    for number, description in ((1, "T1"), (2, "T2")):
        write_series(tmp_path, voxels, PLACES, description=description, number=number)
    series, _ = find_series(sorted(tmp_path.iterdir()))
    with pytest.raises(PipelineError, match=r"no series that is FLAIR.*1 \(T1, 8 files\); 2 \(T2, 8 files\).*--series"):
        choose_flair(series, tmp_path)
    assert choose_flair(series, tmp_path, "2").description == "T2"
    assert choose_flair(series, tmp_path, series[0].uid).description == "T1"
    with pytest.raises(PipelineError, match="no series of --series 9"):
        choose_flair(series, tmp_path, "9")
    for number in (3, 4):
        write_series(tmp_path, voxels, PLACES, number=number)
    with pytest.raises(PipelineError, match=r"2 series that is FLAIR.*3 .*; 4 "):
        choose_flair(find_series(sorted(tmp_path.iterdir()))[0], tmp_path)


def test_a_missing_slice_is_refused(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path, voxels, PLACES)
    paths[3].unlink()
    with pytest.raises(PipelineError, match=r"slices lie 5 mm apart, but 10 mm at -?\d.*slices are missing"):
        refuse_gaps(one(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ImagePositionPatient": [-110.0, -120.0, -30.0]}, "several volumes in one series"),
        ({"PixelSpacing": [0.5, 0.9]}, "several pixel spacings"),
        ({"ImageOrientationPatient": [0.0, 1, 0, 1, 0, 0]}, "several orientations"),
        ({"ImagePositionPatient": None}, "without position"),
    ],
    ids=["twice", "spacing", "orientation", "nowhere"],
)
def test_mixed_geometry_is_refused(
    change: dict[str, Any], message: str, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    import pydicom

    paths = write_series(tmp_path, voxels, PLACES)
    header = pydicom.dcmread(paths[5])
    for name, value in change.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(paths[5])
    with pytest.raises(PipelineError, match=message):
        refuse_gaps(one(tmp_path))


def test_files_that_are_no_images_are_named(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path, voxels, PLACES)
    paths[0].write_bytes(b"\0" * 128 + b"DICM")
    paths[1].write_bytes(b"text")
    assert is_dicom(paths[0])
    assert not is_dicom(paths[1])
    assert not is_dicom(tmp_path)
    series, others = find_series(paths)
    assert len(series[0].files) == len(paths) - 2
    assert set(others) == set(paths[:2])


def test_a_zip_is_unpacked_and_removed(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", voxels, PLACES)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in paths:
            file.write(path, f"../{path.name}")
    with unpacked(tmp_path / "a.zip") as folder:
        assert len([path for path in folder.rglob("*") if is_dicom(path)]) == len(paths)
    assert not folder.exists()
    with series_of(tmp_path / "a.zip", one(tmp_path / "a").uid) as series:
        refuse_gaps(series)
    with pytest.raises(PipelineError, match="not there any more"), series_of(tmp_path / "a.zip", "1.2"):
        pass
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(PipelineError, match="no readable zip"), unpacked(tmp_path / "b.zip"):
        pass


@pytest.mark.parametrize("affine", [PLACES, SAGITTAL], ids=["axial", "sagittal"])
def test_a_mask_as_dicom_seg_lies_where_the_lesion_is(
    affine: NDArray[np.float64], voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", voxels, affine)
    series = one(tmp_path / "a")
    image = nib.load(convert(series, tmp_path / "out"))
    lesion = np.zeros(voxels.shape, np.uint8)
    lesion[3:9, 5:12, 2:6] = 1
    mask = nib.Nifti1Image(lesion, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(image.affine))
    )
    write_segmentation(tmp_path / "seg.dcm", np.asarray(mask.dataobj), image.affine, series)
    found = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    marked = np.argwhere(found.array.squeeze() > 0)
    places = nib.affines.apply_affine(np.diag([-1.0, -1, 1, 1]) @ found.affine, marked)
    expected = nib.affines.apply_affine(affine, np.argwhere(lesion))
    assert len(places) == len(expected)
    assert np.allclose(sorted(map(tuple, places.round(2))), sorted(map(tuple, expected.round(2))), atol=0.02)


@pytest.mark.parametrize(
    ("description", "fields", "is_flair"),
    [
        ("Ax T1 FLAIR", {"InversionTime": 800, "EchoTime": 9}, False),
        ("Ax FLAIR", {"InversionTime": 800, "EchoTime": 9}, False),
        ("FLAIR ADC map", {}, False),
        ("AX T2 FLAIR FS", {"InversionTime": 2500, "EchoTime": 120}, True),
        ("t2_space_dark-fluid_sag", {"InversionTime": 1800, "EchoTime": 388}, True),
    ],
)
def test_what_is_called_flair_must_be_one(
    description: str, fields: dict[str, Any], is_flair: bool, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    write_series(tmp_path, voxels, PLACES, description=description, **fields)
    assert one(tmp_path).is_flair == is_flair


def test_headers_that_make_no_dicom_seg_are_a_line(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    import pydicom

    for path in write_series(tmp_path / "a", voxels, PLACES):
        header = pydicom.dcmread(path)
        del header.PatientID, header.StudyID
        header.save_as(path)
    with pytest.raises(PipelineError, match=r"series 3: no DICOM SEG can be made of its headers"):
        write_segmentation(tmp_path / "seg.dcm", np.ones(voxels.shape), PLACES, one(tmp_path / "a"))
