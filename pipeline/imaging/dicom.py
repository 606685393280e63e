"""DICOM series: FLAIR told from the others, geometry judged, converted to NIfTI; masks as DICOM SEG."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import write_durably

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

MAX_ZIP_BYTES = 8 * 2**30
"""Unpacked size of a zip: a study of several thousand slices."""
FLAIR_WORDS = ("flair", "dark fluid", "dark-fluid", "darkfluid", "tirm")
"""What manufacturers write into the description of a FLAIR series."""
NOT_FLAIR_WORDS = {"t1", "t1w", "adc", "map", "mip", "sub", "subtraction", "mask", "seg"}
"""Words beside FLAIR that name another contrast, or what was computed of it."""
FLAIR_INVERSION_MS = (1500.0, 3200.0)
"""Inversion times that suppress cerebrospinal fluid at 1.5 to 7 T."""
MIN_FLAIR_ECHO_MS = 60.0
"""FLAIR is T2-weighted; an inversion-prepared T1 has an echo time of a few ms."""
SPACING_TOLERANCE = 0.05
"""Share of the slice distance by which single distances may differ from it."""
_PREAMBLE = 132
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName",
    "Modality", "ImageType", "InversionTime", "EchoTime", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
    "ImagePositionPatient", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_HEADER_ERRORS = (OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)
"""What pydicom raises for damaged headers, beside its own error."""
_NO_IMAGES = ("DICOMDIR", "SR", "PR", "KO", "SEG", "RTSTRUCT")


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Args:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        number: SeriesNumber, as text; empty where the header has none.
        description: SeriesDescription, or else ProtocolName.
        is_flair: Whether description or parameters are those of a FLAIR.
        files: Its files, sorted by name.
        headers: Their headers without pixels, in the same order.
    """

    uid: str
    study: str
    number: str
    description: str
    is_flair: bool
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...]

    def __str__(self) -> str:
        """Number, description and size, for a list that a person chooses from."""
        return f"{self.number or '-'} ({shown(self.description) or 'no description'}, {len(self.files)} files)"


def is_dicom(path: Path) -> bool:
    """Whether a path is a file that begins as DICOM does: 128 bytes of anything, then ``DICM``."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE)[-4:] == b"DICM"
    except OSError:
        return False


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A zip's files in a folder that is removed at the end.

    Raises:
        PipelineError: The zip is damaged, too large, or names files outside of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="dicom-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as file:
                if sum(entry.file_size for entry in file.infolist()) > MAX_ZIP_BYTES:
                    raise PipelineError(f"{path}: unpacks to more than {MAX_ZIP_BYTES >> 30} GB. Unpack it yourself.")
                file.extractall(folder)  # names that lead out of the folder are kept in it by zipfile
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise PipelineError(f"{path}: no readable zip ({shown(error)}). Copy it again, or unpack it.") from error
        yield folder


@contextmanager
def series_of(place: Path, uid: str) -> Iterator[Series]:
    """One series of a folder or zip, by its SeriesInstanceUID; a zip's files are there until the end.

    Raises:
        PipelineError: The zip is damaged, or the series is not there any more.
    """
    with unpacked(place) if place.is_file() else nullcontext(place) as root:
        found = [one for one in find_series([p for p in root.rglob("*") if is_dicom(p)])[0] if one.uid == uid]
        if not found:
            raise PipelineError(f"{place}: the series is not there any more. Give the folder again.")
        yield found[0]


def find_series(files: Sequence[Path]) -> tuple[list[Series], dict[Path, str]]:
    """The image series among DICOM files, by number, and the files that are no images, each with the reason."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    groups: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    others: dict[Path, str] = {}
    for path in sorted(files):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except (InvalidDicomError, *_HEADER_ERRORS) as error:
            others[path] = f"no readable DICOM file ({shown(error)})"
            continue
        if "Rows" not in header or str(header.get("Modality", "")) in _NO_IMAGES:
            others[path] = f"no image ({header.get('Modality') or 'DICOMDIR'})"
        else:
            groups[str(header.get("SeriesInstanceUID", ""))].append((path, header))
    series = [_series(uid, found) for uid, found in groups.items()]
    return sorted(series, key=lambda one: (one.study, len(one.number), one.number, one.uid)), others


def _series(uid: str, found: Sequence[tuple[Path, Dataset]]) -> Series:
    first = found[0][1]
    description = str(first.get("SeriesDescription") or first.get("ProtocolName") or "")
    return Series(
        uid=uid,
        study=str(first.get("StudyInstanceUID", "")),
        number=str(first.get("SeriesNumber") or ""),
        description=description,
        is_flair=_is_flair(first, description),
        files=tuple(path for path, _ in found),
        headers=tuple(header for _, header in found),
    )


def _is_flair(header: Dataset, description: str) -> bool:
    """By description or parameters, which must not contradict it; never a T1 FLAIR, a map or a localizer."""
    text = f"{description} {header.get('ProtocolName') or ''}".lower()
    words = set(re.split(r"[^a-z0-9]+", text))
    if str(header.get("Modality", "MR")) != "MR" or "LOCALIZER" in {*(header.get("ImageType") or ())}:
        return False
    if words & NOT_FLAIR_WORDS:
        return False
    inversion, echo = (_number(header.get(name)) for name in ("InversionTime", "EchoTime"))
    low, high = FLAIR_INVERSION_MS
    if any(word in text for word in FLAIR_WORDS):
        return (not inversion or low <= inversion <= high) and (not echo or echo >= MIN_FLAIR_ECHO_MS)
    return low <= inversion <= high and echo >= MIN_FLAIR_ECHO_MS


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def choose_flair(series: Sequence[Series], place: Path, wanted: str | None = None) -> Series:
    """The FLAIR series of one patient.

    Args:
        series: All series.
        place: The folder or zip, for messages.
        wanted: A SeriesNumber or SeriesInstanceUID to take instead of looking for FLAIR.

    Raises:
        PipelineError: There is none, or there are several; the message lists all series.
    """
    found = [one for one in series if wanted in (one.number, one.uid)] if wanted else [s for s in series if s.is_flair]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(map(str, found or series)) or "none"
    asked = f"of --series {wanted}" if wanted else "that is FLAIR by description or parameters"
    what = f"{len(found)} series {asked}" if found else f"no series {asked}"
    raise PipelineError(f"{place}: {what} (expected one): {listed}. Choose one with --series NUMBER or UID.")


def refuse_gaps(series: Series) -> None:
    """Refuse a series whose slices do not make one volume.

    Raises:
        PipelineError: Sizes, orientations or pixel spacings differ, a position is missing or taken twice, or the
            headers tell no position.
    """
    name = f"series {series.number}"
    frames = [frame for header in series.headers for frame in _frames(header)]
    if any(None in frame for frame in frames):
        raise PipelineError(f"{name}: slices without position, orientation or pixel spacing. Export the series again.")
    turn = frames[0][1]
    for what, index, tolerance in (("sizes", 0, 0.5), ("orientations", 1, 1e-3), ("pixel spacings", 2, 1e-3)):
        if any(np.abs(np.subtract(frame[index], frames[0][index])).max() > tolerance for frame in frames):
            raise PipelineError(f"{name}: slices of several {what} (expected one volume). Choose another --series.")
    if len(frames) < 2:
        return
    normal = np.cross(turn[:3], turn[3:])
    places = np.sort([float(np.dot(normal, position)) for *_, position in frames])
    steps = np.diff(places)
    step = float(np.median(steps))
    if (steps < 0.01).any():
        raise PipelineError(
            f"{name}: {int((steps < 0.01).sum())} slices lie where another does: several volumes in one series, "
            "such as time points or echoes. Export one of them alone."
        )
    wide = np.flatnonzero(np.abs(steps - step) > max(SPACING_TOLERANCE * step, 0.01))
    if len(wide):
        at = wide[0]
        raise PipelineError(
            f"{name}: slices lie {step:.3g} mm apart, but {steps[at]:.3g} mm at {places[at]:.5g} mm ({len(wide)} such "
            "places): slices are missing, or several volumes are mixed. Export the series again."
        )


def _frames(header: Dataset) -> list[tuple[Any, Any, Any, Any]]:
    """Size, orientation, pixel spacing and position of each frame; one of a classic file, many of an enhanced one."""
    size = (int(header.Rows), int(header.Columns))
    if "PerFrameFunctionalGroupsSequence" not in header:
        turn, spacing, position = (
            header.get(name) for name in ("ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient")
        )
        return [(size, turn, spacing, position)] * int(header.get("NumberOfFrames") or 1)
    shared = header.get("SharedFunctionalGroupsSequence") or [None]

    def value(frame: Any, group: str, name: str) -> Any:
        for place in (frame, shared[0]):
            if place is not None and place.get(group):
                return place[group].value[0].get(name)
        return None

    return [
        (
            size,
            value(frame, "PlaneOrientationSequence", "ImageOrientationPatient"),
            value(frame, "PixelMeasuresSequence", "PixelSpacing"),
            value(frame, "PlanePositionSequence", "ImagePositionPatient"),
        )
        for frame in header.PerFrameFunctionalGroupsSequence
    ]


def convert(series: Series, folder: Path) -> Path:
    """A series as one NIfTI volume, by dcm2niix; no field of the headers comes into it.

    Args:
        series: The series, after ``refuse_gaps``.
        folder: The folder for the NIfTI file.

    Raises:
        PipelineError: dcm2niix fails, or makes no volume or several.
    """
    import dcm2niix

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dicom-", dir=folder) as name:
        source, target = Path(name, "in"), Path(name, "out")
        source.mkdir()
        target.mkdir()
        for number, path in enumerate(series.files):
            (source / f"{number:06}.dcm").symlink_to(path.resolve())
        options = ["-b", "n", "-z", "n", "-f", "volume", "-w", "1", "-o", str(target), str(source)]
        done = subprocess.run([dcm2niix.bin, *options], capture_output=True, text=True, check=False)  # noqa: S603
        made = sorted(target.glob("*.nii"))
        if done.returncode or len(made) != 1:
            told = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line or "arning" in line]
            raise PipelineError(
                f"series {series.number}: dcm2niix made {len(made)} volumes (expected one){': ' if told else ''}"
                f"{shown(told[0]) if told else ''}. Choose another --series, or convert it yourself."
            )
        volume = folder / "series.nii"
        shutil.move(made[0], volume)
    return volume


def write_segmentation(path: Path, mask: NDArray[Any], affine: NDArray[np.float64], series: Series) -> None:
    """Write a mask as DICOM SEG that refers to the series it was made from.

    DICOM demands the patient's identity in the file: it is copied from the series.

    Args:
        path: The file, whose name ends in ``.dcm``.
        mask: (I, J, K), 0 and 1, on the grid of the converted series.
        affine: (4, 4), voxel of the mask to right, anterior, superior in mm.
        series: The series.

    Raises:
        PipelineError: The headers lack what DICOM SEG demands, as those of anonymised series may do, or the frames make
            no volume.
    """
    try:
        data = _segmentation(mask, affine, series)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, PipelineError):
            raise
        raise PipelineError(
            f"series {series.number}: no DICOM SEG can be made of its headers ({shown(error)}). Leave --dicom-seg out."
        ) from error
    write_durably(path, data)


def _segmentation(mask: NDArray[Any], affine: NDArray[np.float64], series: Series) -> bytes:
    """The DICOM SEG file."""
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    from pipeline import __version__

    sources = [pydicom.dcmread(file) for file in series.files]
    grid: hd.VolumeGeometry | None
    if len(sources) > 1:
        grid = hd.get_volume_from_series(sources).get_geometry()
    else:  # an enhanced file of many frames
        grid = hd.Image.from_dataset(sources[0]).get_volume_geometry()
    if grid is None:
        raise PipelineError(f"series {series.number}: its frames make no volume for DICOM SEG. Leave --dicom-seg out.")
    volume = hd.Volume(mask.astype(np.uint8), _LPS @ affine, coordinate_system="PATIENT").match_geometry(grid, tol=0.01)
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="FLAIR abnormality",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="lgg-flair-pipeline", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=volume,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=int(series.number or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="lgg-flair-pipeline",
        manufacturer_model_name="lgg-flair-pipeline",
        software_versions=__version__,
        device_serial_number="0",
        series_description="FLAIR abnormality, automatic, research only",
        omit_empty_frames=bool(mask.any()),
    )
    buffer = io.BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


_LPS = np.diag([-1.0, -1, 1, 1])
