"""Patients -> sections and folds. Persons, not exams, are what is divided: no one stands on two sides."""

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
    """What the user asked for: method is reference, random, stratified, none or file; fractions are of the persons."""

    method: str
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    folds: int | None = None
    listed: dict[str, list[str]] = field(default_factory=dict)
    """Section -> patient ids, for reference and file."""


@dataclass(frozen=True)
class Division:
    """Patient id -> section, patient id -> fold from 0 (empty without folds), and what is odd about the split."""

    sections: dict[str, str]
    folds: dict[str, int]
    warning: str = ""


def choose_split(
    split: str, seed: int = 0, validation_fraction: float = 0.1, test_fraction: float = 0.0, folds: int | None = None
) -> SplitChoice:
    """What is asked for, checked, with the lists of ids where there are any."""
    fractions = validation_fraction, test_fraction
    if not (all(0 <= fraction < 1 for fraction in fractions) and sum(fractions) < 1):
        raise PipelineError(
            f"--validation-fraction {fractions[0]} and --test-fraction {fractions[1]} "
            "(expected 0 or more each, together below 1). Leave some patients for training."
        )
    if seed < 0:
        raise PipelineError(f"--seed {seed} (expected 0 or more).")
    if split in (*DRAWN, "none"):
        return SplitChoice(split, seed, *fractions, folds)
    method, path = (split, REFERENCE) if split == "reference" else ("file", Path(split))
    return SplitChoice(method, seed, *fractions, folds, read_split(path))


def read_split(path: Path) -> dict[str, list[str]]:
    """Read ``{"validation": [ids], "test": [ids], "training": [ids]}``; ``description`` is allowed beside them."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"--split {path}: {shown(error)} (expected reference, random, stratified, none or a JSON file)."
        ) from error
    lists = {key: value for key, value in raw.items() if key != "description"} if isinstance(raw, dict) else {}
    faulty = [ids for ids in lists.values() if not (ids and isinstance(ids, list) and all(type(i) is str for i in ids))]
    if not lists or faulty or not lists.keys() <= set(SECTIONS):
        raise PipelineError(f"{path}: expected lists of patient ids, none empty, under {', '.join(SECTIONS)}. Mend it.")
    lists = {section: [unicodedata.normalize("NFC", item) for item in ids] for section, ids in lists.items()}
    counts = Counter(item for ids in lists.values() for item in ids)
    twice = [shown(item) for item, count in counts.items() if count > 1]
    if twice:
        raise PipelineError(f"{path}: listed twice (expected once): {', '.join(twice[:20])}. Keep one of the two.")
    return lists


def divide(records: Mapping[str, PatientRecord], choice: SplitChoice, refused: Iterable[str] = ()) -> Division:
    """Assign each patient a section and, where folds are asked for, a fold."""
    if choice.method == "none":
        if choice.folds is not None:
            raise PipelineError("--folds with --split none: every patient is in the test section. Drop one of the two.")
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
    """Sections by the lists; whoever is in none trains, unless the training list is given too."""
    listed = {patient: section for section, ids in choice.listed.items() for patient in ids}
    absent = sorted(set(listed) - set(records) - refused)
    left_out = sorted(set(listed) & refused)
    warnings = []
    if absent and choice.method == "reference":
        if len(absent) == len(listed):
            raise PipelineError(
                f"none of the {len(listed)} validation patients of the reference split is in the folder "
                "(expected the published LGG data). Pass --split random, or --split none for a test section alone."
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
        raise PipelineError(f"one person in two sections: {', '.join(split)}. Put all exams of a person into one.")
    return sections, "; ".join(warnings)


def _folds(records: Mapping[str, PatientRecord], sections: Mapping[str, str], choice: SplitChoice) -> dict[str, int]:
    """Folds for the patients outside the test section, stratified except under ``--split random``."""
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
    """Person -> group, for groups of these sizes; persons left over are not in it.

    A random draw shuffles the persons, any other orders them by institution and lesion voxels of all exams. Each group
    takes one person from each of ``size`` consecutive blocks, of nearly equal length, of the persons who are left.
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
