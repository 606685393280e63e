"""MONAI's ``BasicUNetPlusPlus`` as losses, TorchScript and ONNX want it: one tensor of logits comes out."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus


class UNetPlusPlus(torch.nn.Module):
    """The nested U-Net of Zhou et al. (2018), https://doi.org/10.48550/arXiv.1807.10165, without deep supervision.

    MONAI's class returns a list even for its one head, and keeps three more heads that nothing trains. Here the deepest
    head's logits come out as a tensor and the other heads are gone. Activation and threshold belong to the loss and to
    the postprocessing, never to the network.

    Args:
        **arguments: of ``monai.networks.nets.BasicUNetPlusPlus``, but ``deep_supervision``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.net = BasicUNetPlusPlus(deep_supervision=False, **arguments)
        self.net.final_conv_0_1 = self.net.final_conv_0_2 = self.net.final_conv_0_3 = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images.

        Args:
            x: (B, in_channels, H, W) float, H and W at least 16.

        Returns:
            (B, out_channels, H, W) float logits.
        """
        logits: torch.Tensor = self.net(x)[0]
        return logits
