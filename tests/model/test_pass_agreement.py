"""Passes that agree have an agreement of 1 and no uncertainty; both fall and rise with what the passes mark apart."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.model.predictor import disagreement, pass_agreement


def test_agreement_is_the_mean_dsc_of_all_pairs() -> None:
    one, two, none = np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8)
    one[0], two[0, :2] = 1, 1
    assert pass_agreement([one, one]) == 1
    assert pass_agreement([one, two]) == pytest.approx(2 * 2 / 6)
    assert pass_agreement([one, two, none]) == pytest.approx((2 * 2 / 6 + 0 + 0) / 3)
    assert pass_agreement([none, none]) is None
    assert pass_agreement([one]) is None


def test_uncertainty_is_the_deviation_of_the_passes() -> None:
    none, half, full = (np.full((3, 4, 1), value, np.float32) for value in (0, 0.5, 1))
    assert not disagreement([half, half]).any()
    apart = disagreement([none, full])
    assert apart.dtype == np.float32
    assert apart.shape == (3, 4, 1)
    assert (apart == 0.5).all()
    assert disagreement([none, half, full]) == pytest.approx(np.sqrt(1 / 6))
