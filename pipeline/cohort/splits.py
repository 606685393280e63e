"""Patients -> sections and folds. Persons, not exams, are what is divided: no one stands on two sides."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections import defaultdict
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

Sections = dict[str, str]
"""Patient id -> section."""


@dataclass(frozen=True)
class SplitChoice:
    """What the user asked for.

    Args:
        method: One of reference, random, stratified, none and file.
        seed: Seed of the draws.
        validation_fraction: Share of the persons, for random and stratified.
        test_fraction: Share of the persons, for random and stratified.
        folds: Number of folds; None for none.
        listed: Section -> patient ids, for reference and file.
    """

    method: str
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    folds: int | None = None
    listed: dict[str, list[str]] = field(default_factory=dict)


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
    listed: dict[str, list[str]] = {}
    method, path = split, REFERENCE
    if split not in (*DRAWN, "none", "reference"):
        method, path = "file", Path(split)
        if not path.is_file():
            raise PipelineError(
                f"--split {split}: no such file (expected reference, random, stratified, none or a JSON file)."
            )
    if method in ("file", "reference"):
        listed = read_split(path)
    return SplitChoice(method, seed, *fractions, folds, listed)


def read_split(path: Path) -> dict[str, list[str]]:
    """Read ``{"validation": [ids], "test": [ids], "training": [ids]}``; ``description`` is allowed beside them."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: no readable JSON split ({shown(error)}). Correct the file.") from error
    lists = {key: value for key, value in raw.items() if key != "description"} if isinstance(raw, dict) else None
    if not lists or set(lists) - set(SECTIONS):
        raise PipelineError(f"{path}: expected an object with lists of patient ids under {', '.join(SECTIONS)}.")
    seen: dict[str, str] = {}
    for section, ids in lists.items():
        if not (isinstance(ids, list) and ids and all(isinstance(item, str) for item in ids)):
            raise PipelineError(f"{path}: {section!r} is no list of patient ids, or empty. Fill it or remove the key.")
        lists[section] = [unicodedata.normalize("NFC", item) for item in ids]
        for item in lists[section]:
            if item in seen:
                raise PipelineError(
                    f"{path}: patient {shown(item)} is listed in {seen[item]} and in {section} "
                    "(expected once). Keep one of the two."
                )
            seen[item] = section
    return lists


@dataclass(frozen=True)
class Division:
    """Where each patient stands.

    Args:
        sections: Patient id -> training, validation or test.
        folds: Patient id -> fold from 0; empty without folds.
        warning: What is odd about the split; empty where nothing is.
    """

    sections: Sections
    folds: dict[str, int]
    warning: str = ""


def divide(records: Mapping[str, PatientRecord], choice: SplitChoice, refused: Iterable[str] = ()) -> Division:
    """Assign each patient a section and, where folds are asked for, a fold."""
    warning = ""
    if choice.method == "none":
        sections = dict.fromkeys(records, "test")
        return Division(sections, _folds(records, sections, choice))
    if choice.method in DRAWN:
        sections = _drawn(records, choice)
    else:
        sections, warning = _listed(records, choice, set(refused))
    check_persons(sections)
    wanted = {"training", *choice.listed}
    if choice.method in DRAWN:
        wanted |= {"validation"} if choice.validation_fraction else set()
        wanted |= {"test"} if choice.test_fraction else set()
    for section in SECTIONS:
        if section in wanted and section not in sections.values():
            raise PipelineError(
                f"the {section} section is empty: {len(records)} patient(s), split {choice.method} "
                "(expected at least one). Add patients, change the fractions, or pass --split none."
            )
    return Division(sections, _folds(records, sections, choice), warning)


def check_persons(sections: Mapping[str, str]) -> None:
    """Refuse one person in two sections."""
    exams: dict[str, list[str]] = defaultdict(list)
    for patient in sections:
        exams[person(patient)].append(patient)
    split = {who: ids for who, ids in exams.items() if len({sections[patient] for patient in ids}) > 1}
    if split:
        lines = (
            f"{who}: " + ", ".join(f"{patient} in {sections[patient]}" for patient in sorted(ids))
            for who, ids in sorted(split.items())
        )
        raise PipelineError(
            "one person in two sections: " + "; ".join(lines) + ". Put all exams of a person into one section."
        )


def _listed(records: Mapping[str, PatientRecord], choice: SplitChoice, refused: set[str]) -> tuple[Sections, str]:
    """Sections by the lists; whoever is in none trains, unless the training list is given too."""
    listed = {patient: section for section, ids in choice.listed.items() for patient in ids}
    absent = sorted(set(listed) - set(records) - refused)
    left_out = sorted(set(listed) & refused)
    warnings = []
    if absent and choice.method == "reference":
        if not set(listed) & (set(records) | refused):
            raise PipelineError(
                f"none of the {len(listed)} validation patients of the reference split is in the folder "
                "(expected the published LGG data). Pass --split random for a split of your own, "
                "or --split none to put every patient into the test section."
            )
        warnings.append(f"{len(absent)} of the {len(listed)} reference patients not in the folder: {', '.join(absent)}")
    elif absent:
        names = ", ".join(shown(item) for item in absent[:20])
        raise PipelineError(f"the split names {len(absent)} unknown patient(s): {names}. Correct the ids in the file.")
    if left_out:
        warnings.append(f"the split names patients that were refused: {', '.join(left_out)}")
    unnamed = sorted(set(records) - set(listed))
    if unnamed and "training" in choice.listed:
        raise PipelineError(
            f"the split names no section for {len(unnamed)} patient(s): {', '.join(unnamed[:20])}. "
            "Add them to a list, or drop the training list so that they train."
        )
    return {patient: listed.get(patient, "training") for patient in records}, "; ".join(warnings)


def _drawn(records: Mapping[str, PatientRecord], choice: SplitChoice) -> Sections:
    """Sections by draw, fractions counted in persons."""
    import numpy as np

    rng = np.random.default_rng([choice.seed, 0])
    rest = _ordered(records, choice.method == "stratified", rng)
    count = len(rest)
    drawn: dict[str, str] = {}
    for section, fraction in (("validation", choice.validation_fraction), ("test", choice.test_fraction)):
        wanted = min(math.floor(fraction * count + 0.5), len(rest))
        taken = _draw(rest, wanted, rng)
        drawn |= dict.fromkeys(taken, section)
        rest = [who for who in rest if who not in drawn]
    return {patient: drawn.get(person(patient), "training") for patient in records}


def _folds(records: Mapping[str, PatientRecord], sections: Sections, choice: SplitChoice) -> dict[str, int]:
    """Assign folds 0 to K - 1 to the patients of training and validation, exams of a person together.

    Folds are stratified, except under ``--split random``.
    """
    import numpy as np

    if choice.folds is None:
        return {}
    if choice.method == "none":
        raise PipelineError("--folds with --split none: every patient is in the test section. Drop one of the two.")
    pool = {patient: record for patient, record in records.items() if sections[patient] != "test"}
    rng = np.random.default_rng([choice.seed, 1])
    rest = _ordered(pool, choice.method != "random", rng)
    if not 2 <= choice.folds <= len(rest):
        raise PipelineError(
            f"--folds {choice.folds} (expected 2 to {len(rest)}, the persons outside the test section)."
        )
    folds: dict[str, int] = {}
    for fold in range(choice.folds):
        taken = _draw(rest, math.ceil(len(rest) / (choice.folds - fold)), rng)
        folds |= dict.fromkeys(taken, fold)
        rest = [who for who in rest if who not in folds]
    return {patient: folds[person(patient)] for patient in pool}


def _ordered(records: Mapping[str, PatientRecord], stratified: bool, rng: Any) -> list[str]:
    """Persons by (institution, lesion voxels of all exams) for a stratified draw, in random order for a random one."""
    lesions: dict[str, int] = defaultdict(int)
    places: dict[str, str] = {}
    for patient in sorted(records):
        lesions[person(patient)] += records[patient].lesion_voxels
        places[person(patient)] = institution(patient)
    if stratified:
        return sorted(lesions, key=lambda who: (places[who], lesions[who], who))
    names = sorted(lesions)
    return [names[i] for i in rng.permutation(len(names))]


def _draw(ordered: Sequence[str], count: int, rng: Any) -> list[str]:
    """Cut ``ordered`` into ``count`` consecutive blocks of nearly equal length and draw one person from each."""
    edges = [len(ordered) * i // count for i in range(count + 1)] if count else []
    return [ordered[int(rng.integers(a, b))] for a, b in itertools.pairwise(edges)]
