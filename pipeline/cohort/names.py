"""File name -> patient, slice number, image or mask; gaps and persons. Names only: nothing here touches a disk."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown


@dataclass(frozen=True)
class SliceFile:
    """One TIFF, PNG or JPEG file, known by its name alone; ``path`` is relative to the source folder."""

    path: PurePosixPath
    patient: str
    number: int
    kind: Literal["image", "mask"]


MAX_ID_CHARACTERS = 100
MAX_ID_BYTES = 200
"""A file name holds 255 bytes, and ``_image.nii.gz`` and the mark of a temporary file come on top of the id."""

RESERVED_IDS = frozenset({"volumes", "manifest.json"})
"""Names inside the manifest's folder: MONAI would take such an id in a datalist item for a path."""

JUNK_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
NOT_A_SLICE = "not a slice"

_PICTURE = re.compile(r"\.tiff?\Z|_[0-9]{1,6}(_mask)?\.(png|jpe?g)\Z", re.IGNORECASE)
"""Any TIFF is held to be a slice; a PNG or JPEG only with a slice number, as other pictures lie in many folders."""
_SLICE = re.compile(r"(?P<patient>.+)_(?P<number>[0-9]{1,6})(?P<mask>_mask)?\.(?i:tiff?|png|jpe?g)\Z", re.DOTALL)
_EXAM = re.compile(r"(?P<person>sub-[A-Za-z0-9]+(?=_ses-)|BraTS-[A-Za-z]+-[0-9]{5}(?=-[0-9]{3}\Z))")
"""An exam by BIDS, ``sub-X_ses-Y``, and by BraTS, ``BraTS-GLI-00001-000``."""
_TCGA = re.compile(r"(?P<person>TCGA_(?P<institution>[A-Z0-9]{2})_[A-Z0-9]{4})_[0-9]{8}\Z")


def parse_name(path: PurePosixPath) -> SliceFile | None:
    """Patient, number and kind of ``<patient>_<number>.tif`` or ``..._mask.tif``; None for another file."""
    if not _PICTURE.search(path.name):
        return None
    match = _SLICE.match(path.name)
    if match is None:
        raise PipelineError(
            "the name holds no slice number (expected <patient>_<number>.tif or <patient>_<number>_mask.tif). "
            "Rename the file or move it out of the folder."
        )
    if not str(path).isprintable():
        raise PipelineError(
            "the path holds control or undecodable characters (expected printable UTF-8). "
            "Rename the file or its folder."
        )
    patient = unicodedata.normalize("NFC", match["patient"])
    fault = id_fault(patient)
    if fault:
        raise PipelineError(
            f"the patient id {shown(patient)!r} {fault} (expected a letter or digit, then letters, digits, "
            f"'_', '-', '.' and space, at most {MAX_ID_CHARACTERS} characters). Rename the patient's files."
        )
    return SliceFile(path, patient, int(match["number"]), "mask" if match["mask"] else "image")


def id_fault(patient: str) -> str:
    """What is wrong with a patient id, empty where nothing is. An id becomes part of file names and tables."""
    if not patient:
        return "is empty"
    if len(patient) > MAX_ID_CHARACTERS or len(patient.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return "is too long"
    if patient.casefold() in RESERVED_IDS:
        return "is a name the manifest's folder uses itself"
    if unicodedata.category(patient[0])[0] not in "LN":
        return "starts with a character that is no letter or digit"
    odd = sorted({c for c in patient if c not in "_-. " and unicodedata.category(c)[0] not in "LNM"})
    if odd:
        return "holds " + ", ".join(repr(shown(c)) for c in odd)
    return "ends in a space or dot" if patient[-1] in " ." else ""


def skip_reason(path: PurePosixPath) -> str | None:
    """Why a file is passed over for its name alone, None for a picture outside every junk folder."""
    if any(is_junk_folder(part) for part in path.parts[:-1]):
        return "inside a hidden or __MACOSX folder"
    name = path.name.casefold()
    if name in JUNK_NAMES or name.startswith("._"):
        return "left by an operating system"
    if name == "data.csv":
        return "clinical table, not joined"
    return None if _PICTURE.search(name) else NOT_A_SLICE


def is_junk_folder(name: str) -> bool:
    """True for ``__MACOSX`` and hidden folders: nothing below them is a slice."""
    return name.startswith(".") or name.casefold() == "__macosx"


def shortened(names: Sequence[str]) -> str:
    """The first three names of a list, for a message, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(shown, names[:3]))}{more}"


def folder_name(folder: Path) -> str:
    """The name of a folder, also of one that is given as ``.`` or ``..``."""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  # Path.absolute keeps the dots


def by_preference(file: SliceFile) -> tuple[int, str]:
    """Sort key that puts the copy to keep first: the shallowest path, then the lexically smallest."""
    return len(file.path.parts), str(file.path)


def missing_numbers(numbers: Iterable[int]) -> list[int]:
    """Numbers between the smallest and the largest that are absent, ascending."""
    present = set(numbers)
    return sorted(set(range(min(present, default=0), max(present, default=0))) - present)


def number_list(numbers: Iterable[int], limit: int = 20) -> str:
    """Numbers for a message, ``1, 2, 3``, cut after ``limit`` of them."""
    items = sorted(numbers)
    tail = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + tail


def case_collisions(patients: Iterable[str]) -> list[list[str]]:
    """Groups of ids that differ only in case: their volumes would overwrite one another on many file systems."""
    groups: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        groups[unicodedata.normalize("NFC", patient.casefold())].add(patient)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def person(patient: str) -> str:
    """The person behind a patient id, which may be an exam by TCGA, BIDS or BraTS; else the id itself.

    Example:
        >>> person("TCGA_HT_7616_19940813"), person("sub-01_ses-2"), person("BraTS-GLI-00001-000")
        ('TCGA_HT_7616', 'sub-01', 'BraTS-GLI-00001')
    """
    match = _TCGA.match(patient) or _EXAM.match(patient)
    return match["person"] if match else patient


def institution(patient: str) -> str:
    """The second token of a TCGA id (tissue source site), empty for other ids."""
    match = _TCGA.match(patient)
    return match["institution"] if match else ""
