"""Read patient, slice number, kind and person from file names. No function opens a file."""

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
    """One TIFF, PNG or JPEG file with a slice, known only by its name.

    Args:
        path: The path, relative to the source folder.
        patient: The patient's id.
        number: Number of the slice.
        kind: Whether the file is an image or a mask.
    """

    path: PurePosixPath
    patient: str
    number: int
    kind: Literal["image", "mask"]


MAX_ID_CHARACTERS = 100
MAX_ID_BYTES = 200
"""Longest patient id. A file name has at most 255 bytes, with ``_image.nii.gz`` and the mark of a temporary file."""

RESERVED_IDS = frozenset({"volumes", "manifest.json"})
"""Names of files in the manifest's folder. MONAI would read such an id in a datalist item as a path."""

JUNK_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
NOT_A_SLICE = "not a slice"

_PICTURE = re.compile(r"\.tiff?\Z|_[0-9]{1,6}(_mask)?\.(png|jpe?g)\Z", re.IGNORECASE)
"""Names of slices: any TIFF, but a PNG or JPEG only with a slice number, because many folders hold other pictures."""
_SLICE = re.compile(r"(?P<patient>.+)_(?P<number>[0-9]{1,6})(?P<mask>_mask)?\.(?i:tiff?|png|jpe?g)\Z", re.DOTALL)
_TCGA = re.compile(r"TCGA_(?P<institution>[A-Z0-9]{2})_[A-Z0-9]{4}_[0-9]{8}\Z")


def parse_name(path: PurePosixPath) -> SliceFile | None:
    """Patient, number and kind of a slice file; None if the name is not that of a picture.

    Args:
        path: The path, relative to the source folder.

    Raises:
        PipelineError: The name is that of a picture, but without a slice number or with a patient id that is refused.

    Examples:
        >>> file = parse_name(PurePosixPath("A/A_3_mask.tif"))
        >>> file.patient, file.number, file.kind
        ('A', 3, 'mask')
    """
    if not _PICTURE.search(path.name):
        return None
    match = _SLICE.match(path.name)
    if match is None:
        raise PipelineError(
            "the name has no slice number (expected <patient>_<number>.tif or <patient>_<number>_mask.tif). "
            "Rename the file or move it out of the folder."
        )
    if not str(path).isprintable():
        raise PipelineError(
            "the path has control or undecodable characters (expected printable UTF-8). Rename the file or its folder."
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
    """What is wrong with a patient id; empty if it is valid. Ids become part of file names and tables."""
    if not patient:
        return "is empty"
    if len(patient) > MAX_ID_CHARACTERS or len(patient.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return "is too long"
    if patient.casefold() in RESERVED_IDS:
        return "is a name that the manifest's folder uses itself"
    if unicodedata.category(patient[0])[0] not in "LN":
        return "starts with a character that is not a letter or digit"
    odd = sorted({c for c in patient if c not in "_-. " and unicodedata.category(c)[0] not in "LNM"})
    if odd:
        return "contains " + ", ".join(repr(shown(c)) for c in odd)
    return "ends in a space or dot" if patient[-1] in " ." else ""


def skip_reason(path: PurePosixPath) -> str | None:
    """Why a file is skipped because of its name or folder; None for a picture that may be a slice."""
    if any(is_junk_folder(part) for part in path.parts[:-1]):
        return "inside a hidden or __MACOSX folder"
    name = path.name.casefold()
    if name in JUNK_NAMES or name.startswith("._"):
        return "written by an operating system"
    if name == "data.csv":
        return "clinical table, not used"
    return None if _PICTURE.search(name) else NOT_A_SLICE


def is_junk_folder(name: str) -> bool:
    """Whether a folder is hidden or ``__MACOSX``. No file in such a folder is a slice."""
    return name.startswith(".") or name.casefold() == "__macosx"


def shortened(names: Sequence[str]) -> str:
    """The first three names of a list, and how many more there are, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(shown, names[:3]))}{more}"


def folder_name(folder: Path) -> str:
    """The name of a folder, also if it is given as ``.`` or ``..``."""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  # Path.absolute keeps the dots


def by_preference(file: SliceFile) -> tuple[int, str]:
    """Sort key that puts the copy to keep first: the path with the fewest folders, then the first by alphabet."""
    return len(file.path.parts), str(file.path)


def missing_numbers(numbers: Iterable[int]) -> list[int]:
    """The missing numbers between the smallest and the largest of ``numbers``, in ascending order."""
    present = set(numbers)
    return sorted(set(range(min(present, default=0), max(present, default=0))) - present)


def number_list(numbers: Iterable[int], limit: int = 20) -> str:
    """Numbers as text for a message, such as ``1, 2, 3``, with at most ``limit`` of them."""
    items = sorted(numbers)
    tail = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + tail


def case_collisions(patients: Iterable[str]) -> list[list[str]]:
    """Groups of ids that differ only in upper and lower case. Many file systems would mix up their volumes."""
    groups: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        groups[unicodedata.normalize("NFC", patient.casefold())].add(patient)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def institution(patient: str) -> str:
    """The institution of a TCGA id, which is its second part (tissue source site); empty for other ids."""
    match = _TCGA.match(patient)
    return match["institution"] if match else ""
