import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import slices, splits
from pipeline.errors import PipelineError
from pipeline.records import PatientRecord


def test_reference_ids_are_the_published_ten():
    listed = splits.read_split(splits.REFERENCE)["validation"]
    assert len(set(listed)) == 10
    assert {slices.institution(name) for name in listed} == {"CS", "DU", "HT"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"test": []}', '{"test": "A"}', '{"test": [1]}', '{"tests": ["A"]}', '{"test": ["A","A"]}'],
)
def test_malformed_split_files(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"split\.json"):
        splits.read_split(path)


def cohort(lesions, exams=1):
    records = {}
    for index, voxels in enumerate(lesions):
        place = ("CS", "DU", "HT")[index % 3]
        for exam in range(exams if index % 4 == 0 else 1):
            name = f"TCGA_{place}_{index:04}_2000010{exam}"
            records[name] = PatientRecord(name, (1, 1, 1), voxels)
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
    choice = splits.SplitChoice(method, seed, *fractions, folds)
    try:
        sections, _ = splits.divide(records, choice, ())
        numbers = splits.fold_numbers(records, sections, choice)
    except PipelineError as error:
        assert len(lesions) < 20, error
        return
    shuffled = dict(reversed(records.items()))
    assert sections == splits.divide(shuffled, choice, ())[0]
    assert numbers == splits.fold_numbers(shuffled, sections, choice)
    people = {slices.person(p): sections[p] for p in records}
    assert all(people[slices.person(p)] == sections[p] for p in records)
    for section, fraction in zip(("validation", "test"), fractions, strict=True):
        assert abs(sum(s == section for s in people.values()) - fraction * len(lesions)) <= 0.5
    assert set(numbers) == {p for p in records if sections[p] != "test"}
    by_person = {slices.person(p): fold for p, fold in numbers.items()}
    assert all(by_person[slices.person(p)] == fold for p, fold in numbers.items())
    sizes = np.bincount(list(by_person.values()), minlength=folds)
    assert sizes.max() - sizes.min() <= 1


def test_stratified_folds_share_institutions_and_lesion_sizes():
    records = cohort([int(v) for v in np.random.default_rng(1).integers(0, 10000, 90)])
    choice = splits.SplitChoice("stratified", 3, 0.1, 0.0, 5)
    sections, _ = splits.divide(records, choice, ())
    held = [name for name in records if sections[name] == "validation"]
    assert sorted(slices.institution(name) for name in held) == ["CS"] * 3 + ["DU"] * 3 + ["HT"] * 3
    folds = splits.fold_numbers(records, sections, choice)
    for place in ("CS", "DU", "HT"):
        sizes = np.bincount([fold for name, fold in folds.items() if slices.institution(name) == place], minlength=5)
        assert sizes.max() - sizes.min() <= 2
    means = [np.mean([records[name].lesion_voxels for name, fold in folds.items() if fold == k]) for k in range(5)]
    assert max(means) - min(means) < 2000


def test_seed_changes_the_draw():
    records = cohort(range(60))
    drawn = [splits.divide(records, splits.SplitChoice("random", seed), ())[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
