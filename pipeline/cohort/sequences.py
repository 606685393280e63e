"""Which sequence a volume file holds, told from its name: BraTS, BIDS and plain names; which files are of one exam."""

from __future__ import annotations

import os
import re
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
"""Folders that hold images or masks alone, such as ``imagesTr`` and ``labelsTr``."""

Place = tuple[str, ...]
"""What files that may be of one exam have in common beside the patient."""
File = TypeVar("File")
FilePath = TypeVar("FilePath", bound=PurePath)


@dataclass(frozen=True)
class Sequences:
    """The sequences of one patient, each a volume file; None for one that is not there."""

    flair: Path
    pre: Path | None = None
    post: Path | None = None

    @property
    def missing(self) -> list[str]:
        """A line where one T1 is there and the other is not."""
        absent = [name for name, path in ((CHANNELS[0], self.pre), (CHANNELS[2], self.post)) if not path]
        return [f"no {absent[0]} T1: FLAIR stands in for it"] if len(absent) == 1 else []


def role_of(path: Path) -> tuple[str, str] | None:
    """Patient and sequence that a file's name tells, such as ``("BraTS-GLI-00001-000", "flair")``.

    Args:
        path: The file. The folder names the patient where the name tells the sequence alone, as ``flair.nii.gz``.

    Returns:
        The patient, and ``flair``, ``pre`` or ``post``; None where the name tells no sequence of these.

    Example:
        >>> role_of(Path("sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz"))
        ('sub-01', 'post')
    """
    told = sequence_of(stem_of(path.name))
    return (told[0] or path.parent.name, told[1]) if told else None


def place_of(path: PurePath) -> Place:
    """The place of a file, the same for files of one patient that may be of one exam.

    That is the folder, but one for the raw and derived files of a BIDS data set, whose names and folders tell subject
    and session, and one for folders such as ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``.
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
    """The BIDS data set of a file; None where it lies neither in ``derivatives`` nor as BIDS has it."""
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
    """Patient -> place -> role -> files, of (patient, place, role, file): the files of one place may be of one exam."""
    found: dict[str, dict[Place, dict[str, list[File]]]] = {}
    for patient, place, role, file in files:
        found.setdefault(patient, {}).setdefault(place, {}).setdefault(role, []).append(file)
    return found


def without_derived(paths: Sequence[FilePath]) -> tuple[list[FilePath], dict[FilePath, str]]:
    """The raw image of several, all where there is none or more than one; path -> why it is not used."""
    return preferred(paths, [path for path in paths if DERIVATIVES not in path.parts], "derived from a raw image")


def preferred(
    paths: Sequence[FilePath], chosen: Sequence[FilePath], reason: str
) -> tuple[list[FilePath], dict[FilePath, str]]:
    """The one chosen, all paths where it is not one; path -> why it is not used."""
    if len(chosen) != 1:
        return list(paths), {}
    return list(chosen), {path: f"{reason}, {chosen[0]} is used" for path in paths if path != chosen[0]}


def group(paths: Iterable[Path]) -> tuple[dict[str, Sequences], dict[Path, str], dict[str, str]]:
    """Volume files as patients.

    Args:
        paths: Volume files.

    Returns:
        Patient -> sequences; file -> why it is not used; patient -> why its files do not tell which is which.
    """
    files = sorted(paths)
    base = os.path.commonpath([path.parent for path in files]) if files else ""
    told: list[tuple[str, Place, str, Path]] = []
    skipped: dict[Path, str] = {}
    for path in files:
        role = role_of(Path(folder_name(path.parent), path.name))
        if role is None:
            mixed = is_t1_flair(stem_of(path.name))
            skipped[path] = "its name tells T1 beside FLAIR" if mixed else "its name tells neither FLAIR nor T1"
        else:
            told.append((role[0], place_of(path.relative_to(base)), role[1], path))
    patients: dict[str, Sequences] = {}
    unclear: dict[str, str] = {}
    for patient, places in exams(told).items():
        if not any("flair" in roles for roles in places.values()):
            lone = [path for roles in places.values() for group in roles.values() for path in group]
            skipped |= dict.fromkeys(lone, f"no FLAIR of {patient} beside it")
            continue
        several = [next(iter(roles.values()))[0] for roles in places.values()]
        roles = next(iter(places.values()))
        for name, group in roles.items():
            roles[name], passed_over = without_derived(group)
            skipped |= passed_over
        rivals = [several] if len(several) > 1 else [group for group in roles.values() if len(group) > 1]
        if rivals:
            unclear[patient] = " and ".join(map(str, rivals[0]))
        else:
            patients[patient] = Sequences(**_first_of(roles))
    return patients, skipped, unclear


def _first_of(roles: Mapping[str, list[Path]]) -> dict[str, Path]:
    return {role: files[0] for role, files in roles.items()}
