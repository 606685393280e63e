"""Persons, not exams, are divided into sections and folds by lists or by draw. The same seed gives the same result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import PatientRecord
from pipeline.cohort.names import institution
from pipeline.cohort.splits import REFERENCE, SplitChoice, choose_split, divide, read_split
from pipeline.errors import PipelineError
from pipeline.scripts.manifest import person
from tests.cohort.conftest import A, B, C, add_patient


def test_reference_ids_are_the_published_ten():
    listed = read_split(REFERENCE).sections["validation"]
    assert len(set(listed)) == 10
    assert {institution(name) for name in listed} == {"CS", "DU", "HT"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"test": []}', '{"test": "A"}', '{"test": [1]}', '{"tests": ["A"]}', '{"test": ["A","A"]}'),
        *('{"folds": []}', '{"folds": [["A"]]}', '{"folds": [["A"], []]}', '{"folds": ["A", "B"]}'),
        *('{"folds": [["A"], ["A"]]}', '{"test": ["C"], "folds": {"0": ["A"], "1": ["B"]}}', '{"folds": 2}'),
    ],
)
def test_malformed_split_files(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"split\.json"):
        read_split(path)
    with pytest.raises(PipelineError, match=r"split\.json"):
        choose_split(str(path))


# Draws -------------------------------------------------------------------------------------------------------------


def cohort(lesions, exams=1):
    records = {}
    for index, voxels in enumerate(lesions):
        place = ("CS", "DU", "HT")[index % 3]
        for exam in range(exams if index % 4 == 0 else 1):
            name = f"TCGA_{place}_{index:04}_2000010{exam}"
            records[name] = PatientRecord((1, 1, 1), voxels)
    return records


@settings(max_examples=60, deadline=None)
@given(
    lesions=st.lists(st.integers(0, 9999), min_size=10, max_size=60),
    method=st.sampled_from(["random", "stratified"]),
    seed=st.integers(0, 2**31),
    fractions=st.tuples(st.floats(0.1, 0.4), st.floats(0.1, 0.4)),
    folds=st.integers(2, 4),
)
def test_drawn_splits_and_folds(lesions, method, seed, fractions, folds):
    records = cohort(lesions, exams=2)
    choice = SplitChoice(method, seed, *fractions, folds)
    try:
        division = divide(records, choice, ())
    except PipelineError as error:
        assert len(lesions) < 20, error
        return
    sections, numbers = division.sections, division.folds
    assert division == divide(dict(reversed(records.items())), choice)
    assert division.warning == ""
    people = {person(p): sections[p] for p in records}
    assert all(people[person(p)] == sections[p] for p in records)
    for section, fraction in zip(("validation", "test"), fractions, strict=True):
        assert abs(sum(s == section for s in people.values()) - fraction * len(lesions)) <= 0.5
    assert set(numbers) == {p for p in records if sections[p] != "test"}
    by_person = {person(p): fold for p, fold in numbers.items()}
    assert all(by_person[person(p)] == fold for p, fold in numbers.items())
    sizes = np.bincount(list(by_person.values()), minlength=folds)
    assert sizes.max() - sizes.min() <= 1


def test_stratified_folds_share_institutions_and_lesion_sizes():
    records = cohort([int(v) for v in np.random.default_rng(1).integers(0, 10000, 90)])
    division = divide(records, SplitChoice("stratified", 3, 0.1, 0.0, 5))
    held = [name for name in records if division.sections[name] == "validation"]
    assert sorted(institution(name) for name in held) == ["CS"] * 3 + ["DU"] * 3 + ["HT"] * 3
    folds = division.folds
    for place in ("CS", "DU", "HT"):
        sizes = np.bincount([fold for name, fold in folds.items() if institution(name) == place], minlength=5)
        assert sizes.max() - sizes.min() <= 2
    means = [np.mean([records[name].lesion_voxels for name, fold in folds.items() if fold == k]) for k in range(5)]
    assert max(means) - min(means) < 2000


def test_seed_changes_the_draw():
    records = cohort(range(60))
    drawn = [divide(records, SplitChoice("random", seed)).sections for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_folds_there_are_no_numbers():
    assert divide(cohort(range(60)), SplitChoice("random")).folds == {}
    division = divide(cohort(range(60)), SplitChoice("none"))
    assert division.folds == {}
    assert set(division.sections.values()) == {"test"}


# Options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "other.json"}, r"No such file.*expected reference, random"),
        ({"split": "random", "validation_fraction": 1.0}, "together below 1"),
        ({"split": "random", "validation_fraction": float("nan")}, "together below 1"),
        ({"split": "random", "test_fraction": -0.1}, "together below 1"),
        ({"split": "random", "validation_fraction": 0.5, "test_fraction": 0.5}, "together below 1"),
        ({"split": "random", "seed": -1}, "expected 0 or more"),
    ],
)
def test_bad_options(root, out, options, message):
    with pytest.raises(PipelineError, match=message):
        choose_split(**options)
    with pytest.raises(PipelineError, match=message):
        build_manifest(root, out, **options)
    assert not out.exists()


@pytest.mark.parametrize("folds", [1, 0, -2, 4])
def test_bad_number_of_folds(refused, folds):
    refused(f"--folds {folds} (expected 2 to 3", folds=folds)


@pytest.mark.parametrize(
    ("options", "section"),
    [
        ({"split": "random", "validation_fraction": 0.1}, "validation"),
        ({"split": "stratified", "validation_fraction": 0.4, "test_fraction": 0.1}, "test"),
        ({"split": "random", "validation_fraction": 0.95}, "training"),
    ],
)
def test_case_31_empty_section(refused, options, section):
    refused(f"the {section} section is empty", **options)


def test_reference_split(root, build, refused):
    refused("none of the 10", "--split random", "--split none", split="reference")
    name = read_split(REFERENCE).sections["validation"][0]
    add_patient(root, name)
    built = build(split="reference")
    assert [item["patient"] for item in built.manifest["validation"]] == [name]
    assert built.manifest["numTraining"] == 3
    assert built.manifest["warnings"][0]["message"].startswith("9 of the 10 reference patients")
    assert built.manifest["warnings"][0]["kind"] == "split"


def test_split_none(build, refused):
    built = build(split="none")
    assert [len(built.manifest[key]) for key in ("training", "validation", "test")] == [0, 0, 3]
    refused("--folds with --split none", split="none", folds=2)


def test_split_file(root, build, refused, split_file):
    built = build(split=split_file({"description": "x", "test": [A], "validation": [C]}))
    assert [built.manifest["patients"][p]["section"] for p in (A, B, C)] == ["test", "training", "validation"]
    refused("names 1 unknown patient(s): Q", split=split_file({"test": ["Q"]}))
    refused(f"no section for 1 patient(s): {B}", split=split_file({"test": [A], "training": [C]}))
    refused("training section is empty", split=split_file({"test": [A, B, C]}))
    (root / A / f"{A}_2.tif").write_bytes(b"")
    built = build(skip_faulty=True, rebuild=True, split=split_file({"test": [A, B]}))
    assert f"refused: {A}" in built.manifest["warnings"][0]["message"]
    refused("test section is empty", skip_faulty=True, split=split_file({"test": [A]}))


def test_folds_of_a_file(root, build, refused, split_file):
    built = build(split=split_file({"folds": [[C], [A, B]]}))
    assert [built.manifest["patients"][p]["fold"] for p in (A, B, C)] == [1, 1, 0]
    assert [item["fold"] for item in built.manifest["training"]] == [1, 1, 0]
    assert built.manifest["split"]["folds"] == built.manifest["options"]["folds"] == 2
    assert not build(split=split_file({"folds": [[C], [A, B]]})).is_new
    assert build(split=split_file({"folds": [[C], [B, A]]})).is_new  # the manifest has the hash of the lists
    tested = split_file({"test": [A], "folds": [[B], [C]]})
    assert build(split=tested).manifest["patients"][A]["fold"] is None
    with pytest.raises(PipelineError, match=r"^--folds 2 with --split .* lists 2 folds\. Leave --folds out\.$"):
        choose_split(tested, folds=2)
    refused("names 1 unknown patient(s): Q", split=split_file({"folds": [[A, B], [C, "Q"]]}))
    refused(f"no fold for 1 patient(s): {B}", split=split_file({"folds": [[A], [C]]}))
    refused(f"in a fold and in the test section: {A}", split=split_file({"test": [A], "folds": [[A, B], [C]]}))
    second = "TCGA_CS_0001_20050505"
    add_patient(root, second)
    refused("one person in two folds", second, split=split_file({"folds": [[A, B], [C, second]]}))
    (root / C / f"{C}_2.tif").write_bytes(b"")
    refused("fold 1 is empty", split=split_file({"folds": [[A, B, second], [C]]}), skip_faulty=True, rebuild=True)


def test_case_30_one_patient_in_two_splits(root, out, split_file):
    with pytest.raises(PipelineError, match=rf"split.json: listed twice \(expected once\): {A}\."):
        build_manifest(root, out, split=split_file({"validation": [A], "test": [A]}))
    assert not out.exists()


def test_case_30_two_exams_of_a_person_in_two_splits(root, refused, split_file):
    second = "TCGA_CS_0001_20050505"
    add_patient(root, second)
    refused("one person in two sections", second, split=split_file({"validation": [A]}))
