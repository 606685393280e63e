"""Networks in a form that fits losses, TorchScript and ONNX, and that runs fast on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus
from monai.networks.nets.basic_unet import UpCat


class UNetPlusPlus(torch.nn.Module):
    """MONAI's ``BasicUNetPlusPlus`` with one tensor of logits as its output: the sum of its four heads.

    Every head is trained, and the shallow ones carry the gradient from the first step on. The paper averages the heads
    (Zhou et al. 2018, https://doi.org/10.48550/arXiv.1807.10165). The packaged weights are those of the sum.

    Args:
        arguments: Arguments of MONAI's class, except ``deep_supervision``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.net = BasicUNetPlusPlus(deep_supervision=True, **arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, out_channels, H, W), for images (B, in_channels, H, W), with H and W at least 16."""
        return torch.stack(self.net(x)).sum(dim=0)


def prepare_network(
    network: torch.nn.Module, device: torch.device | str, image_size: int, *, synchronised: bool = False
) -> torch.nn.Module:
    """The network on its device, changed in place, in the fastest memory layout for convolutions on CPUs.

    MONAI's ``UpCat`` pads images that do not fit after four halvings. Where all images fit, the padding only copies. It
    is then left out, which gives the same bits and saves a tenth of a training step.

    Args:
        network: The network.
        device: The device to which it moves.
        image_size: Height and width of its input, in pixels.
        synchronised: On GPUs, compute batch statistics over all GPUs that train together.
    """
    if synchronised and torch.device(device).type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    for part in network.modules():
        if isinstance(part, UpCat) and image_size % 16 == 0:
            part.is_pad = False
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
