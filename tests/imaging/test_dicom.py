"""DICOM series: FLAIR is found, the geometry is checked, and the series is converted."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from pipeline.errors import PipelineError, WritingError
from pipeline.imaging.dicom import (
    choose_flair,
    convert,
    find_series,
    grid_of,
    is_dicom,
    series_of,
    unpacked,
)
from pipeline.scripts.volumes import oriented
from tests.imaging.series import PLACES, SAGITTAL, edit, one, write_enhanced, write_series


def assert_same(found: nib.Nifti1Image, voxels: NDArray[np.int16], affine: NDArray[np.float64]) -> None:
    """Check that all voxels are in their places."""
    assert np.array_equal(oriented(np.asarray(found.dataobj), found.affine), oriented(voxels, affine))
    turned = nib.Nifti1Image(voxels, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(found.affine))
    )
    assert np.allclose(found.affine, turned.affine, atol=1e-4)


@pytest.mark.parametrize("affine", [PLACES, SAGITTAL], ids=["axial", "sagittal"])
def test_a_series_becomes_a_volume_with_voxels_in_their_places(
    affine: NDArray[np.float64], voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", voxels, affine)
    found = nib.load(convert(one(tmp_path / "a"), tmp_path / "out"))
    assert_same(found, voxels, affine)
    assert b"Secret" not in bytes(found.header.binaryblock)


def test_flair_is_found_by_description_or_parameters(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    write_series(tmp_path, voxels, PLACES, description="t2_tirm_tra_dark-fluid", number=4)
    write_series(tmp_path, voxels, PLACES, description="T1 MPRAGE", number=5, InversionTime=900, EchoTime=3)
    series = find_series(sorted(tmp_path.iterdir())).series
    assert choose_flair(series).number == "4"
    write_series(tmp_path / "x", voxels, PLACES, description="ax", number=7, InversionTime=2500, EchoTime=110)
    assert choose_flair([one(tmp_path / "x")]).number == "7"


def test_no_flair_or_two_are_a_line_that_lists_the_series(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    for number, description in ((1, "T1"), (2, "T2")):
        write_series(tmp_path, voxels, PLACES, description=description, number=number)
    series = find_series(sorted(tmp_path.iterdir())).series
    with pytest.raises(PipelineError, match=r"no series that is FLAIR.*1 \(T1, 8 files\); 2 \(T2, 8 files\).*--series"):
        choose_flair(series)
    assert choose_flair(series, "2").description == "T2"
    assert choose_flair(series, series[0].uid).description == "T1"
    with pytest.raises(PipelineError, match="no series of --series 9"):
        choose_flair(series, "9")
    for number in (3, 4):
        write_series(tmp_path, voxels, PLACES, number=number)
    with pytest.raises(PipelineError, match=r"2 series that are FLAIR.*3 .*; 4 "):
        choose_flair(find_series(sorted(tmp_path.iterdir())).series)
    with pytest.raises(PipelineError, match=rf", UID {re.escape(series[0].uid)};.* Choose one with --series UID"):
        choose_flair(series, by_uid=True)


def test_a_missing_slice_is_refused(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path, voxels, PLACES)
    paths[3].unlink()
    with pytest.raises(PipelineError, match=r"slices lie 5 mm apart, but 10 mm at -?\d.*slices are missing"):
        grid_of(one(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ImagePositionPatient": [-110.0, -120.0, -30.0]}, "slices have the position of another one"),
        ({"PixelSpacing": [0.5, 0.9]}, "several pixel spacings"),
        ({"ImageOrientationPatient": [0.0, 1, 0, 1, 0, 0]}, "several orientations"),
        ({"ImagePositionPatient": None}, "without position"),
    ],
    ids=["twice", "spacing", "orientation", "nowhere"],
)
def test_mixed_geometry_is_refused(
    change: dict[str, Any], message: str, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    paths = write_series(tmp_path, voxels, PLACES)
    header = pydicom.dcmread(paths[5])
    for name, value in change.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(paths[5])
    with pytest.raises(PipelineError, match=message):
        grid_of(one(tmp_path))


def test_files_that_are_no_images_are_named(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path, voxels, PLACES)
    paths[0].write_bytes(b"\0" * 128 + b"DICM")
    paths[1].write_bytes(b"text")
    assert is_dicom(paths[0])
    assert not is_dicom(paths[1])
    assert not is_dicom(tmp_path)
    found = find_series(paths)
    assert len(found.series[0].files) == len(paths) - 2
    assert (set(found.damaged), found.others) == (set(paths[:2]), {})


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_file_cut_in_its_header_is_damaged_wherever_it_is_cut(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    """The file has no pixels, like a DICOMDIR or a report."""
    path = write_series(tmp_path, voxels, PLACES)[0]
    whole = path.read_bytes()
    rows = whole.index(b"\x28\x00\x10\x00US")
    for size in range(0, rows, 3):
        path.write_bytes(whole[:size])
        assert [*find_series([path]).damaged] == [path]
    path.write_bytes(b"")
    assert find_series([path]).damaged == {path: "0 bytes"}


@pytest.mark.parametrize(
    ("uid", "modality", "reason"),
    [
        ("1.2.840.10008.5.1.4.1.1.66", "REG", "Raw Data Storage"),
        ("1.3.12.2.1107.5.9.1", "MR", "1.3.12"),
        (None, "SR", "SR"),
    ],
)
def test_objects_without_pixels_are_no_images(
    uid: str | None, modality: str, reason: str, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    path = write_series(tmp_path, voxels, PLACES)[0]

    def change(header: pydicom.FileDataset) -> None:
        del header.Rows
        header.Modality, header.file_meta.MediaStorageSOPClassUID = modality, uid or MRImageStorage

    edit(path, change)
    found = find_series([path])
    assert (found.series, found.damaged) == ([], {})
    assert found.others[path].startswith(f"no image ({reason}")


def test_a_zip_is_unpacked_and_removed(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", voxels, PLACES)
    names = [f"{'../' * (z % 3)}x/{'A' if z == 1 else 'a'}{z // 3}.dcm" for z in range(len(paths))]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path, name in zip(paths, names, strict=True):
            file.write(path, name)
    with unpacked(tmp_path / "a.zip") as files:
        assert [*files] == sorted(names)
        assert [files[name].read_bytes() for name in names] == [path.read_bytes() for path in paths]
    assert not any(path.exists() for path in files.values())
    with series_of(tmp_path / "a.zip", names) as series:
        assert_same(nib.load(convert(series, tmp_path / "out")), voxels, PLACES)
    with (
        pytest.raises(PipelineError, match="have changed or are missing"),
        series_of(tmp_path / "a.zip", [*names, "y"]),
    ):
        pass


def test_a_zip_that_cannot_be_unpacked_is_a_line(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    path = tmp_path / "b.zip"

    def refused(message: str) -> None:
        with pytest.raises(PipelineError, match=message), unpacked(path):
            pass

    path.write_bytes(b"PK")
    refused("no readable zip")
    (dicom, *_) = write_series(tmp_path, voxels, PLACES)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as file:
            file.write(dicom, "a")
        data = bytearray(path.read_bytes())
        data[200:300] = bytes(100)
        path.write_bytes(data)
        refused("no readable zip")
    with zipfile.ZipFile(path, "w") as file:
        file.write(dicom, "a")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the file's own header and its entry in the list of files say that it is encrypted
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused("holds encrypted files. Unpack it with its password")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("\u00e4", b"")
    path.write_bytes(path.read_bytes().replace("\u00e4".encode(), b"\xff\xff"))  # still said to be UTF-8
    refused("no readable zip")
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            file.write(dicom, "a")
    refused("holds several files of one name. Unpack it into folders")


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("open", errno.ENOSPC, r"dicom-\w+/000000: cannot be written"),
        ("ZipFile", errno.EACCES, r"b\.zip: cannot be read"),
    ],
)
def test_a_zip_is_not_called_damaged_for_the_disk(
    function: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("a", b"1")
    monkeypatch.setattr(Path if function == "open" else zipfile, function, fail)
    with pytest.raises(PipelineError, match=message) as caught, unpacked(tmp_path / "b.zip"):
        pass
    assert isinstance(caught.value, WritingError) == (function == "open")


def test_a_slice_that_is_gone_is_no_fault_of_writing(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", voxels, PLACES)
    series = one(tmp_path / "a")
    paths[2].unlink()
    with pytest.raises(PipelineError, match=r"^series 3: a slice cannot be read \(No such file") as caught:
        convert(series, tmp_path / "out")
    assert not isinstance(caught.value, WritingError)  # which would end the run


@pytest.mark.parametrize(("start", "step"), [(0, 0.1), (4, 0.0)], ids=["tilt", "jump"])
def test_slices_that_lie_beside_each_other_are_refused(
    start: int, step: float, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    """dcm2niix would stack such slices straight, without a warning."""
    for z, path in enumerate(write_series(tmp_path, voxels, PLACES)):
        x, y, height = (float(value) for value in pydicom.dcmread(path).ImagePositionPatient)
        aside = step * z if step else 3.0 * (z >= start)
        edit(path, lambda header, at=[x + aside, y, height]: setattr(header, "ImagePositionPatient", at))
    with pytest.raises(PipelineError, match=r"series 3: slices lie up to (0.7|3) mm off a straight line"):
        convert(one(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("length", [1.0, 1.001])
def test_rounded_positions_are_no_shift(length: float, voxels: NDArray[np.int16], tmp_path: Path) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    turn = turn @ SAGITTAL
    for path in write_series(tmp_path, voxels, turn):
        edit(
            path,
            lambda header: (
                rounded(header, "ImagePositionPatient"),
                rounded(header, "ImageOrientationPatient", length),
            ),
        )
    found = nib.load(convert(one(tmp_path), tmp_path / "out"))
    assert np.array_equal(oriented(np.asarray(found.dataobj), found.affine), oriented(voxels, turn))


@pytest.mark.parametrize(("distance", "share"), [(5, 0.004), (1, 0.004)])
def test_distances_that_differ_a_little_are_averaged(distance: int, share: float, tmp_path: Path) -> None:
    """dcm2niix uses the first distance for all slices."""
    voxels = np.arange(24 * 20 * 12, dtype=np.int16).reshape(24, 20, 12)
    affine = PLACES.copy()
    affine[2, 2] = distance
    for z, path in enumerate(write_series(tmp_path, voxels, affine)):
        x, y, height = (float(value) for value in pydicom.dcmread(path).ImagePositionPatient)
        place = [x, y, height + (z % 2) * share * distance]
        edit(path, lambda header, place=place: setattr(header, "ImagePositionPatient", place))  # type: ignore[misc]
    series = one(tmp_path)
    found = nib.load(convert(series, tmp_path / "out"))
    assert np.allclose(found.affine, grid_of(series).affine, atol=1e-4)
    assert np.array_equal(oriented(np.asarray(found.dataobj), found.affine), oriented(voxels, affine))


def rounded(header: pydicom.Dataset, name: str, factor: float = 1.0) -> None:
    setattr(header, name, [round(float(value) * factor, 3) for value in header[name].value])


@pytest.mark.parametrize("affine", [PLACES, SAGITTAL], ids=["axial", "sagittal"])
@pytest.mark.parametrize("per_frame", [False, True], ids=["shared", "per frame"])
@pytest.mark.parametrize("order", [None, (7, 6, 5, 4, 3, 2, 1, 0), (3, 0, 7, 1, 5, 2, 6, 4)], ids=str)
def test_an_enhanced_file_is_as_a_series_of_slices(
    order: tuple[int, ...] | None,
    per_frame: bool,
    affine: NDArray[np.float64],
    voxels: NDArray[np.int16],
    tmp_path: Path,
) -> None:
    write_enhanced(tmp_path / "a" / "1.dcm", voxels, affine, order=order, per_frame=per_frame)
    assert_same(nib.load(convert(one(tmp_path / "a"), tmp_path / "out")), voxels, affine)


def test_frames_go_by_their_places(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    """dcm2niix is misled by numbers that do not follow the positions, and by the order of compressed frames."""
    order = (3, 0, 7, 1, 5, 2, 6, 4)
    path = write_enhanced(tmp_path / "a" / "1.dcm", voxels, PLACES, order=order)

    def compressed_and_renumbered(header: pydicom.Dataset) -> None:
        header.compress(RLELossless)
        for number, frame in enumerate(header.PerFrameFunctionalGroupsSequence, 1):
            frame.FrameContentSequence[0].InStackPositionNumber = number
            frame.FrameContentSequence[0].DimensionIndexValues = [1, number]

    edit(path, compressed_and_renumbered)
    assert_same(nib.load(convert(one(tmp_path / "a"), tmp_path / "out")), voxels, PLACES)
    edit(path, lambda header: header.PerFrameFunctionalGroupsSequence.pop(2))  # the last slice
    with pytest.raises(PipelineError, match=r"series 3: (its frames cannot be read|the converted volume is of .* 8)"):
        convert(one(tmp_path / "a"), tmp_path / "out")
    write_enhanced(tmp_path / "b" / "1.dcm", voxels[..., :4], PLACES)
    uid = pydicom.dcmread(tmp_path / "b" / "1.dcm").SeriesInstanceUID
    up = PLACES.copy()
    up[2, 3] += 20
    edit(write_enhanced(tmp_path / "b" / "2.dcm", voxels[..., 4:], up), lambda h: setattr(h, "SeriesInstanceUID", uid))
    with pytest.raises(PipelineError, match="series 3: 2 files with frames"):
        convert(one(tmp_path / "b"), tmp_path / "out")


def test_an_enhanced_file_with_a_frame_less_is_refused(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    write_enhanced(tmp_path / "1.dcm", voxels, PLACES, order=(0, 1, 2, 4, 5, 6, 7))
    with pytest.raises(PipelineError, match=r"slices lie 5 mm apart, but 10 mm"):
        grid_of(one(tmp_path))


@pytest.mark.parametrize(
    ("description", "times", "is_flair"),
    [("ax", (2500, 110), True), ("ax", (900, 3), False), ("AX FLAIR", (800, 9), False), ("FLAIR", (2500, 110), True)],
)
def test_parameters_of_an_enhanced_file_tell_flair(
    description: str, times: tuple[float, float], is_flair: bool, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    inversion, echo = times
    write_enhanced(tmp_path / "1.dcm", voxels, PLACES, description=description, inversion=inversion, echo=echo)
    assert one(tmp_path).is_flair == is_flair


def no_image(header: pydicom.Dataset) -> None:
    header.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(400)])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: setattr(header, "PixelData", header.PixelData[:-200]), "no whole volumes .*FileSize <"),
        (no_image, "no whole volumes .*OpenJPEG failed to read"),
        (lambda header: setattr(header, "EchoTime", 77), "no whole volumes .*echo varies"),
        (lambda header: setattr(header, "PhotometricInterpretation", "MONOCHROME1"), "pixels of MONOCHROME1"),
        (lambda header: setattr(header, "Rows", None), "slices without position"),
        (lambda header: setattr(header, "ImagePositionPatient", [1, 2]), "slices without position"),
    ],
    ids=["cut", "damaged", "echoes", "inverted", "no rows", "no position"],
)
def test_one_slice_that_cannot_be_read_is_a_line(
    change: Callable[[pydicom.Dataset], object], message: str, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "a", voxels, PLACES, EchoTime=120)
    edit(paths[3], change)
    with pytest.raises(PipelineError, match=f"^series 3: .*{message}") as caught:
        convert(one(tmp_path / "a"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"), [(b"\\-15.0", b"\\  nan"), (b"0.9\\0.9", b"0.0\\0.0")], ids=["NaN", "zero"]
)
def test_numbers_that_are_no_place_or_size_are_refused(
    before: bytes, after: bytes, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    for path in write_series(tmp_path, voxels, PLACES):
        path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(PipelineError, match="slices without position, orientation or pixel spacing"):
        grid_of(one(tmp_path))


def test_what_dcm2niix_prints_may_be_of_any_encoding(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    write_series(tmp_path / "a", voxels, PLACES)
    folder = tmp_path / os.fsdecode("Patientin Grün".encode("latin-1"))  # dcm2niix names the file it writes
    assert_same(nib.load(convert(one(tmp_path / "a"), folder)), voxels, PLACES)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"US\x02\x00\x18\x00", b"US\x03\x00\x18\x00\x00"),  # Rows of three bytes
        (b"\xe0\x7f\x10\x00", b"\x00\x52\x29\x92SQ\0\0\x12\0\0\0\xfe\xff\x00\xe0\x0a\0\0\0\x08\0\x08\0OB\0\0\x01\0"),
    ],
    ids=["length", "a sequence that ends within an item"],
)
def test_a_file_with_a_value_that_cannot_be_read_is_named(
    before: bytes, after: bytes, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    """pydicom reads a value only at its first use."""
    paths = write_series(tmp_path, voxels, PLACES)
    paths[3].write_bytes(paths[3].read_bytes().replace(before, after))
    assert [*find_series(paths).damaged] == [paths[3]]


def test_damaged_files_that_pydicom_trips_over_are_named(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    deflated, flipped = write_series(tmp_path, voxels[..., :2], PLACES)
    header = pydicom.dcmread(deflated)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(deflated)
    assert len(find_series([deflated]).series) == 1
    deflated.write_bytes(deflated.read_bytes()[:-900] + bytes(900))
    flipped.write_bytes(flipped.read_bytes().replace(b"\x02\x00\x02\x00UI", b"\x02\x00\x02\x00ZZ"))
    assert {*find_series([deflated, flipped]).damaged} == {deflated, flipped}


def test_a_series_number_is_shown_without_control_characters(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    paths = write_series(tmp_path, voxels, PLACES)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"IS\x02\x003 ", b"IS\x04\x003\x1b[2"))
    assert one(tmp_path).number == "3\\x1b[2"


@pytest.mark.parametrize("moved", [0.0, 3.0])
def test_a_volume_must_lie_where_the_headers_say(
    moved: float, voxels: NDArray[np.int16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dcm2niix may misread headers that are unknown to it."""
    write_series(tmp_path / "a", voxels, PLACES)
    affine = PLACES[:, [1, 0, 2, 3]] + np.outer([0, 0, 1, 0], [0, 0, 0, moved])

    def made(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        nib.save(nib.Nifti1Image(voxels.transpose(1, 0, 2), affine), Path(command[-2], "volume.nii"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", made)
    if not moved:
        assert convert(one(tmp_path / "a"), tmp_path / "out").is_file()
        return
    with pytest.raises(PipelineError, match=r"the converted volume is 3 mm off \(expected 20 x 24 x 8 voxels where"):
        convert(one(tmp_path / "a"), tmp_path / "out")


def jpeg_2000(header: pydicom.Dataset) -> None:
    """pydicom has no encoder for this format, but Pillow has."""
    buffer = io.BytesIO()
    Image.fromarray(header.pixel_array).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
    header.PixelData = encapsulate([buffer.getvalue()])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless


COMPRESSIONS: dict[str, Callable[[pydicom.Dataset], object]] = {
    "RLE": lambda header: header.compress(RLELossless),
    "JPEG-LS": lambda header: header.compress(JPEGLSLossless),
    "JPEG 2000": jpeg_2000,
}


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_compressed_pixels_are_read(
    compress: Callable[[pydicom.Dataset], object], voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    voxels = np.tile(voxels, (2, 2, 1))  # CharLS and OpenJPEG need more than a few pixels
    for path in write_series(tmp_path / "a", voxels, PLACES):
        edit(path, compress)
    assert_same(nib.load(convert(one(tmp_path / "a"), tmp_path / "out")), voxels, PLACES)


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
