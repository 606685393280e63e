"""Find the sequence, patient and exam of a volume file by its name: BraTS, BIDS and plain names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from pipeline.cohort.names import folder_name
from pipeline.imaging.formats import stem_of
from pipeline.scripts.manifest import CHANNELS
from pipeline.scripts.sequences import is_t1_flair, sequence_of

BIDS_ID = re.compile(r"sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?(?=_|\Z)", re.IGNORECASE)
DERIVATIVES = "derivatives"
FOLDER = re.compile(
    r"(?P<kind>image|label|mask)s?[-_]?(?P<part>tr|ts|val?|train(?:ing)?|test|validation)?", re.IGNORECASE
)
"""Names of folders that hold only images or only masks, such as ``imagesTr`` and ``labelsTr``."""
MASK_KINDS = ("label", "mask")

Place = tuple[str, ...]
"""What files of one exam have in common, apart from the patient."""
File = TypeVar("File")
FilePath = TypeVar("FilePath", bound=PurePath)


@dataclass(frozen=True)
class Sequences:
    """The sequences of one patient, each in one volume file.

    Args:
        flair: Path of the FLAIR file.
        pre: Path of the pre-contrast T1 file; None without one.
        post: Path of the post-contrast T1 file; None without one.
    """

    flair: Path
    pre: Path | None = None
    post: Path | None = None

    @property
    def missing(self) -> list[str]:
        """A line of text if exactly one T1 is missing, else nothing."""
        absent = [name for name, path in ((CHANNELS[0], self.pre), (CHANNELS[2], self.post)) if not path]
        return [f"no {absent[0]} T1: FLAIR is used instead"] if len(absent) == 1 else []


def role_of(path: Path) -> tuple[str, str] | None:
    """The patient and sequence in a file's name, such as ``("BraTS-GLI-00001-000", "flair")``.

    Args:
        path: The file. If its name says only the sequence, as in ``flair.nii.gz``, the folder names the patient.

    Returns:
        The patient, and ``flair``, ``pre`` or ``post``; None if the name says none of these.

    Examples:
        >>> role_of(Path("sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz"))
        ('sub-01', 'post')
    """
    found = sequence_of(stem_of(path.name))
    return (found[0] or path.parent.name, found[1]) if found else None


def folder_of(path: PurePath) -> tuple[str, str]:
    """What a file is by its folders: image, label or mask, and the part, such as ``tr``; empty texts if unknown.

    The nearest folder whose name says it decides.
    """
    matches = (FOLDER.fullmatch(part) for part in reversed(path.parts[:-1]))
    match = next(filter(None, matches), None)
    return (match["kind"].lower(), (match["part"] or "").lower()) if match else ("", "")


def place_of(path: PurePath) -> Place:
    """The place of a file. Files of one patient with the same place may belong to one exam.

    In general the place is the folder. Raw and derived files of one BIDS data set share a place, because their names
    and folders say subject and session. Folders such as ``imagesTr`` and ``labelsTr`` also share a place.
    """
    folders = path.parts[:-1]
    data_set = _data_set_of(folders, stem_of(path.name))
    if data_set is not None:
        return data_set
    for index, folder in reversed(list(enumerate(folders))):
        if match := FOLDER.fullmatch(folder):
            return (*folders[:index], f"*{(match['part'] or '').lower()}", *folders[index + 1 :])
    return folders


def _data_set_of(folders: Place, stem: str) -> Place | None:
    """The BIDS data set of a file; None if the file lies neither in ``derivatives`` nor in a folder as in BIDS."""
    named = BIDS_ID.match(stem)
    entity = [folder.lower().startswith(("sub-", "ses-")) for folder in folders]
    first = next((i for i, folder in enumerate(folders) if entity[i] or folder == DERIVATIVES), None)
    if named is None or first is None:
        return None
    below = folders[entity.index(True) :] if True in entity else ()
    if not {folder.lower() for folder in below} <= {*named[0].lower().split("_"), "anat"}:
        return folders
    return folders[: first - 1] if folders[:first][-1:] == ("rawdata",) else folders[:first]


def exams(files: Iterable[tuple[str, Place, str, File]]) -> dict[str, dict[Place, dict[str, list[File]]]]:
    """Files grouped by patient, place and role. The files of one patient and place may belong to one exam.

    Args:
        files: Patient, place, role and file of each file.
    """
    found: dict[str, dict[Place, dict[str, list[File]]]] = {}
    for patient, place, role, file in files:
        found.setdefault(patient, {}).setdefault(place, {}).setdefault(role, []).append(file)
    return found


def without_derived(paths: Sequence[FilePath]) -> tuple[list[FilePath], dict[FilePath, str]]:
    """The one raw image among several files, or all files if there is not exactly one.

    Returns:
        The files to use, and why a file is not used, by file.
    """
    return preferred(paths, [path for path in paths if DERIVATIVES not in path.parts], "derived from a raw image")


def preferred(
    paths: Sequence[FilePath], chosen: Sequence[FilePath], reason: str
) -> tuple[list[FilePath], dict[FilePath, str]]:
    """The file in ``chosen`` if there is exactly one, else all ``paths``.

    Args:
        paths: Files that could be the same image.
        chosen: Those among them that one criterion prefers.
        reason: The criterion, for the message about files that are not used.

    Returns:
        The files to use, and why a file is not used, by file.
    """
    if len(chosen) != 1:
        return list(paths), {}
    return list(chosen), {path: f"{reason}, {chosen[0]} is used" for path in paths if path != chosen[0]}


def group(
    paths: Iterable[Path], root: Path | None = None
) -> tuple[dict[str, Sequences], dict[Path, str], dict[str, str]]:
    """The sequences of each patient, found by the names of volume files.

    Args:
        paths: The volume files.
        root: The source folder; None for the folder that holds all files.

    Returns:
        Sequences by patient, why a file is not used by file, and the files that are not clear by patient.
    """
    files = sorted(paths)
    base = root or (os.path.commonpath([path.parent for path in files]) if files else "")
    named: list[tuple[str, Place, str, Path]] = []
    skipped: dict[Path, str] = {}
    for path in files:
        role = role_of(Path(folder_name(path.parent), path.name))
        if folder_of(path.relative_to(base))[0] in MASK_KINDS:
            skipped[path] = "in a folder of masks"
        elif role is None:
            mixed = is_t1_flair(stem_of(path.name))
            skipped[path] = "its name says both T1 and FLAIR" if mixed else "its name says neither FLAIR nor T1"
        else:
            named.append((unicodedata.normalize("NFC", role[0]), place_of(path.relative_to(base)), role[1], path))
    patients: dict[str, Sequences] = {}
    unclear: dict[str, str] = {}
    for patient, places in exams(named).items():
        if not any("flair" in roles for roles in places.values()):
            lone = [path for roles in places.values() for group in roles.values() for path in group]
            skipped |= dict.fromkeys(lone, f"no FLAIR of {patient} beside it")
            continue
        several = [next(iter(roles.values()))[0] for roles in places.values()]
        roles = next(iter(places.values()))
        for name, group in roles.items():
            roles[name], unused = without_derived(group)
            skipped |= unused
        rivals = [several] if len(several) > 1 else [group for group in roles.values() if len(group) > 1]
        if rivals:
            unclear[patient] = " and ".join(map(str, rivals[0]))
        else:
            patients[patient] = Sequences(**_first_of(roles))
    return patients, skipped, unclear


def _first_of(roles: Mapping[str, list[Path]]) -> dict[str, Path]:
    return {role: files[0] for role, files in roles.items()}
