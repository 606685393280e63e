"""Losses that MONAI does not have."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import TverskyLoss


class FocalTverskyLoss(torch.nn.Module):
    """Focal Tversky loss (Abraham, Khan, ISBI 2019): a power of MONAI's Tversky loss.

    At a loss of 0 the slope of the power is infinite, so that the loss does not fall below 1e-7. The exponent ``gamma``
    is the inverse of the paper's, 4/3. ``arguments`` are those of ``monai.losses.TverskyLoss``.
    """

    def __init__(self, gamma: float = 0.75, **arguments: Any) -> None:
        super().__init__()
        self.gamma = gamma
        self.tversky = TverskyLoss(**arguments)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002  # MONAI's name
        """The loss of logits ``input`` and truth ``target``, 0 to 1, both (B, C, H, W)."""
        loss: torch.Tensor = self.tversky(input, target).clamp_min(1e-7) ** self.gamma
        return loss
