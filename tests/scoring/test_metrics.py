"""Scores of simple masks are known fractions, those of random masks agree with other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric.binary import dc, hd95

from pipeline.errors import PipelineError
from pipeline.scoring.metrics import as_mask, reliability, score_volume, slice_counts
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
    """Scores agree with two independent implementations, for masks that are empty, one voxel or many."""
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


SPACING = (1.0, 2.0, 3.0)


def test_distances_in_mm_go_by_the_spacing() -> None:
    rows = score_volume("p", box((4, 8), (2, 6), (2, 4)), TRUTH, SPACING)  # two rows of 1 mm
    columns = score_volume("p", box((2, 6), (4, 8), (2, 4)), TRUTH, SPACING)  # two columns of 2 mm
    assert (rows.hd95_px, rows.hd95_mm) == (2.0, 2.0)
    assert (columns.hd95_px, columns.hd95_mm) == (2.0, 4.0)
    assert rows.surface_dice_2mm == 1.0  # all within 2 mm
    assert columns.surface_dice_2mm is not None
    assert 0 < columns.surface_dice_2mm < 1
    unknown = score_volume("p", box((4, 8), (2, 6), (2, 4)), TRUTH)
    assert (unknown.hd95_mm, unknown.surface_dice_2mm, unknown.hd95_px) == (None, None, 2.0)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.6))
@settings(max_examples=20, deadline=None)
def test_surfaces_in_mm_are_those_of_monai_on_the_whole_volume(seed: int, density: float) -> None:
    """Cropping to the masks changes no distance. For voxels of 1 mm, MONAI's HD95 is close to medpy's."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(seed)
    a, b = np.zeros((2, 14, 12, 11), bool)
    a[3:9, 2:8, 3:8], b[3:9, 3:9, 4:9] = (rng.random((2, 6, 6, 5)) < density) | (np.indices((6, 6, 5)).sum(0) == 0)
    pair = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
    score = score_volume("p", a, b, SPACING)
    distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=SPACING)
    surface = compute_surface_dice(*pair, [2.0], include_background=True, spacing=SPACING)
    assert score.hd95_mm == pytest.approx(float(distance), abs=1e-5)
    assert score.surface_dice_2mm == pytest.approx(float(surface), abs=1e-5)


@pytest.mark.parametrize(
    ("prediction", "truth", "surface", "volume"),
    [
        (TRUTH, TRUTH, 1.0, 0.0),
        (0 * TRUTH, TRUTH, 0.0, -1.0),
        (TRUTH, 0 * TRUTH, 0.0, None),
        (0 * TRUTH, 0 * TRUTH, None, None),
    ],
    ids=["perfect", "nothing-predicted", "false-positive-volume", "both-empty"],
)
def test_what_cannot_be_compared_is_no_figure(prediction, truth, surface, volume) -> None:
    score = score_volume("p", prediction, truth, SPACING)
    assert (score.surface_dice_2mm, score.volume_difference) == (surface, volume)
    assert (score.hd95_mm is None) == (score.hd95_px is None) == (not prediction.any() or not truth.any())


def test_the_volume_difference_is_relative_to_the_truth() -> None:
    assert score_volume("p", box((2, 6), (2, 6), (2, 7)), TRUTH).volume_difference == 1.5
    assert score_volume("p", box((2, 4), (2, 6), (2, 4)), TRUTH).volume_difference == -0.5


def test_slices_are_counted_from_1_upwards() -> None:
    counts = slice_counts(box((3, 7), (2, 6), (1, 3)), TRUTH)
    assert counts[:4] == ((1, 0, 0, 0), (2, 0, 16, 0), (3, 12, 4, 4), (4, 0, 0, 16))
    assert slice_counts(TRUTH[..., 1:-1], TRUTH[..., 1:-1], 2)[1] == (3, 16, 0, 0)


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
    assert [n for n, _, _ in counts] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 4]  # probabilities below 0.01 do not count
    assert [p for _, p, _ in counts] == pytest.approx([0.04, 0.3, 0, 0, 0, 0, 0, 0, 0, 3.85])
    assert [t for _, _, t in counts] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    with pytest.raises(PipelineError, match="0 and 1"):
        reliability(probability, 2 * truth)
