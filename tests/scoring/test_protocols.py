"""Each protocol scores its part of a volume: all of it, or the part that the reference program scores."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.scoring.metrics import score_volume
from pipeline.scoring.protocols import largest_component, view
from tests.scoring.boxes import TRUTH, box


def test_largest_component_counts_diagonal_neighbours() -> None:
    mask = np.zeros((6, 6, 6), dtype=np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = 1  # one component of 3 voxels that touch at corners
    mask[5, 4:, 5] = 1  # a component of 2 voxels
    kept = largest_component(mask)
    assert kept.sum() == 3
    assert kept[2, 2, 2]
    assert not largest_component(0 * mask).any()


def test_reference_protocol_leaves_out_the_end_slices_before_the_component_rule() -> None:
    truth = TRUTH.copy()
    prediction = TRUTH.copy()
    prediction[:, :, 0] = 1  # 120 voxels: the largest component, but in the first slice
    seen, true = view("reference", truth, prediction, truth)
    assert seen.shape == true.shape == (12, 10, 6)
    assert score_volume("p", seen, true).dsc == 1.0
    with pytest.raises(PipelineError, match="2 slices"):
        view("reference", truth, prediction, truth[..., :2])


def test_native_protocol_scores_the_mask_and_reference_the_probability() -> None:
    mask = box((2, 6), (2, 6), (2, 4))
    probability = box((3, 7), (2, 6), (2, 4)) * np.float32(0.6)
    seen, true = view("native", mask, probability, TRUTH)
    assert np.array_equal(seen, mask)
    assert np.array_equal(true, TRUTH)
    seen, true = view("reference", mask, probability, TRUTH)
    assert np.array_equal(seen, probability[..., 1:-1] >= 0.5)
    assert np.array_equal(true, TRUTH[..., 1:-1])
