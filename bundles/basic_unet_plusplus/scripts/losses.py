"""Losses that MONAI does not have."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import TverskyLoss


class FocalTverskyLoss(torch.nn.Module):
    """Focal Tversky loss (Abraham, Khan, ISBI 2019): a power of MONAI's Tversky loss.

    At a loss of 0 the slope of the power is infinite, so that the loss does not fall below 1e-7.

    Args:
        gamma: The exponent; the paper's 4/3 is 0.75 here.
        **arguments: Arguments of ``monai.losses.TverskyLoss``.
    """

    def __init__(self, gamma: float = 0.75, **arguments: Any) -> None:
        super().__init__()
        self.gamma = gamma
        self.tversky = TverskyLoss(**arguments)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002  # MONAI's name
        """The loss of logits.

        Args:
            input: (B, C, H, W) float.
            target: (B, C, H, W), 0 to 1.
        """
        loss: torch.Tensor = self.tversky(input, target).clamp_min(1e-7) ** self.gamma
        return loss
