"""Hand-made masks whose figures are known fractions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric.binary import dc, hd95

from pipeline.errors import PipelineError
from pipeline.metrics import (
    as_mask,
    bootstrap_interval,
    calibration,
    largest_component,
    paired,
    pass_agreement,
    reference_view,
    reliability,
    score_volume,
    summarise,
)


def box(*ranges: tuple[int, int], shape: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


TRUTH = box((2, 6), (2, 6), (2, 4))  # 32 voxels


def test_shifted_box_scores_the_known_fraction() -> None:
    score = score_volume("p", box((3, 7), (2, 6), (2, 4)), TRUTH)
    assert (score.tp_voxels, score.fp_voxels, score.fn_voxels) == (24, 8, 8)
    assert score.dsc == 0.75
    assert score.sensitivity == 0.75
    assert score.precision == 0.75
    assert score.hd95_px == 1.0
    assert score.lesion_voxels == score.predicted_voxels == 32


@pytest.mark.parametrize(
    ("prediction", "truth", "dsc", "sensitivity", "precision"),
    [
        (TRUTH, TRUTH, 1.0, 1.0, 1.0),
        (0 * TRUTH, TRUTH, 0.0, 0.0, None),
        (TRUTH, 0 * TRUTH, 0.0, None, 0.0),
        (0 * TRUTH, 0 * TRUTH, None, None, None),
    ],
    ids=["perfect", "nothing-predicted", "false-positive-volume", "both-empty"],
)
def test_empty_volume_rule(prediction, truth, dsc, sensitivity, precision) -> None:
    score = score_volume("p", prediction, truth)
    assert (score.dsc, score.sensitivity, score.precision) == (dsc, sensitivity, precision)
    assert (score.hd95_px is None) == (not prediction.any() or not truth.any())


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.6), st.floats(0, 0.6))
@settings(max_examples=60, deadline=None)
def test_agrees_with_medpy_and_monai_on_random_masks(seed: int, density_a: float, density_b: float) -> None:
    """Two implementations that know nothing of this one; masks from empty through one voxel to many."""
    import torch
    from monai.metrics import compute_dice

    rng = np.random.default_rng(seed)
    a, b = rng.random((7, 6, 5)) < density_a, rng.random((7, 6, 5)) < density_b
    score = score_volume("p", a, b)
    monai = float(compute_dice(torch.tensor(a)[None, None], torch.tensor(b)[None, None], ignore_empty=False))
    if a.any() or b.any():
        assert score.dsc == pytest.approx(dc(a, b), abs=1e-6)
        assert score.dsc == pytest.approx(monai, abs=1e-6)
    else:
        assert score.dsc is None
    if a.any() and b.any():
        assert score.hd95_px == pytest.approx(hd95(a, b), abs=1e-6)


def test_a_false_positive_on_a_lesion_free_slice_lowers_the_dsc() -> None:
    prediction = TRUTH.copy()
    prediction[0, 0, 7] = 1
    assert score_volume("p", prediction, TRUTH).dsc == 64 / 65


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_is_an_error(bad: float) -> None:
    prediction = TRUTH.astype(float)
    prediction[0, 0, 0] = bad
    with pytest.raises(PipelineError, match="NaN or Inf"):
        score_volume("p", prediction, TRUTH)


def test_an_unbinarised_mask_is_an_error() -> None:
    with pytest.raises(PipelineError, match="0 and 1"):
        as_mask(TRUTH * 255, "mask")


def test_shapes_that_differ_are_an_error() -> None:
    with pytest.raises(PipelineError, match=r"\(12, 10, 7\)"):
        score_volume("P7", TRUTH[..., :7], TRUTH)


def test_largest_component_counts_diagonal_neighbours() -> None:
    mask = np.zeros((6, 6, 6), dtype=np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = 1  # one component of 3 by corners
    mask[5, 4:, 5] = 1  # one of 2
    kept = largest_component(mask)
    assert kept.sum() == 3
    assert kept[2, 2, 2]
    assert not largest_component(0 * mask).any()


def test_reference_view_leaves_out_the_end_slices_before_the_component_rule() -> None:
    truth = TRUTH.copy()
    prediction = TRUTH.copy()
    prediction[:, :, 0] = 1  # 120 voxels, the largest component of all slices, but on the first
    seen, true = reference_view(prediction, truth)
    assert seen.shape == true.shape == (12, 10, 6)
    assert score_volume("p", seen, true).dsc == 1.0
    with pytest.raises(PipelineError, match="2 slices"):
        reference_view(prediction[..., :2], truth[..., :2])


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


def test_bootstrap_is_seeded_and_narrows() -> None:
    values = list(np.linspace(0.8, 1.0, 20))
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    few, many = bootstrap_interval(values[::5], 3), bootstrap_interval(values * 10, 3)
    assert many[1] - many[0] < few[1] - few[0]


def test_calibration_compares_probability_with_the_share_of_lesion() -> None:
    probability = np.array([0.0, 0.005, 0.04, 0.15, 0.15, 0.95, 0.95, 0.95, 1.0]).reshape(3, 3, 1)
    truth = np.array([1, 0, 0, 1, 0, 1, 1, 0, 1]).reshape(3, 3, 1)
    counts = reliability(probability, truth)
    assert [n for n, _, _ in counts] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 4]  # what is below 0.01 is not marked
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
    # Six differences of one sign: 2 of 2^6 arrangements are as far apart.
    better = {str(n): 0.5 + n / 100 for n in range(1, 7)}
    assert paired(dict.fromkeys(better, 0.5), better)["wilcoxon_p"] == pytest.approx(2 / 64)


def test_paired_runs_without_difference_or_patient() -> None:
    same = paired({"a": 0.5}, {"a": 0.5})
    assert (same["mean"], same["wilcoxon_p"], same["better"], same["worse"]) == (0.0, None, 0, 0)
    none = paired({"a": 0.5}, {"b": 0.5})
    assert (none["patients"], none["mean"], none["mean_95"], none["wilcoxon_p"]) == (0, None, [None, None], None)


def test_agreement_is_the_mean_dsc_of_all_pairs() -> None:
    one, two, none = np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8)
    one[0], two[0, :2] = 1, 1
    assert pass_agreement([one, one]) == 1
    assert pass_agreement([one, two]) == pytest.approx(2 * 2 / 6)
    assert pass_agreement([one, two, none]) == pytest.approx((2 * 2 / 6 + 0 + 0) / 3)
    assert pass_agreement([none, none]) is None
    assert pass_agreement([one]) is None
