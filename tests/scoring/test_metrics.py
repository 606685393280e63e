"""Hand-made masks score known fractions, random ones as other libraries score them; what is no mask is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric.binary import dc, hd95

from pipeline.errors import PipelineError
from pipeline.scoring.metrics import as_mask, reliability, score_volume
from tests.scoring.boxes import TRUTH, box


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


def test_reliability_counts_marked_voxels_by_tenths_of_probability() -> None:
    probability = np.array([0.0, 0.005, 0.04, 0.15, 0.15, 0.95, 0.95, 0.95, 1.0]).reshape(3, 3, 1)
    truth = np.array([1, 0, 0, 1, 0, 1, 1, 0, 1]).reshape(3, 3, 1)
    counts = reliability(probability, truth)
    assert [n for n, _, _ in counts] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 4]  # what is below 0.01 is not marked
    assert [p for _, p, _ in counts] == pytest.approx([0.04, 0.3, 0, 0, 0, 0, 0, 0, 0, 3.85])
    assert [t for _, _, t in counts] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    with pytest.raises(PipelineError, match="0 and 1"):
        reliability(probability, 2 * truth)
