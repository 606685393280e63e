"""Networks and losses that would train to nothing are refused before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.scripts.faults import fault_line
from tests.conftest import BASIC, ROOT, TINY

FOUR_HEADS = "monai.networks.nets.BasicUNetPlusPlus(2, 3, 1, deep_supervision=True)"

MEAN_OF_SIGMOIDS = (
    "$type('Averaged', (monai.networks.nets.BasicUNetPlusPlus,), {'forward': lambda self, x: "
    "torch.stack(monai.networks.nets.BasicUNetPlusPlus.forward(self, x)).sigmoid().mean(dim=0)})"
    "(2, 3, 1, deep_supervision=True)"
)
"""The case report's UNet++."""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("network_def", MEAN_OF_SIGMOIDS, "probab"),
        ("network_def", f"${FOUR_HEADS}", "one tensor of logits"),
        ("network_def", "$torch.nn.Sequential(monai.networks.nets.BasicUNet(2, 3, 1), torch.nn.Sigmoid())", "probab"),
        ("network_def", "$torch.nn.Sequential(monai.networks.nets.BasicUNet(2, 3, 1), torch.nn.Softmax(1))", "probab"),
        ("network_def", {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 2}, "logits"),
        ("loss", {"_target_": "DiceLoss", "sigmoid": False}, "no sigmoid to them, or two"),
        ("loss", "$lambda p, t: monai.losses.DiceLoss(sigmoid=True, jaccard=True)(p.sigmoid(), t)", "them, or two"),
    ],
    ids=["case report", "four heads", "probabilities", "constant", "two channels", "no sigmoid", "two sigmoids"],
)
def test_what_collapsed_is_refused(manifest, run_config, tmp_path: Path, key, value, message) -> None:  # noqa: PLR0917
    """The case report's UNet++ averaged four heads after a sigmoid, and the loss applied another."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, **{key: value})
    assert message in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


def test_unet_plusplus_cannot_be_given_more_heads(manifest, run_config, tmp_path: Path) -> None:
    config = ROOT / "bundles" / "basic_unet_plusplus" / "configs" / "train.json"
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(config, **folders, **TINY, **{"network_def#deep_supervision": True})
    assert "deep_supervision" in str(failure.value.__cause__)


@pytest.mark.parametrize("key", ["network_def", "loss"])
def test_a_class_that_is_not_found_is_one_line(manifest, run_config, tmp_path: Path, key: str) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(ModuleNotFoundError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, **{f"{key}#_target_": "nowhere.Net"})
    assert (fault_line(failure.value) or "").startswith("_target_: 'nowhere.Net': no such class or function.")
