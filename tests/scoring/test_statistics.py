"""Statistics count every volume, list those without a DSC, and compare runs on their common patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.scoring.metrics import reliability, score_volume
from pipeline.scoring.statistics import bootstrap_interval, calibration, paired, summarise
from tests.scoring.boxes import TRUTH, box


def test_summary_counts_every_volume() -> None:
    scores = [
        score_volume("half", box((2, 4), (2, 6), (2, 4)), TRUTH),  # 2 * 16 / 48
        score_volume("whole", TRUTH, TRUTH),
        score_volume("healthy", 0 * TRUTH, 0 * TRUTH),
        score_volume("false alarm", TRUTH, 0 * TRUTH),
    ]
    summary = summarise(scores, seed=1)
    assert (summary["volumes"], summary["scored"]) == (4, 3)
    assert summary["undefined"] == ["healthy"]
    assert summary["false_positive_volumes"] == ["false alarm"]
    assert summary["dsc_mean"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert summary["dsc_median"] == pytest.approx(2 / 3)
    low, high = summary["dsc_mean_95"]
    assert 0 <= low < summary["dsc_mean"] < high <= 1


def test_summary_of_nothing_scored_has_no_mean() -> None:
    summary = summarise([score_volume("healthy", 0 * TRUTH, 0 * TRUTH)])
    assert summary["dsc_mean"] is None
    assert summary["dsc_mean_95"] == [None, None]


def test_medians_are_of_the_volumes_that_have_a_figure() -> None:
    shifted = box((3, 7), (2, 6), (2, 4))
    scores = [score_volume("mm", shifted, TRUTH, (2.0, 1.0, 1.0)), score_volume("px", TRUTH, TRUTH)]
    summary = summarise([*scores, score_volume("missed", 0 * TRUTH, TRUTH, (1.0, 1.0, 1.0))])
    assert summary["hd95_px_median"] == 0.5
    assert summary["hd95_mm_median"] == 2.0
    assert summary["surface_dice_2mm_median"] == 0.5  # a missed lesion counts
    assert summary["volume_difference_median"] == 0.0
    assert summarise(scores[1:])["hd95_mm_median"] is None


def test_bootstrap_is_seeded_and_narrows() -> None:
    values = list(np.linspace(0.8, 1.0, 20))
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    few, many = bootstrap_interval(values[::5], 3), bootstrap_interval(values * 10, 3)
    assert many[1] - many[0] < few[1] - few[0]


def test_exams_of_one_person_are_drawn_together() -> None:
    values, exams = [0.2, 0.9, 0.4, 0.8], 10
    once = [f"TCGA_CS_{number:04d}_19960101" for number in range(4)]
    many = [f"TCGA_CS_{number:04d}_{1996 + exam}0101" for number in range(4) for exam in range(exams)]
    repeated = [value for value in values for _ in range(exams)]
    alone = bootstrap_interval(values, 3)
    assert bootstrap_interval(values, 3, once) == alone
    assert bootstrap_interval(repeated, 3, many) == pytest.approx(alone)
    assert bootstrap_interval(repeated, 3)[1] < alone[1]
    # Drawn are the first person twice, both persons, or the second twice: 0.2, (0.2 + 9 * 0.8) / 10, 0.8.
    uneven = bootstrap_interval([0.2, *[0.8] * 9], 3, ["sub-1_ses-1", *(f"sub-2_ses-{exam}" for exam in range(9))])
    assert uneven == pytest.approx([0.2, 0.8])
    scores = [replace(score_volume(name, TRUTH, TRUTH), dsc=dsc) for name, dsc in zip(many, repeated, strict=True)]
    assert summarise(scores, 3)["dsc_mean_95"] == pytest.approx(alone)
    better = {patient: 0.1 + value / 2 for patient, value in zip(many, repeated, strict=True)}
    found = paired(dict.fromkeys(many, 0.1), better, 3)
    assert found["mean_95"] == pytest.approx([end / 2 for end in alone])
    assert (found["patients"], found["better"], found["wilcoxon_p"]) == (40, 40, pytest.approx(2 / 2**4))


def test_calibration_compares_probability_with_the_share_of_lesion() -> None:
    probability = np.array([0.0, 0.005, 0.04, 0.15, 0.15, 0.95, 0.95, 0.95, 1.0]).reshape(3, 3, 1)
    truth = np.array([1, 0, 0, 1, 0, 1, 1, 0, 1]).reshape(3, 3, 1)
    counts = reliability(probability, truth)
    assert [n for n, _, _ in counts] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 4]  # probabilities below 0.01 do not count
    assert [t for _, _, t in counts] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    score = replace(score_volume("one", truth, truth), reliability=counts)
    found = calibration([score, score, score_volume("unknown", truth, truth)])
    assert found
    assert found["bins"][1] == {"voxels": 4, "probability": pytest.approx(0.15), "lesion": 0.5}
    assert found["bins"][2] == {"voxels": 0, "probability": None, "lesion": None}
    gaps = 0.04 + abs(0.30 - 1) + abs(3.85 - 3)
    assert found["expected_calibration_error"] == pytest.approx(gaps / 7)
    assert summarise([score])["calibration"] == calibration([score])
    assert calibration([score_volume("unknown", truth, truth)]) is None


def test_paired_differences_are_of_patients_that_both_have() -> None:
    first = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "only": 0.1}
    second = {"a": 0.6, "b": 0.8, "c": 0.7, "d": 0.7, "other": 0.9}
    found = paired(first, second)
    assert (found["patients"], found["better"], found["worse"]) == (4, 2, 1)
    assert found["mean"] == pytest.approx(0.05)
    assert found["mean_95"][0] < 0.05 < found["mean_95"][1]
    # Six differences have the same sign, and 2 of 2^6 sign patterns are that extreme.
    better = {str(n): 0.5 + n / 100 for n in range(1, 7)}
    assert paired(dict.fromkeys(better, 0.5), better)["wilcoxon_p"] == pytest.approx(2 / 64)


def test_paired_runs_without_difference_or_patient() -> None:
    same = paired({"a": 0.5}, {"a": 0.5})
    assert (same["mean"], same["wilcoxon_p"], same["better"], same["worse"]) == (0.0, None, 0, 0)
    none = paired({"a": 0.5}, {"b": 0.5})
    assert (none["patients"], none["mean"], none["mean_95"], none["wilcoxon_p"]) == (0, None, [None, None], None)
