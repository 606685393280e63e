"""Find the FLAIR series among DICOM files, check its geometry, and convert it to NIfTI."""

from __future__ import annotations

import itertools
import lzma
import math
import os
import re
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation, ornt_transform

from pipeline.errors import PipelineError
from pipeline.imaging.formats import LPS, as_nifti
from pipeline.scripts.faults import shown
from pipeline.scripts.files import writing_errors
from pipeline.scripts.volumes import corners, open_nifti

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

MAX_ZIP_BYTES = 8 * 2**30
"""Largest unpacked size of a zip. It is enough for a study of several thousand slices."""
FLAIR_WORDS = ("flair", "dark fluid", "dark-fluid", "darkfluid", "tirm")
"""Words that manufacturers write into the description of a FLAIR series."""
NOT_FLAIR_WORDS = {"t1", "t1w", "adc", "map", "mip", "sub", "subtraction", "mask", "seg"}
"""Words that exclude a series, because they name another contrast or a computed image."""
FLAIR_INVERSION_MS = (1500.0, 3200.0)
"""Inversion times that suppress cerebrospinal fluid at 1.5 to 7 T."""
MIN_FLAIR_ECHO_MS = 60.0
"""Shortest echo time of FLAIR, which is T2-weighted. T1 with inversion has an echo time of a few ms."""
SPACING_TOLERANCE = 0.01
"""Largest difference of a single slice distance, as a share of the median distance."""
SHIFT_TOLERANCE = 0.1
"""Largest sideways shift of a slice, as a share of a pixel. It is not 0, because headers round positions."""
_PREAMBLE = 132
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber",
    "SeriesDescription", "ProtocolName",
    "Modality", "ImageType", "InversionTime", "EchoTime", "Rows", "Columns", "PhotometricInterpretation",
    "PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient", "NumberOfFrames",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_ZIP_ERRORS = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError
)  # fmt: skip
"""Errors that zipfile raises for damaged files."""
_PART_BYTES = 2**22
"""Size of the parts in which a file of a zip is copied."""
_GRAY = "MONOCHROME2"
_REMARKS = (
    "Chris Rorden", "v1.", "Found ", "Convert ", "Warning: Patient Position", "Warning: Instance Number"
)  # fmt: skip
"""Beginnings of lines that dcm2niix prints before it reports an error."""
REVERSED = [2, 1, 0, 3]
"""Order of the columns of an affine for highdicom, which counts slices, rows, columns."""
_ENCRYPTED = 1
"""Bit in the flags of a zip entry that marks an encrypted file."""
_NO_IMAGES = ("SR", "PR", "KO", "SEG", "RTSTRUCT")


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Args:
        uid: SeriesInstanceUID of the series.
        study: StudyInstanceUID of the series.
        number: SeriesNumber as text; empty if the header has none.
        description: SeriesDescription, or ProtocolName if there is no SeriesDescription.
        is_flair: Whether description or parameters are those of FLAIR.
        files: The files of the series, sorted by name.
        headers: The header of each file without pixels, in the order of ``files``.
    """

    uid: str
    study: str
    number: str
    description: str
    is_flair: bool
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...]

    def __str__(self) -> str:
        """The number, description and number of files, for a list that the user chooses from."""
        return f"{self.number or '-'} ({shown(self.description) or 'no description'}, {len(self.files)} files)"


class Found(NamedTuple):
    """The content of a set of DICOM files.

    Args:
        series: The image series, sorted by study and number.
        others: What a file is that is not an image, by file.
        damaged: Why a file cannot be read, by file.
    """

    series: list[Series]
    others: dict[Path, str]
    damaged: dict[Path, str]


def is_dicom(path: Path) -> bool:
    """Whether a path is a file that begins as DICOM does: 128 bytes with any content, then ``DICM``."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE)[-4:] == b"DICM"
    except OSError:
        return False


@contextmanager
def unpacked(path: Path, names: Collection[str] | None = None) -> Iterator[dict[str, Path]]:
    """The files of a zip by their names in it, unpacked into a folder that is removed at the end.

    Args:
        path: The zip file.
        names: Names of the files to unpack; None for all.

    Raises:
        PipelineError: The zip is damaged, encrypted or too large, cannot be read, or holds two files of one name.
        WritingError: The files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="dicom-") as folder:
        files: dict[str, Path] = {}
        try:
            with zipfile.ZipFile(path) as file:
                entries = sorted((one for one in file.infolist() if not one.is_dir()), key=lambda one: one.filename)
                if sum(entry.file_size for entry in entries) > MAX_ZIP_BYTES:
                    raise PipelineError(
                        f"{path}: more than {MAX_ZIP_BYTES >> 30} GB when unpacked. Unpack it, and give the folder."
                    )
                if any(entry.flag_bits & _ENCRYPTED for entry in entries):
                    raise PipelineError(
                        f"{path}: holds encrypted files. Unpack it with its password, and give the folder."
                    )
                if len({entry.filename for entry in entries}) < len(entries):
                    raise PipelineError(
                        f"{path}: holds several files of one name. Unpack it into folders, and give the folder."
                    )
                for entry in entries:
                    if names is None or entry.filename in names:
                        # Files get numbers, because names in a zip may lead out of the folder or differ only in case.
                        target = files.setdefault(entry.filename, Path(folder, f"{len(files):06}"))
                        with file.open(entry) as source:
                            for part in itertools.chain([b""], iter(partial(source.read, _PART_BYTES), b"")):
                                with writing_errors(target), target.open("ab") as copy:
                                    copy.write(part)
        except PermissionError as error:
            raise PipelineError(f"{path}: cannot be read ({error.strerror}). Change its permissions.") from error
        except _ZIP_ERRORS as error:
            raise PipelineError(f"{path}: no readable zip ({shown(error)}). Copy it again, or unpack it.") from error
        yield files


@contextmanager
def series_of(place: Path, names: Sequence[str]) -> Iterator[Series]:
    """The series that consists of given files in a folder or zip. No other file is opened.

    Args:
        place: The folder or zip. Files of a zip are unpacked until the end of the ``with`` statement.
        names: Paths of the files, relative to ``place``.

    Raises:
        PipelineError: The zip is damaged, or the files do not exist any more.
    """
    own = {name: place / name for name in names}
    with unpacked(place, names) if place.is_file() else nullcontext(own) as files:
        found = find_series([*files.values()]).series
        if len(found) != 1 or len(found[0].files) != len(names):
            raise PipelineError(f"{place}: the files of the series have changed or are missing. Give the folder again.")
        yield found[0]


def find_series(files: Sequence[Path]) -> Found:
    """The image series among files, with the files that are not images or are damaged.

    Args:
        files: The files to read. Only their headers are read.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    groups: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    others: dict[Path, str] = {}
    damaged: dict[Path, str] = {}
    for path in sorted(files):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            list(header.iterall())  # pydicom reads a value at its first use, so that an error shows only then
            modality, meta = str(header.get("Modality", "")), header.file_meta
            kind = UID(meta.get("MediaStorageSOPClassUID", "") if "TransferSyntaxUID" in meta else "").name
        except header_errors() as error:
            why = "it does not begin as a DICOM file does" if isinstance(error, InvalidDicomError) else shown(error)
            damaged[path] = why if path.stat().st_size else "0 bytes"
            continue
        if modality in _NO_IMAGES:
            others[path] = f"no image ({modality})"
        elif "Rows" in header:
            groups[str(header.get("SeriesInstanceUID", ""))].append((path, header))
        elif kind and "Image Storage" not in kind:
            others[path] = "no image (DICOMDIR)" if "Directory" in kind else f"no image ({shown(kind)})"
        else:
            damaged[path] = "it ends within the header"
    series = [_series(uid, found) for uid, found in groups.items()]
    return Found(sorted(series, key=lambda one: (one.study, len(one.number), one.number, one.uid)), others, damaged)


def header_errors() -> tuple[type[Exception], ...]:
    """The errors that pydicom and highdicom raise for damaged or incomplete headers."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    own = (BytesLengthException, InvalidDicomError, struct.error, zlib.error)
    return (*own, OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, RuntimeError)


def _series(uid: str, found: Sequence[tuple[Path, Dataset]]) -> Series:
    first = found[0][1]
    description = str(first.get("SeriesDescription") or first.get("ProtocolName") or "")
    return Series(
        uid=uid,
        study=str(first.get("StudyInstanceUID", "")),
        number=shown(first.get("SeriesNumber") or ""),
        description=description,
        is_flair=_is_flair(first, description),
        files=tuple(path for path, _ in found),
        headers=tuple(header for _, header in found),
    )


def _is_flair(header: Dataset, description: str) -> bool:
    """Whether a series is FLAIR by description or parameters. T1 FLAIR, maps and localizers are not."""
    text = f"{description} {header.get('ProtocolName') or ''}".lower()
    words = set(re.split(r"[^a-z0-9]+", text))
    if str(header.get("Modality", "MR")) != "MR" or "LOCALIZER" in {*(header.get("ImageType") or ())}:
        return False
    if words & NOT_FLAIR_WORDS:
        return False
    frame = (header.get("PerFrameFunctionalGroupsSequence") or [None])[0]
    inversion, echo = (
        _number(header.get(name) or _of_group(header, frame, group, own))
        for name, group, own in (
            ("InversionTime", "MRModifierSequence", "InversionTimes"),
            ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
        )
    )
    low, high = FLAIR_INVERSION_MS
    if any(word in text for word in FLAIR_WORDS):
        return (not inversion or low <= inversion <= high) and (not echo or echo >= MIN_FLAIR_ECHO_MS)
    return low <= inversion <= high and echo >= MIN_FLAIR_ECHO_MS


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def choose_flair(series: Sequence[Series], wanted: str | None = None, *, by_uid: bool = False) -> Series:
    """The FLAIR series of one study.

    Args:
        series: All series of the study.
        wanted: A SeriesNumber or SeriesInstanceUID to use instead; None to find FLAIR by headers.
        by_uid: Whether the error message shows UIDs. Numbers are not unique if there are several studies.

    Raises:
        PipelineError: There is no such series, or there are several. The message lists the series.
    """
    found = [one for one in series if wanted in (one.number, one.uid)] if wanted else [s for s in series if s.is_flair]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{one}, UID {one.uid}" if by_uid else str(one) for one in found or series)
    asked = f"of --series {wanted}" if wanted else f"that {'are' if found else 'is'} FLAIR by description or parameters"
    way = "UID" if by_uid else "NUMBER or UID"
    raise PipelineError(
        f"{len(found) or 'no'} series {asked} (expected one): {listed}. Choose one with --series {way}."
    )


class Grid(NamedTuple):
    """The positions of the voxels of a series, by its headers.

    Args:
        shape: Numbers of columns, rows and slices.
        affine: (4, 4), from voxel to right, anterior, superior in mm.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def grid_of(series: Series) -> Grid:
    """The grid of a series whose slices make one volume.

    Raises:
        PipelineError: Slices differ in size, orientation or pixel spacing, a slice is missing or exists twice, slices
            are shifted sideways, or the headers give no position.
    """
    name = f"series {series.number}"
    sizes, turns, spacings, positions = _geometry(series)
    for what, values, tolerance in (
        ("sizes", sizes, 0.5), ("orientations", turns, 1e-3), ("pixel spacings", spacings, 1e-3)
    ):  # fmt: skip
        if (np.abs(values - values[0]) > tolerance).any():
            raise PipelineError(f"{name}: slices of several {what} (expected one volume). Choose another --series.")
    along, down = turns[0, :3], turns[0, 3:]
    normal = np.cross(along, down)
    normal /= np.linalg.norm(normal) or 1.0  # rounded directions do not have exactly length 1
    positions = positions[np.argsort(positions @ normal)]
    places = positions @ normal
    steps = np.diff(places)
    if (steps < 0.01).any():
        raise PipelineError(
            f"{name}: {int((steps < 0.01).sum())} slices have the position of another one (expected one volume, found "
            "several, such as time points or echoes). Export only one of them."
        )
    step = float(np.median(steps)) if len(steps) else 1.0
    wide = np.flatnonzero(np.abs(steps - step) > max(SPACING_TOLERANCE * step, 0.01))
    if len(wide):
        at = wide[0]
        raise PipelineError(
            f"{name}: slices lie {step:.3g} mm apart, but {steps[at]:.3g} mm at {places[at]:.5g} mm ({len(wide)} such "
            "places): slices are missing, or several volumes are mixed. Export the series again."
        )
    aside = np.linalg.norm(positions - positions[0] - np.outer(places - places[0], normal), axis=1)
    if aside.max() > SHIFT_TOLERANCE * spacings[0].min():
        raise PipelineError(
            f"{name}: slices lie up to {aside.max():.3g} mm off a straight line (expected a straight stack, "
            "without tilt or shift). Resample the series to one volume, and give this volume."
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * spacings[0, 1], down * spacings[0, 0]
    affine[:3, 2] = normal * ((places[-1] - places[0]) / len(steps) if len(steps) else _thickness(series.headers[0]))
    affine[:3, 3] = positions[0]
    return Grid((int(sizes[0, 1]), int(sizes[0, 0]), len(positions)), LPS @ affine)


def _geometry(series: Series) -> list[NDArray[np.float64]]:
    """Rows and columns (N, 2), orientations (N, 6), pixel spacings (N, 2) and positions (N, 3) of all frames."""
    try:
        values = zip(*(frame for header in series.headers for frame in _frames(header)), strict=True)
        found = [
            np.array([*map(list, column)], np.float64).reshape(-1, width)
            for column, width in zip(values, (2, 6, 2, 3), strict=True)
        ]
        if all(np.isfinite(one).all() for one in found) and (found[2] > 0).all():
            return found
    except header_errors():
        pass
    raise PipelineError(
        f"series {series.number}: slices without position, orientation or pixel spacing. Export the series again."
    )


def _frames(header: Dataset) -> list[tuple[Any, Any, Any, Any]]:
    """Size, orientation, pixel spacing and position of each frame. Enhanced files have many frames."""
    size = (int(header.Rows), int(header.Columns))
    if "PerFrameFunctionalGroupsSequence" not in header:
        turn, spacing, position = (
            header.get(name) for name in ("ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient")
        )
        return [(size, turn, spacing, position)] * int(header.get("NumberOfFrames") or 1)
    return [
        (
            size,
            _of_group(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient"),
            _of_group(header, frame, "PixelMeasuresSequence", "PixelSpacing"),
            _of_group(header, frame, "PlanePositionSequence", "ImagePositionPatient"),
        )
        for frame in header.PerFrameFunctionalGroupsSequence
    ]


def _thickness(header: Dataset) -> float:
    """The thickness of a single slice in mm; 1 if the header does not give it."""
    frame = (header.get("PerFrameFunctionalGroupsSequence") or [None])[0]
    found = _number(header.get("SliceThickness") or _of_group(header, frame, "PixelMeasuresSequence", "SliceThickness"))
    return found if math.isfinite(found) and found > 0 else 1.0


def _of_group(header: Dataset, frame: Dataset | None, group: str, name: str) -> Any:
    """A value in a functional group of an enhanced file: the frame's, else the one of all frames; None if missing."""
    for place in (frame, *(header.get("SharedFunctionalGroupsSequence") or ())):
        if place is not None and place.get(group):
            return place[group].value[0].get(name)
    return None


def convert(series: Series, folder: Path) -> Path:
    """The path of a series that is converted to one NIfTI volume, without any text of the DICOM headers.

    dcm2niix reads series with one file per slice. highdicom reads a file of many frames.

    Args:
        series: The series to convert.
        folder: The folder for the NIfTI file.

    Raises:
        PipelineError: The slices do not make one volume, their pixels cannot be read, or the converted volume has
            another grid than the headers.
    """
    grid = grid_of(series)
    kinds = {str(header.get("PhotometricInterpretation") or _GRAY) for header in series.headers}
    if kinds != {_GRAY}:
        raise PipelineError(
            f"series {series.number}: pixels of {shown(', '.join(sorted(kinds)))} (expected {_GRAY}). "
            "Choose another --series."
        )
    folder.mkdir(parents=True, exist_ok=True)
    volume = folder / "series.nii"
    if any("PerFrameFunctionalGroupsSequence" in header for header in series.headers):
        image = _convert_frames(series)
    else:
        image = _convert_slices(series, folder)
    _save_on_grid(series, image, grid, volume)
    return volume


def _convert_slices(series: Series, folder: Path) -> nib.Nifti1Image:
    import dcm2niix

    with tempfile.TemporaryDirectory(prefix="dicom-", dir=folder) as name:
        source, target = Path(name, "in"), Path(name, "out")
        source.mkdir()
        target.mkdir()
        for number, path in enumerate(series.files):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise PipelineError(
                    f"series {series.number}: a slice cannot be read ({error.strerror}). Check the disk or the "
                    "permissions, then run again."
                ) from error
            with writing_errors(target):
                # The slices get a folder of their own, because theirs may hold other series.
                (source / f"{number:06}.dcm").write_bytes(data)
        options = ["-b", "n", "-z", "n", "-f", "volume", "-w", "1", "-o", str(target), str(source)]
        done = subprocess.run(  # noqa: S603
            [dcm2niix.bin, *options], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        made = sorted(target.glob("*.nii"))
        if done.returncode or len(made) != 1:
            lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
            why = next((line for line in lines if line and not line.startswith(_REMARKS)), f"status {done.returncode}")
            raise PipelineError(
                f"series {series.number}: dcm2niix made {'no' if done.returncode else len(made)} whole volumes "
                f"(expected one): {shown(why.replace(f'{source}{os.sep}', ''))}. "
                "Choose another --series, or convert it yourself."
            )
        image = open_nifti(made[0])
        return nib.Nifti1Image(np.asarray(image.dataobj), image.affine)


def _convert_frames(series: Series) -> nib.Nifti1Image:
    """Read a file of many frames with highdicom, which sorts them by position.

    dcm2niix sorts frames by number, and compressed frames by their order in the file.
    """
    import highdicom as hd

    if len(series.files) > 1:
        raise PipelineError(
            f"series {series.number}: {len(series.files)} files with frames (expected one, or a file a slice). "
            "Choose another --series, or convert it yourself."
        )
    try:
        found = hd.imread(series.files[0]).get_volume(
            dtype=np.float32, apply_real_world_transform=False, rtol=SPACING_TOLERANCE
        )
    except header_errors() as error:
        raise PipelineError(
            f"series {series.number}: its frames cannot be read ({shown(error)}). "
            "Choose another --series, or convert it yourself."
        ) from error
    return as_nifti(found.array.T, LPS @ found.affine[:, REVERSED])


def _save_on_grid(series: Series, image: nib.Nifti1Image, grid: Grid, path: Path) -> None:
    """Write a converted volume at the position in the headers, in the order of the slices' own columns and rows.

    This is needed because dcm2niix takes the distance of all slices from the first two, and reverses the rows.
    """
    turn = ornt_transform(io_orientation(image.affine), io_orientation(grid.affine))
    image = image.as_reoriented(turn)
    found = f"of {' x '.join(map(str, image.shape))} voxels"
    if image.shape == grid.shape:
        off = float(np.linalg.norm(apply_affine(image.affine - grid.affine, corners(grid.shape)), axis=1).max())
        if off < 0.5 * np.linalg.norm(grid.affine[:3, :2], axis=0).min():
            as_nifti(np.asarray(image.dataobj), grid.affine).to_filename(path)
            return
        found = f"{off:.3g} mm off"
    raise PipelineError(
        f"series {series.number}: the converted volume is {found} (expected {' x '.join(map(str, grid.shape))} voxels "
        "where the headers say). Export the series again, or convert it yourself."
    )
