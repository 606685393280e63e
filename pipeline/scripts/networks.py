"""Networks as losses, TorchScript and ONNX want them, and as a CPU runs them fastest."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus
from monai.networks.nets.basic_unet import UpCat


class UNetPlusPlus(torch.nn.Module):
    """MONAI's ``BasicUNetPlusPlus`` with one tensor of logits as its output: the sum of its four heads.

    Every head is trained, and the shallow ones carry the gradient from the first step on. The paper averages the heads
    (Zhou et al. 2018, https://doi.org/10.48550/arXiv.1807.10165); a mean of logits is the same function with a quarter
    of the step. ``arguments`` are those of MONAI's class, except ``deep_supervision``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.net = BasicUNetPlusPlus(deep_supervision=True, **arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, out_channels, H, W), of images (B, in_channels, H, W), H and W at least 16."""
        return torch.stack(self.net(x)).sum(dim=0)


def prepare_network(
    network: torch.nn.Module, device: torch.device | str, image_size: int, *, synchronised: bool = False
) -> torch.nn.Module:
    """A network on its device, in the memory layout that CPUs convolve fastest.

    MONAI's ``UpCat`` pads what does not fit after four halvings. Where everything fits, that only copies: it is left
    out, to the same bits, which saves a tenth of a training step. The network is changed in place; its input has
    ``image_size`` pixels a side. ``synchronised`` batch statistics are those of all GPUs that train together.
    """
    if synchronised and torch.device(device).type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    for part in network.modules():
        if isinstance(part, UpCat) and image_size % 16 == 0:
            part.is_pad = False
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
