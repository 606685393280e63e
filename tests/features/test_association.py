"""Associations are found where they were put, with the p values of other computations, and bad tables are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom

from pipeline.errors import PipelineError
from pipeline.features.association import ClinicalTable, agreement, associations, fisher_p, read_clinical

PATIENTS = [f"TCGA_AA_{number:04d}_19990101" for number in range(24)]


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "clinical.csv"
    path.write_text(text)
    return path


def clinical(**columns: dict[str, str]) -> ClinicalTable:
    return ClinicalTable(columns, 0, {})


def test_two_groups_have_the_p_value_of_the_hypergeometric_distribution() -> None:
    feature = {patient: float(number) for number, patient in enumerate(PATIENTS)}
    groups = {patient: "high" if number >= 14 else "low" for number, patient in enumerate(PATIENTS)}
    (found,) = associations({"ratio": feature}, clinical(subtype=groups))
    chances = hypergeom.pmf(np.arange(11), 24, 12, 10)  # above the median: 12 of 24, of them all 10 that are high
    assert found.fisher_p == pytest.approx(chances[chances <= chances[10] * (1 + 1e-7)].sum())
    assert (found.patients, found.groups) == (24, {"high": 10, "low": 14})
    assert found.auc == {"high": 1.0, "low": 0.0}
    assert found.medians == {"high": 18.5, "low": 6.5}
    assert found.cramers_v == pytest.approx(10 * 12 / np.sqrt(10 * 14 * 12 * 12))
    assert found.fisher_q == found.fisher_p
    assert found.kruskal_q == found.kruskal_p
    # All ranks of one group above those of the other: the largest H for 10 and 14 patients.
    largest = 12 / (24 * 25) * (10 * (19.5 - 12.5) ** 2 + 14 * (7.5 - 12.5) ** 2)
    assert found.epsilon_squared == pytest.approx(largest / 23)


def test_three_groups_agree_with_the_exact_test_by_counting_all_tables() -> None:
    feature = {patient: float(number) for number, patient in enumerate(PATIENTS[:12])}
    names = "aabaabcbcbcc"
    (found,) = associations({"ratio": feature}, clinical(subtype=dict(zip(PATIENTS, names, strict=False))))
    chances = {}
    for a in range(5):
        for b in range(5):
            c = 6 - a - b
            if 0 <= c <= 4:
                from math import comb

                chances[a, b, c] = comb(4, a) * comb(4, b) * comb(4, c) / comb(12, 6)
    upper = names[6:]
    seen = chances[upper.count("a"), upper.count("b"), upper.count("c")]
    expected = sum(chance for chance in chances.values() if chance <= seen * (1 + 1e-9))
    assert found.fisher_p == pytest.approx(expected)
    again = associations({"ratio": feature}, clinical(subtype=dict(zip(PATIENTS, names, strict=False))))
    assert again == [found]


def test_tables_of_two_groups_have_the_p_value_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(1, 30, (2, 2))
        assert fisher_p(counts) == pytest.approx(fisher_exact(counts).pvalue, rel=1e-9)


def test_halves_are_above_and_below_the_median() -> None:
    feature = {patient: float(number) for number, patient in enumerate(PATIENTS)}
    groups = {patient: "x" if number % 2 else "y" for number, patient in enumerate(PATIENTS)}
    outlier = {**feature, PATIENTS[-1]: 1e6}
    (plain,), (far,) = (associations({"ratio": values}, clinical(subtype=groups)) for values in (feature, outlier))
    assert (far.fisher_p, far.cramers_v) == (plain.fisher_p, plain.cramers_v)
    assert far.kruskal_p == plain.kruskal_p  # ranks alone count


def test_the_false_discovery_rate_counts_all_pairs() -> None:
    rng = np.random.default_rng(1)
    features = {name: dict(zip(PATIENTS, rng.random(24), strict=True)) for name in ("one", "two", "three")}
    columns = {name: dict(zip(PATIENTS, rng.choice(["x", "y"], 24), strict=True)) for name in ("first", "second")}
    found = associations(features, clinical(**columns))
    assert len(found) == 6
    assert [one.fisher_p for one in found] == sorted(one.fisher_p for one in found)
    for kind in ("fisher", "kruskal"):
        p = np.array(sorted(getattr(one, f"{kind}_p") for one in found))
        rates = np.minimum.accumulate((p * 6 / np.arange(1, 7))[::-1])[::-1]
        assert sorted(getattr(one, f"{kind}_q") for one in found) == pytest.approx(np.minimum(rates, 1))


def test_a_group_without_difference_is_not_found_and_missing_values_are_left_out() -> None:
    feature = {patient: float(number % 4) for number, patient in enumerate(PATIENTS[:20])}
    groups = {patient: "x" if number % 8 < 4 else "y" for number, patient in enumerate(PATIENTS)}
    (found,) = associations({"ratio": feature}, clinical(subtype=groups))
    assert found.patients == 20
    assert found.fisher_p > 0.5
    assert found.kruskal_p > 0.9
    assert found.auc["x"] == 0.5


@pytest.mark.parametrize("groups", [{}, dict.fromkeys(PATIENTS, "same")], ids=["nobody", "one group"])
def test_nothing_to_test_is_an_error(groups: dict[str, str]) -> None:
    feature = {patient: float(number) for number, patient in enumerate(PATIENTS)}
    why = "all values or groups are equal" if groups else "no patient has both"
    with pytest.raises(PipelineError, match=rf"no association can be tested \(ratio and subtype: {why}\)"):
        associations({"ratio": feature}, clinical(subtype=groups))


def test_a_feature_that_no_mask_has_is_named(caplog: pytest.LogCaptureFixture) -> None:
    feature = {patient: float(number) for number, patient in enumerate(PATIENTS)}
    groups = {patient: "x" if number % 2 else "y" for number, patient in enumerate(PATIENTS)}
    with pytest.raises(PipelineError, match=r"\(no mask has volume_ml, which in mm or ml needs a voxel size"):
        associations({"volume_ml": {}}, clinical(subtype=groups))
    assert len(associations({"volume_ml": {}, "ratio": feature}, clinical(subtype=groups, other=groups))) == 2
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("not tested: no mask has volume_ml")


def test_published_ids_and_whole_ids_are_found(tmp_path: Path) -> None:
    text = "Patient,RNASeqCluster,age,tissue,all\n"
    text += "".join(f"TCGA_AA_{number:04d},{number % 3 + 1},{30 + number},1,\n" for number in range(24))
    found = read_clinical(table(tmp_path, text), PATIENTS[:12])
    assert found.matched == 12
    assert found.columns == {
        "RNASeqCluster": {one: str(number % 3 + 1) for number, one in enumerate(PATIENTS[:12])},
        "age": {one: "up to 35.5" if number < 6 else "above 35.5" for number, one in enumerate(PATIENTS[:12])},
    }
    assert found.skipped == {
        "tissue": "1 different values (expected 2 to 10)",
        "all": "0 different values (expected 2 to 10)",
    }
    hyphens = read_clinical(table(tmp_path, text.replace("TCGA_AA_", "TCGA-AA-")), PATIENTS[:12])
    assert hyphens == found


def test_what_says_that_a_value_is_missing_is_no_group(tmp_path: Path) -> None:
    groups = ["a", "None", "a", "None", "NA", "[Not Available]", "n/a", "", "[Unknown]", "'--"]
    rows = "".join(f"{one}, {group}\n" for one, group in zip(PATIENTS, groups, strict=False))
    whole = read_clinical(table(tmp_path, f"id,subtype\n{rows}other,c\n"), PATIENTS)
    assert whole.matched == 10
    assert [*whole.columns["subtype"].values()] == ["a", "None", "a", "None"]  # such as no treatment
    ages = "".join(f"{one},{'NA' if number == 3 else 30 + number}\n" for number, one in enumerate(PATIENTS))
    assert {*read_clinical(table(tmp_path, f"id,age\n{ages}"), PATIENTS).columns["age"].values()} == {
        "up to 42",
        "above 42",
    }
    few = "".join(f"{one},{31 + 7 * (number % 6)}\n" for number, one in enumerate(PATIENTS))
    assert len({*read_clinical(table(tmp_path, f"id,age\n{few}"), PATIENTS).columns["age"].values()}) == 2
    many = "".join(f"{one},{number % 6}\n" for number, one in enumerate(PATIENTS))
    assert len({*read_clinical(table(tmp_path, f"id,code\n{many}"), PATIENTS).columns["code"].values()}) == 6
    codes = "".join(f"{one},{('1', '1.0', '2', '02')[number % 4]}\n" for number, one in enumerate(PATIENTS))
    assert {*read_clinical(table(tmp_path, f"id,code\n{codes}"), PATIENTS).columns["code"].values()} == {"1", "2"}
    codes = "".join(f"{one},{(10000001, 10000002)[number % 2]}\n" for number, one in enumerate(PATIENTS))
    long = {*read_clinical(table(tmp_path, f"id,code\n{codes}"), PATIENTS).columns["code"].values()}
    assert long == {"10000001", "10000002"}


def test_measures_of_which_most_are_the_largest_are_divided_below_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline")
    scores = [90, 90, 90, 90, 90, 90, 90, -20.5, 2.5, 3.5, 4.5, 5.5]
    rows = "".join(f"{one},{score}\n" for one, score in zip(PATIENTS, scores, strict=False))
    found = read_clinical(table(tmp_path, f"id,score\n{rows}"), PATIENTS)
    assert [*found.columns["score"].values()] == 7 * ["90 or more"] + 5 * ["below 90"]
    ages = "".join(f"{one},{'30 years' if number == 3 else 30 + number}\n" for number, one in enumerate(PATIENTS))
    found = read_clinical(table(tmp_path, f"id,age\n{ages}"), PATIENTS)
    assert found.skipped == {"age": "24 different values (expected 2 to 10), and 1 of 24 are not numbers"}
    assert caplog.messages == ["age: 30 years is not a number"]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = table(tmp_path, "id,one,two\n" + "".join(f"{one},{i % 2},{i % 3}\n" for i, one in enumerate(PATIENTS)))
    assert list(read_clinical(path, PATIENTS, ["two"]).columns) == ["two"]
    with pytest.raises(PipelineError, match=r"clinical.csv: no column three \(expected some of one, two\)"):
        read_clinical(path, PATIENTS, ["three"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no readable CSV file"),
        ("id\n1\n", "1 column"),
        ("id,x\na,1\na,2\n", "a has several rows"),
        ("id,x\nA-1,1\na_1,2\n", "a_1 has several rows"),
        ("id,x\na,1,2\n", "a row has more fields than the header"),
        ("id;x\na;1\n", "Save it with commas between the columns"),
        ("id,x\n", "a header without rows"),
        (
            "id,x\na,1\n",
            r"none of the 24 patients is in its first column, such as a \(expected ids such as TCGA_AA_0000",
        ),
    ],
)
def test_unusable_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        read_clinical(table(tmp_path, text), PATIENTS)
    assert "\n" not in str(caught.value)
    with pytest.raises(PipelineError, match=r"nothing.csv: no such file"):
        read_clinical(tmp_path / "nothing.csv", PATIENTS)
    (tmp_path / "latin.csv").write_bytes("id,Größe\na,1\n".encode("latin-1"))
    with pytest.raises(PipelineError, match="Save it as CSV in UTF-8"):
        read_clinical(tmp_path / "latin.csv", PATIENTS)


def test_a_group_for_each_patient_is_not_tested(tmp_path: Path) -> None:
    text = "id,name,subtype\n" + "".join(f"{one},n{i},{i % 2}\n" for i, one in enumerate(PATIENTS[:6]))
    found = read_clinical(table(tmp_path, text), PATIENTS)
    assert list(found.columns) == ["subtype"]
    assert found.skipped == {"name": "6 groups of 6 patients (expected two patients in a group, on average)"}
    with pytest.raises(PipelineError, match=r"clinical\.csv: name has 6 groups of 6 patients"):
        read_clinical(tmp_path / "clinical.csv", PATIENTS, ["name"])


def test_exams_of_one_person_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "id,x\nTCGA_AA_0000,1\nTCGA_AA_0001,2\n")
    with pytest.raises(PipelineError, match="TCGA_AA_0000_19990101 and TCGA_AA_0000_20000101 are exams of one person"):
        read_clinical(path, [*PATIENTS, "TCGA_AA_0000_20000101"])


def test_many_groups_are_tested_with_random_tables() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{number}" for number in range(200)]
    groups = dict(zip(patients, (f"g{number % 10}" for number in range(200)), strict=True))
    (found,) = associations({"ratio": dict(zip(patients, rng.random(200), strict=True))}, clinical(subtype=groups))
    assert 0.01 < found.fisher_p <= 1


def test_values_that_are_mostly_equal_are_split_below_the_largest() -> None:
    feature = {patient: 1.0 if number < 6 else 2.0 for number, patient in enumerate(PATIENTS)}
    groups = {patient: "low" if number < 6 else "high" for number, patient in enumerate(PATIENTS)}
    (found,) = associations({"ratio": feature}, clinical(subtype=groups))
    assert found.cramers_v == pytest.approx(1)


def test_agreement_has_bias_and_limits() -> None:
    true = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0}
    predicted = {"a": 12.0, "b": 20.0, "c": 35.0, "e": 1.0}
    found = agreement("voxels", predicted, true)
    assert found is not None
    assert (found.patients, found.spearman) == (3, 1.0)
    spread = 1.96 * np.std([2, 0, 5], ddof=1)
    assert (found.bias, found.lower, found.upper) == pytest.approx((7 / 3, 7 / 3 - spread, 7 / 3 + spread))
    assert agreement("voxels", {"a": 1.0}, true) is None
    constant = agreement("voxels", dict.fromkeys("abc", 1.0), true)
    assert constant is not None
    assert constant.spearman is None
