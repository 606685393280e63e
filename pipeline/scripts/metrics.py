"""Pairs of prediction and truth for MONAI's metric handlers, and the rule for volumes without a lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Output = Sequence[Mapping[str, torch.Tensor]]
"""One mapping for each volume: "pred" is the mask and "label" the truth, both (1, H, W, D)."""


def dice_pairs(output: Output) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks and truths for ``DiceMetric(ignore_empty=True)``, so that false positives count.

    ``ignore_empty`` leaves out volumes without a lesion, also those with a false positive. Such a volume is scored
    against the complement of its prediction, which gives DSC 0. If truth and prediction are both empty, there is no DSC
    (NaN).
    """
    truths = [item["label"] if item["label"].any() or not item["pred"].any() else 1 - item["pred"] for item in output]
    return [item["pred"] for item in output], truths


def loss_pairs(output: Output) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits and truths for the training's loss on whole volumes, each (1, H, W, D).

    Args:
        output: Items with "probability" and "label", (1, H, W, D). The logits are computed from the probability.
    """
    return [torch.logit(item["probability"], eps=1e-6) for item in output], [item["label"] for item in output]


def validation_dsc(engine: object) -> float:
    """The validation DSC of an evaluator, which decides which weights are better."""
    return float(engine.state.metrics["val_dsc"])  # type: ignore[attr-defined]
