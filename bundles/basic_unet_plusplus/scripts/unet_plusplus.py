"""MONAI's ``BasicUNetPlusPlus`` as losses, TorchScript and ONNX want it: one tensor of logits comes out."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus


class UNetPlusPlus(torch.nn.Module):
    """The nested U-Net of Zhou et al. (2018), https://doi.org/10.48550/arXiv.1807.10165, its four heads as one.

    MONAI's class returns a list, of one head or of four. Here the sum of the four heads' logits comes out as one
    tensor: every head is trained, each adds what the others lack, and the shallow ones carry the gradient from the
    first step on. (The paper averages; a mean of logits is the same function with a quarter of the step, and scored
    below BasicUNet on phantoms: docs/results.md of the project.) Activation and threshold belong to the loss and to
    the postprocessing, never to the network.

    Args:
        **arguments: of ``monai.networks.nets.BasicUNetPlusPlus``, but ``deep_supervision``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.net = BasicUNetPlusPlus(deep_supervision=True, **arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images.

        Args:
            x: (B, in_channels, H, W) float, H and W at least 16.

        Returns:
            (B, out_channels, H, W) float logits.
        """
        logits: torch.Tensor = torch.stack(self.net(x)).sum(dim=0)
        return logits
