"""Divide patients into sections and folds. All exams of one person get the same section and fold."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cohort.manifest import PatientRecord
from pipeline.cohort.names import institution
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import sha256_bytes
from pipeline.scripts.manifest import SECTIONS, person

REFERENCE = Path(__file__).with_name("reference_split.json")
DRAWN = ("random", "stratified")


@dataclass(frozen=True)
class Lists:
    """The patient ids of a split file.

    Args:
        sections: Patient ids by section.
        folds: Patient ids of each fold; empty if the file names no folds.
    """

    sections: dict[str, list[str]] = field(default_factory=dict)
    folds: list[list[str]] = field(default_factory=list)

    def sha256(self) -> str | None:
        """The SHA-256 of the lists; None without lists."""
        content = {**self.sections, **({"folds": self.folds} if self.folds else {})}
        return sha256_bytes(json.dumps(content, sort_keys=True).encode()) if content else None


@dataclass(frozen=True)
class SplitChoice:
    """The split that the user asked for.

    Args:
        method: ``reference``, ``random``, ``stratified``, ``none`` or ``file``.
        seed: Seed of random and stratified splits and of folds, 0 or more.
        validation_fraction: Share of persons for validation, from 0 to below 1.
        test_fraction: Share of persons for the test, from 0 to below 1.
        folds: Number of folds; None for no folds.
        listed: The patient ids of the sections and folds, for ``reference`` and ``file``.
    """

    method: str
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    folds: int | None = None
    listed: Lists = field(default_factory=Lists)


@dataclass(frozen=True)
class Division:
    """The section and fold of each patient.

    Args:
        sections: Section by patient id.
        folds: Fold, from 0, by patient id; empty without folds.
        warning: What is unusual about the split; empty if nothing is.
    """

    sections: dict[str, str]
    folds: dict[str, int]
    warning: str = ""


def choose_split(
    split: str, seed: int = 0, validation_fraction: float = 0.1, test_fraction: float = 0.0, folds: int | None = None
) -> SplitChoice:
    """The checked options of a split, with the lists of ids if the split has them.

    Args:
        split: ``reference``, ``random``, ``stratified``, ``none``, or the path of a JSON file with lists of ids.
        seed: Seed of random and stratified splits and of folds, 0 or more.
        validation_fraction: Share of persons for validation, from 0 to below 1.
        test_fraction: Share of persons for the test, from 0 to below 1.
        folds: Number of folds; None for no folds, or for those that the file lists.

    Raises:
        PipelineError: A number is out of its range, the file cannot be read, or ``folds`` comes with a file of folds.
    """
    fractions = validation_fraction, test_fraction
    if not (all(0 <= fraction < 1 for fraction in fractions) and sum(fractions) < 1):
        raise PipelineError(
            f"--validation-fraction {fractions[0]} and --test-fraction {fractions[1]} "
            "(expected 0 or more each, together below 1). Leave some patients for training."
        )
    if seed < 0:
        raise PipelineError(f"--seed {seed} (expected 0 or more). Pass another --seed.")
    if split in (*DRAWN, "none"):
        return SplitChoice(split, seed, *fractions, folds)
    method, path = (split, REFERENCE) if split == "reference" else ("file", Path(split))
    listed = read_split(path)
    if listed.folds and folds is not None:
        raise PipelineError(
            f"--folds {folds} with --split {path}, which lists {len(listed.folds)} folds. Leave --folds out."
        )
    return SplitChoice(method, seed, *fractions, len(listed.folds) or folds, listed)


def read_split(path: Path) -> Lists:
    """The lists of patient ids in a JSON file.

    The file holds ``{"validation": [ids], "test": [ids], "training": [ids], "folds": [[ids], [ids]]}``, or some of
    these. A text with the key ``description`` is ignored.

    Raises:
        PipelineError: The file cannot be read, or is not such a file.
    """
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"--split {path}: {shown(error)} (expected reference, random, stratified, none or a JSON file)."
        ) from error
    lists = {key: value for key, value in raw.items() if key != "description"} if isinstance(raw, dict) else {}
    has_folds, folds = "folds" in lists, lists.pop("folds", [])
    if has_folds and not (isinstance(folds, list) and len(folds) > 1 and all(map(_is_list_of_ids, folds))):
        raise PipelineError(
            f"{path}: expected two or more lists of patient ids, none empty, under folds. Correct the file."
        )
    known = lists.keys() <= set(SECTIONS) and all(map(_is_list_of_ids, lists.values()))
    if not known or not (lists or folds):
        raise PipelineError(
            f"{path}: expected lists of patient ids, none empty, under {', '.join(SECTIONS)}. Correct the file."
        )
    sections = {section: [unicodedata.normalize("NFC", item) for item in ids] for section, ids in lists.items()}
    folds = [[unicodedata.normalize("NFC", item) for item in ids] for ids in folds]
    for groups in (sections.values(), folds):
        counts = Counter(item for ids in groups for item in ids)
        twice = [shown(item) for item, count in counts.items() if count > 1]
        if twice:
            raise PipelineError(
                f"{path}: listed twice (expected once): {', '.join(twice[:20])}. Keep one entry of each."
            )
    return Lists(sections, folds)


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is str for item in value)


def divide(records: Mapping[str, PatientRecord], choice: SplitChoice, refused: Iterable[str] = ()) -> Division:
    """The section of each patient and, if the user asked for folds, the fold.

    Args:
        records: What the manifest records about each patient, by id.
        choice: The options of the split.
        refused: Ids of patients that are left out because of errors.

    Raises:
        PipelineError: A section would be empty, or ids of the split do not fit the patients.
    """
    if choice.method == "none":
        if choice.folds is not None:
            raise PipelineError(
                "--folds with --split none: every patient is in the test section. Pass only one of the two."
            )
        return Division(dict.fromkeys(records, "test"), {})
    warning, wanted = "", {"training", *choice.listed.sections}
    if choice.method in DRAWN:
        shares = {"validation": choice.validation_fraction, "test": choice.test_fraction}
        persons = len(set(map(person, records)))
        sizes = {section: math.floor(share * persons + 0.5) for section, share in shares.items()}
        drawn = _draw(records, choice.method, [choice.seed, 0], sizes)
        sections = {patient: drawn.get(person(patient), "training") for patient in records}
        wanted |= {section for section, share in shares.items() if share}
    else:
        sections, warning = _listed(records, choice, set(refused))
    for section in SECTIONS:
        if section in wanted and section not in sections.values():
            raise PipelineError(
                f"the {section} section is empty: {len(records)} patient(s), split {choice.method} "
                "(expected at least one). Add patients, change the fractions, or pass --split none."
            )
    folds = _listed_folds(sections, choice.listed.folds) if choice.listed.folds else _folds(records, sections, choice)
    return Division(sections, folds, warning)


def _listed(records: Mapping[str, PatientRecord], choice: SplitChoice, refused: set[str]) -> tuple[dict[str, str], str]:
    """Sections by the lists of ids. Patients in no list are for training, unless there is a training list."""
    listed = {patient: section for section, ids in choice.listed.sections.items() for patient in ids}
    named = {*listed, *(patient for ids in choice.listed.folds for patient in ids)}
    absent = sorted(named - set(records) - refused)
    left_out = sorted(named & refused)
    warnings = []
    if absent and choice.method == "reference":
        if len(absent) == len(listed):
            raise PipelineError(
                f"none of the {len(listed)} validation patients of the reference split is in the folder "
                "(expected the published LGG data). Pass --split random, or --split none for only a test section."
            )
        warnings.append(f"{len(absent)} of the {len(listed)} reference patients not in the folder: {', '.join(absent)}")
    elif absent:
        names = ", ".join(shown(item) for item in absent[:20])
        raise PipelineError(f"the split names {len(absent)} unknown patient(s): {names}. Correct the ids in the file.")
    if left_out:
        warnings.append(f"the split names patients that were refused: {', '.join(left_out)}")
    unnamed = sorted(set(records) - set(listed))
    if unnamed and "training" in choice.listed.sections:
        names = ", ".join(unnamed[:20])
        raise PipelineError(f"the split names no section for {len(unnamed)} patient(s): {names}. Add them to a list.")
    sections = {patient: listed.get(patient, "training") for patient in records}
    _refuse_divided_persons(sections, "sections")
    return sections, "; ".join(warnings)


def _refuse_divided_persons(groups: Mapping[str, str | int], kind: str) -> None:
    """Refuse groups of patients, by id, where exams of one person are in two groups."""
    places: dict[str, set[str | int]] = defaultdict(set)
    for patient, group in groups.items():
        places[person(patient)].add(group)
    divided = [f"{patient} in {groups[patient]}" for patient in sorted(groups) if len(places[person(patient)]) > 1]
    if divided:
        raise PipelineError(f"one person in two {kind}: {', '.join(divided)}. Put all exams of a person into one list.")


def _listed_folds(sections: Mapping[str, str], listed: Sequence[Sequence[str]]) -> dict[str, int]:
    """Folds by the lists of ids. They hold every patient outside the test section, and no other."""
    folds = {patient: fold for fold, ids in enumerate(listed) for patient in ids if patient in sections}
    tested = [patient for patient in sorted(folds) if sections[patient] == "test"]
    if tested:
        raise PipelineError(
            f"in a fold and in the test section: {', '.join(tested[:20])}. Take each out of one of the two lists."
        )
    unnamed = sorted(patient for patient in set(sections) - set(folds) if sections[patient] != "test")
    if unnamed:
        raise PipelineError(
            f"the split names no fold for {len(unnamed)} patient(s): {', '.join(unnamed[:20])}. "
            "Add them to a fold or to the test section."
        )
    empty = sorted(set(range(len(listed))) - set(folds.values()))
    if empty:
        raise PipelineError(f"fold {empty[0]} is empty, because all its patients were refused. Correct the file.")
    _refuse_divided_persons(folds, "folds")
    return folds


def _folds(records: Mapping[str, PatientRecord], sections: Mapping[str, str], choice: SplitChoice) -> dict[str, int]:
    """Folds for the patients outside the test section. They are stratified, except with ``--split random``."""
    if choice.folds is None:
        return {}
    pool = {patient: record for patient, record in records.items() if sections[patient] != "test"}
    persons = len(set(map(person, pool)))
    if not 2 <= choice.folds <= persons:
        raise PipelineError(f"--folds {choice.folds} (expected 2 to {persons}, the persons outside the test section).")
    sizes = {fold: len(range(fold, persons, choice.folds)) for fold in range(choice.folds)}
    folds = _draw(pool, choice.method, [choice.seed, 1], sizes)
    return {patient: folds[person(patient)] for patient in pool}


def _draw(
    records: Mapping[str, PatientRecord], method: str, seed: Sequence[int], sizes: Mapping[Any, int]
) -> dict[str, Any]:
    """The group of each person, for groups of given sizes. Persons that are left over have no group.

    A random draw shuffles the persons. All others sort them by institution and by lesion voxels of all exams. For each
    group, the remaining persons are cut into as many blocks as the group has members, of nearly equal length. One
    person is drawn from each block.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    places = {person(patient): institution(patient) for patient in records}
    lesions: Counter[str] = Counter()
    for patient, record in records.items():
        lesions[person(patient)] += record.lesion_voxels
    ordered = sorted(places)
    if method == "random":
        ordered = [ordered[i] for i in rng.permutation(len(ordered))]
    else:
        ordered.sort(key=lambda who: (places[who], lesions[who]))
    groups: dict[str, Any] = {}
    for group, size in sizes.items():
        left = [who for who in ordered if who not in groups]
        count = min(size, len(left))
        for block in range(count):
            start, end = len(left) * block // count, len(left) * (block + 1) // count
            groups[left[rng.integers(start, end)]] = group
    return groups
