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
from pipeline.cohort.names import institution, person
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import SECTIONS

REFERENCE = Path(__file__).with_name("reference_split.json")
DRAWN = ("random", "stratified")


@dataclass(frozen=True)
class SplitChoice:
    """The split that the user asked for.

    Args:
        method: ``reference``, ``random``, ``stratified``, ``none`` or ``file``.
        seed: Seed of random and stratified splits and of folds, 0 or more.
        validation_fraction: Share of persons for validation, from 0 to below 1.
        test_fraction: Share of persons for the test, from 0 to below 1.
        folds: Number of folds; None for no folds.
        listed: Patient ids by section, for ``reference`` and ``file``.
    """

    method: str
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    folds: int | None = None
    listed: dict[str, list[str]] = field(default_factory=dict)


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
        folds: Number of folds; None for no folds.

    Raises:
        PipelineError: A number is out of its range, or the file cannot be read.
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
    return SplitChoice(method, seed, *fractions, folds, read_split(path))


def read_split(path: Path) -> dict[str, list[str]]:
    """The lists of patient ids in a JSON file, by section.

    The file holds ``{"validation": [ids], "test": [ids], "training": [ids]}``, or some of these. A text with the key
    ``description`` is ignored.

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
    faulty = [ids for ids in lists.values() if not (ids and isinstance(ids, list) and all(type(i) is str for i in ids))]
    if not lists or faulty or not lists.keys() <= set(SECTIONS):
        raise PipelineError(
            f"{path}: expected lists of patient ids, none empty, under {', '.join(SECTIONS)}. Correct the file."
        )
    lists = {section: [unicodedata.normalize("NFC", item) for item in ids] for section, ids in lists.items()}
    counts = Counter(item for ids in lists.values() for item in ids)
    twice = [shown(item) for item, count in counts.items() if count > 1]
    if twice:
        raise PipelineError(f"{path}: listed twice (expected once): {', '.join(twice[:20])}. Keep one entry of each.")
    return lists


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
    warning, wanted = "", {"training", *choice.listed}
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
    return Division(sections, _folds(records, sections, choice), warning)


def _listed(records: Mapping[str, PatientRecord], choice: SplitChoice, refused: set[str]) -> tuple[dict[str, str], str]:
    """Sections by the lists of ids. Patients in no list are for training, unless there is a training list."""
    listed = {patient: section for section, ids in choice.listed.items() for patient in ids}
    absent = sorted(set(listed) - set(records) - refused)
    left_out = sorted(set(listed) & refused)
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
    if unnamed and "training" in choice.listed:
        names = ", ".join(unnamed[:20])
        raise PipelineError(f"the split names no section for {len(unnamed)} patient(s): {names}. Add them to a list.")
    sections = {patient: listed.get(patient, "training") for patient in records}
    places: dict[str, set[str]] = defaultdict(set)
    for patient, section in sections.items():
        places[person(patient)].add(section)
    split = [f"{patient} in {sections[patient]}" for patient in sorted(records) if len(places[person(patient)]) > 1]
    if split:
        raise PipelineError(f"one person in two sections: {', '.join(split)}. Put all exams of a person into one list.")
    return sections, "; ".join(warnings)


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
