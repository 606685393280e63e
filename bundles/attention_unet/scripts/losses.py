"""Losses that MONAI does not have."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import TverskyLoss


class FocalTverskyLoss(torch.nn.Module):
    """Focal Tversky loss (Abraham, Khan, ISBI 2019): a power of MONAI's Tversky loss.

    The slope of the power is infinite at a loss of 0, so the Tversky loss is at least 1e-7.

    Args:
        gamma: The exponent, the inverse of the paper's 4/3.
        arguments: Arguments of ``monai.losses.TverskyLoss``.
    """

    def __init__(self, gamma: float = 0.75, **arguments: Any) -> None:
        super().__init__()
        self.gamma = gamma
        self.tversky = TverskyLoss(**arguments)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002  # MONAI's name
        """The loss of logits ``input`` for the truth ``target``, 0 to 1, both (B, C, H, W)."""
        loss: torch.Tensor = self.tversky(input, target).clamp_min(1e-7) ** self.gamma
        return loss
