"""The loss that a training minimises: Dice over the whole batch plus cross entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser


def test_loss_is_dice_plus_cross_entropy_over_the_batch(recipe: ConfigParser) -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(3, 1, 8, 8)), (rng.random((3, 1, 8, 8)) < 0.3).astype(float)
    p = 1 / (1 + np.exp(-logits))
    dice = 1 - (2 * (p * truth).sum() + 1e-5) / (p.sum() + truth.sum() + 1e-5)
    cross_entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    found = recipe.get_parsed_content("loss")(torch.tensor(logits), torch.tensor(truth))
    assert float(found) == pytest.approx(dice + cross_entropy, abs=1e-6)
