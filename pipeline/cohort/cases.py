"""Find the patients, each with image and mask, among volume files by names, folders and ``dataset.json``.

These layouts are known:

- BraTS: ``X-t2f`` or ``X_flair``, T1 beside it, ``X-seg``.
- BIDS: ``sub-X_FLAIR``, with masks (``_mask``, ``_dseg``) beside it or in ``derivatives/``. If the name of a mask says
  what it shows, for example with ``label-``, it must name lesion, tumor, abnormality or FLAIR.
- nnU-Net: ``imagesTr/X_0000`` and ``labelsTr/X``. ``channel_names`` in ``dataset.json`` say which channel is FLAIR.
- Decathlon: pairs that ``dataset.json`` lists.
- Pairs by name: ``X_image`` and ``X_label`` or ``X_mask``; ``images/X`` and ``labels/X``.

All files of a patient lie in one folder, in folders of the same BIDS data set, or in ``images`` and ``labels``. Names
that are not clear are reported as errors. The program does not guess.
"""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.cohort.listing import Listing
from pipeline.cohort.names import NOT_A_SLICE, folder_name, id_fault
from pipeline.cohort.sequences import (
    BIDS_ID,
    MASK_KINDS,
    Place,
    exams,
    folder_of,
    place_of,
    preferred,
    role_of,
    without_derived,
)
from pipeline.errors import PipelineError
from pipeline.imaging.formats import case_of, is_volume_name, stem_of
from pipeline.scripts.faults import shown
from pipeline.scripts.files import content_of
from pipeline.scripts.manifest import (
    DATASET_NAME,
    MAX_MANIFEST_BYTES,
    SECTIONS,
    Channels,
    channel_role,
    channels_of,
)
from pipeline.scripts.sequences import is_t1_flair

EXPECTED = {
    "mask": "a file named as by BraTS, BIDS, nnU-Net or in a pair, such as X_seg, X_mask or labels/X",
    "FLAIR": "a file such as X_flair, X-t2f, X_FLAIR, X_image or images/X",
}
_OTHER_CHANNEL = "channel {}, not FLAIR or T1"
_LABEL = re.compile(r"(?:(?P<case>.+?)[-_. ])?(?:seg|dseg|segmentation|mask|labels?)", re.IGNORECASE)
_BRAIN = re.compile(r"(?:.*[-_. ])?[a-z0-9]*brain(?!tumou?r|lesion)[a-z]*(?:[-_. ]parenchyma)?", re.IGNORECASE)
"""Names of masks of the brain, up to ``_mask``. The last part says what a mask shows, others may be the patient's."""
_LESION = re.compile(r"(?:lesion|tumou?r)(?!fill)|abnormal", re.IGNORECASE)
_OF_THE_IMAGE = {"sub", "ses", "acq", "ce", "rec", "run", "space", "res", "den", "part", "echo", "inv", "flip", "mt"}
"""Entities of BIDS that describe the image. All others say what a mask shows."""
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """The files of one patient. All paths are relative to the source folder.

    Args:
        files: Path by role: ``flair``, ``pre``, ``post`` and ``label``, or ``image`` if one file holds all sequences.
        paths: Every file of the patient, including separate files with the voxels of a header.
        channels: Names of the channels of ``image`` by number; empty if they are not known.
        fault: Why the patient cannot be used; empty if it can.
    """

    files: Mapping[str, str]
    paths: tuple[str, ...]
    channels: Channels = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Cases:
    """The patients that ``find_cases`` found in a folder. All paths are relative to it.

    Args:
        cases: Files of each patient, by patient id.
        skipped: Why a file is not used, by path.
        faults: What is wrong with a file, by path.
        owners: Patient id and the file's role as the end of a name, such as ``_flair.nii.gz``, by path.
    """

    cases: Mapping[str, Case] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    owners: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Assigned:
    """What is known about one file."""

    path: str
    patient: str
    role: str
    place: Place
    channels: Channels = field(default_factory=dict)


HEADER_SUFFIXES = (".mhd", ".nhdr")
"""Suffixes of headers whose voxels lie in a separate file."""


def find_cases(root: Path, listing: Listing, *, skip_unpaired: bool = False) -> Cases:
    """The patients among the volume files of a folder. Only headers and ``dataset.json`` are opened.

    Args:
        root: The source folder.
        listing: All files of the source folder.
        skip_unpaired: Skip images without a mask and masks without an image.
    """
    free = [path for path, reason in listing.skipped.items() if reason == NOT_A_SLICE]
    volumes = {path for path in free if is_volume_name(path)}
    if not volumes:
        return Cases()
    described = _described(root, [path for path in free if PurePosixPath(path).name == DATASET_NAME], volumes)
    rest = volumes - {each.path for each in described.assigned} - described.skipped.keys()
    by_name, nameless = _assigned_by_names(sorted(rest), described.channels)
    own_name = folder_name(root)
    assigned = [
        replace(each, patient=unicodedata.normalize("NFC", each.patient or own_name))
        for each in (*described.assigned, *by_name)
    ]
    cases, left_out = _grouped(assigned, skip_unpaired=skip_unpaired)
    cases = {name: _with_data_files(root, case, listing) for name, case in cases.items()}
    used = {path for case in cases.values() for path in case.paths}
    skipped = {path: "not a volume" for path in free if path not in volumes}
    skipped |= described.skipped | nameless | left_out
    owners = {path: (name, f"_data{_suffix(path)}") for name, case in cases.items() for path in case.paths}
    owners |= {each.path: (each.patient, f"_{each.role}{_suffix(each.path)}") for each in assigned}
    apart = used | described.faults.keys()
    return Cases(cases, {path: why for path, why in skipped.items() if path not in apart}, described.faults, owners)


@dataclass(frozen=True)
class _Described:
    """The content of all files ``dataset.json``.

    Args:
        assigned: The files that they list.
        skipped: Why a file is not used, by path.
        faults: What is wrong with a ``dataset.json``, by its path.
        channels: Names of the channels, by folder.
    """

    assigned: list[_Assigned] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)


def _described(root: Path, paths: Sequence[str], volumes: Collection[str]) -> _Described:
    found = _Described()
    for path in paths:
        folder = posixpath.dirname(path)
        try:
            content = _read_json(root / path)
            channels = channels_of(content)
            assigned, skipped = _listed(content, folder, volumes, channels)
        except PipelineError as error:
            found.faults[path] = str(error)
        else:
            found.assigned.extend(assigned)
            found.channels[folder] = channels
            found.skipped.update(skipped | {path: "describes the folder"})
    return found


def _suffix(path: str) -> str:
    name = PurePosixPath(path).name
    return (name[len(stem_of(name)) :] or PurePosixPath(path).suffix).lower()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return {**json.loads(content_of(path, MAX_MANIFEST_BYTES))}
    except (OSError, ValueError, TypeError) as error:
        raise PipelineError(
            f"no JSON object ({shown(error)}). Restore it, or remove it to pair files by name."
        ) from error


def _listed(
    content: Mapping[str, Any], folder: str, volumes: Collection[str], channels: Channels
) -> tuple[list[_Assigned], dict[str, str]]:
    """The files that a Decathlon datalist names, and why a file is not used, by path."""
    assigned: list[_Assigned] = []
    skipped: dict[str, str] = {}
    for section in SECTIONS:
        items = content.get(section, [])
        if not isinstance(items, list):
            raise PipelineError(f"{section!r} is not a list (expected a list of image and label). Correct the file.")
        for item in items:
            pair = item if isinstance(item, dict) else {"image": item}
            image: Any = pair.get("image")
            label: Any = pair.get("label")
            names: list[Any] = image if isinstance(image, list) else [image]
            if not names or not all(isinstance(name, str) for name in (*names, "" if label is None else label)):
                raise PipelineError(f"{shown(item)[:100]} in {section!r} (expected image and label). Correct the file.")
            images = [path for name in names for path in _existing(folder, name, volumes)]
            if label is None:
                skipped |= dict.fromkeys(images, f"listed in {section!r} without label")
                continue
            patient = _patient(PurePosixPath(posixpath.normpath(names[0])))
            place = (folder, DATASET_NAME)
            assigned.append(_Assigned(_existing(folder, label, volumes)[0], patient, "label", place))
            if len(images) == 1:
                assigned.append(_Assigned(images[0], patient, "image", place, channels))
                continue
            for number, path in enumerate(images):
                if role := channel_role(channels.get(number, "")):
                    assigned.append(_Assigned(path, patient, role, place))
                else:
                    skipped[path] = _OTHER_CHANNEL.format(channels.get(number, number))
    twice = [path for path, count in Counter(each.path for each in assigned).items() if count > 1]
    if twice:
        raise PipelineError(f"names {', '.join(sorted(twice)[:5])} twice. Remove one of the two.")
    return assigned, skipped


def _existing(folder: str, name: str, volumes: Collection[str]) -> list[str]:
    """The file that a datalist names, or one file for each channel as in nnU-Net."""
    path = posixpath.normpath(posixpath.join(folder, name))
    if path in volumes:
        return [path]
    stem = stem_of(path)
    numbered = [f"{stem}_{number:04d}{path[len(stem) :]}" for number in range(100)]
    found = [each for each in numbered if each in volumes]
    if not found or found != numbered[: len(found)]:
        raise PipelineError(f"names {shown(name)}, which is not in the folder. Restore it, or correct the file.")
    return found


def _assigned_by_names(
    paths: Iterable[str], described: Mapping[str, Channels]
) -> tuple[list[_Assigned], dict[str, str]]:
    """Patient and role of each file by its name and folder, and why a file is skipped, by path."""
    assigned: list[_Assigned] = []
    others: list[PurePosixPath] = []
    skipped: dict[str, str] = {}
    for path in map(PurePosixPath, paths):
        label = _LABEL.fullmatch(stem_of(path.name))
        if label and _is_of_the_brain(stem_of(path.name), label["case"] or ""):
            skipped[str(path)] = "a mask of the brain"
        elif label and (part := _part_of(path)) and not _names_lesion(path):
            skipped[str(path)] = f"a mask of {part}, not of a lesion"
        elif label:
            case = label["case"]
            patient = _patient(path.with_name(f"{case}.nii"), of_mask=True) if case else path.parent.name
            assigned.append(_Assigned(str(path), patient, "label", place_of(path)))
        elif folder_of(path)[0] in MASK_KINDS:
            assigned.append(_Assigned(str(path), _patient(path, of_mask=True), "label", place_of(path)))
        else:
            others.append(path)
    labelled = {(each.place, each.patient) for each in assigned}
    for path in others:
        channels = next((described[str(up)] for up in _folders(path) if str(up) in described), {})
        found = _image_assigned(path, labelled, channels)
        if isinstance(found, _Assigned):
            assigned.append(found)
        else:
            skipped[str(path)] = found
    return assigned, skipped


def _is_of_the_brain(stem: str, case: str) -> bool:
    """Whether the name of a mask says that it shows the brain. A patient's id may hold the word, too."""
    if bids := BIDS_ID.match(stem):
        return "brain" in stem[bids.end() :].lower()
    return bool(_BRAIN.fullmatch(case))


def _part_of(path: PurePosixPath) -> str:
    """The entities of a BIDS name that say what a mask shows, such as ``label-GM``; empty if there are none."""
    stem = stem_of(path.name)
    entities = [part for part in stem.split("_") if "-" in part] if BIDS_ID.match(stem) else []
    return "_".join(part for part in entities if part.split("-")[0].lower() not in _OF_THE_IMAGE)


def _names_lesion(path: PurePosixPath) -> bool:
    """Whether the name of a mask says that it shows a lesion.

    FLAIR counts only in ``label-`` if there is one. In ``desc-`` it may name the image that the mask was drawn on.
    """
    part = _part_of(path).lower()
    label = next((entity for entity in part.split("_") if entity.startswith("label-")), part)
    return bool(_LESION.search(part)) or "flair" in label


def _folders(path: PurePosixPath) -> list[PurePosixPath | str]:
    """The folders of a path, the nearest one first. The source folder is an empty text."""
    return [*list(path.parents)[:-1], ""]


def _patient(path: PurePosixPath, *, of_mask: bool = False) -> str:
    """The patient of a file: ``X`` for the names ``X``, ``X_flair`` and ``X_image``.

    Args:
        path: The file.
        of_mask: Whether it is a mask, in whose name a plain T1 may be a time point and belongs to the id.
    """
    stem = stem_of(path.name)
    if bids := BIDS_ID.match(stem):
        return bids[0]
    by_name = role_of(Path(path))
    is_time_point = of_mask and stem.lower().endswith("t1")
    return by_name[0] if by_name and not is_time_point else case_of(stem)


def _image_assigned(
    path: PurePosixPath, labelled: Collection[tuple[Place, str]], channels: Channels
) -> _Assigned | str:
    """The patient and role of an image file, or why it is skipped."""
    stem = stem_of(path.name)
    kind, part = folder_of(path)
    place = place_of(path)
    numbered = _NUMBERED.fullmatch(stem) if kind == "image" and (place, stem) not in labelled else None
    by_name = role_of(Path(path))
    if numbered:
        number = int(numbered["channel"])
        role = channel_role(channels.get(number, "")) if channels else f"channel {number}"
        found = _Assigned(str(path), numbered["case"], role, place) if role else None
        reason = _OTHER_CHANNEL.format(channels.get(number, number))
    elif by_name:
        found = _Assigned(str(path), *by_name, place)
    elif is_t1_flair(stem):
        found, reason = None, "its name says both T1 and FLAIR"
    elif kind == "image" or case_of(stem) != stem or stem.lower() == "image":
        patient = path.parent.name if stem.lower() == "image" else _patient(path)
        found = _Assigned(str(path), patient, "image", place, channels)
    else:
        found, reason = None, "its name says neither FLAIR, T1 nor mask"
    if found and part in ("ts", "test") and (place, found.patient) not in labelled:
        return "test image without label"
    return found or reason


def _grouped(assigned: Sequence[_Assigned], *, skip_unpaired: bool) -> tuple[dict[str, Case], dict[str, str]]:
    """Files grouped by patient, and why a file is not used, by path."""
    channels = {each.path: each.channels for each in assigned}
    files = ((each.patient, each.place, each.role, PurePosixPath(each.path)) for each in assigned)
    cases: dict[str, Case] = {}
    skipped: dict[str, str] = {}
    for patient, places in sorted(exams(files).items()):
        found: list[Case] = []
        for roles in places.values():
            case, lacking, unused = _case_of(patient, roles)
            skipped |= unused
            if lacking and skip_unpaired:
                skipped |= dict.fromkeys(case.paths, f"unpaired: patient {patient} has no {lacking}")
            else:
                image = case.files.get("image", "")
                found.append(replace(case, channels=channels.get(image, {})))
        if len(found) > 1:
            cases[patient] = _in_several_folders(patient, found)
        elif found:
            cases[patient] = found[0]
    return cases, skipped


def _case_of(patient: str, roles: Mapping[str, Sequence[PurePosixPath]]) -> tuple[Case, str, dict[str, str]]:
    """The files of one place as a case, what the case lacks, and why a file is not used, by path."""
    chosen: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    for role, paths in roles.items():
        naming = [path for path in paths if _names_lesion(path)]
        kept, passed_over = (
            preferred(paths, naming, "does not name the lesion") if role == "label" else without_derived(paths)
        )
        chosen[role] = [str(path) for path in kept]
        skipped |= {str(path): why for path, why in passed_over.items()}
    everything = tuple(sorted(path for group in chosen.values() for path in group))
    files = {role: group[0] for role, group in chosen.items()}
    fault = _naming_fault(patient, chosen, files)
    lacking = "" if fault else _lacking(files)
    if lacking:
        expected = EXPECTED[lacking]
        fault = f"patient {patient} has no {lacking} (expected {expected}). Add it, or pass --skip-unpaired."
    return Case(files, everything, fault=fault), lacking, skipped


def _in_several_folders(patient: str, found: Sequence[Case]) -> Case:
    """A faulty case: two patients have one name, or the files of one patient lie in unrelated folders."""
    first = sorted(case.paths[0] for case in found)
    paths = tuple(sorted(path for case in found for path in case.paths))
    listed = [*first[:3], f"{len(first) - 3} more"] if len(first) > 4 else first
    fault = (
        f"files of patient {patient} in several folders: {', '.join(listed[:-1])} and {listed[-1]}. "
        "Put the files of one exam into one folder, and rename or remove those of others."
    )
    return Case({}, paths, fault=_odd_name(patient) or fault)


def _odd_name(patient: str) -> str:
    odd = id_fault(patient)
    return f"the name {shown(patient)!r} {odd}. Rename the files." if odd else ""


def _naming_fault(patient: str, roles: Mapping[str, Sequence[str]], files: Mapping[str, str]) -> str:
    """Why the names do not show which file is which; empty if they do."""
    if odd := _odd_name(patient):
        return odd
    if unknown := [role for role in files if role.startswith("channel")]:
        return (
            f"{', '.join(unknown)} of one patient, and nothing shows which is FLAIR. "
            f'Write {DATASET_NAME} with channel_names, such as {{"channel_names": {{"0": "FLAIR"}}}}.'
        )
    rivals = [paths for paths in roles.values() if len(paths) > 1]
    if "image" in files and {"flair", "pre", "post"} & files.keys():
        rivals.append([path for role, path in files.items() if role != "label"])
    if rivals:
        return f"it is not clear which file is which: {' and '.join(rivals[0])}. Rename or remove all but one."
    return ""


def _lacking(files: Mapping[str, str]) -> str:
    if "label" not in files:
        return "mask"
    return "" if {"flair", "image"} & files.keys() else "FLAIR"


def _with_data_files(root: Path, case: Case, listing: Listing) -> Case:
    """The case, extended by the files with the voxels of MHD and NHDR headers."""
    more = [
        data
        for path in case.paths
        if path.lower().endswith(HEADER_SUFFIXES) and (data := data_file(root, path)) in listing.stamps
    ]
    return Case(case.files, (*case.paths, *more), case.channels, case.fault) if more else case


def data_file(root: Path, path: str) -> str:
    """The path, relative to ``root``, of the file with the voxels of a header; empty if the header names none.

    Args:
        root: The source folder.
        path: The header's path, relative to ``root``.
    """
    try:
        with (root / path).open("rb") as file:
            named = _DATA_FILE.search(file.read(2**16))
    except OSError:
        return ""  # the error is reported when the file is read
    return (
        posixpath.normpath(posixpath.join(posixpath.dirname(path), named[1].decode(errors="replace"))) if named else ""
    )
