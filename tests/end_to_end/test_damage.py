"""Volumes and weights that are damaged are refused by name, whoever reads them, before anything is written."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.scoring.evaluation import evaluate_volumes
from pipeline.scripts.faults import fault_line
from tests.conftest import BASIC, TINY, last_bias


def test_damaged_volumes_do_not_train_and_are_not_scored(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(manifest, tmp_path / "m")
    label = sorted((copy / "volumes").glob("*_label.nii.gz"))[0]
    data = bytearray(label.read_bytes())
    data[-9] ^= 1  # gzip's own sum, which nibabel does not read
    label.write_bytes(data)
    for config in ("train", "evaluate"):
        folders = {"dataset_dir": str(copy), "ckpt_dir": str(BASIC / "models"), "output_dir": str(tmp_path / "o")}
        if config == "train":
            folders["ckpt_dir"] = str(tmp_path / "run")
        with pytest.raises(RuntimeError) as failure:
            for split in (
                ({},) if config == "train" else ({"split": name} for name in ("training", "validation", "test"))
            ):
                run_config(BASIC / "configs" / f"{config}.json", **folders, **(TINY if config == "train" else split))
        assert f"{label.name}: changed since the manifest was built" in str(fault_line(failure.value))
    assert not list(tmp_path.rglob("*.pt"))


def test_a_changed_volume_is_refused_before_anything_is_scored(trained, manifest, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "manifest")
    label = next((tmp_path / "manifest" / "volumes").glob("*_label.nii.gz"))
    data = bytearray(label.read_bytes())
    data[len(data) // 2] ^= 1
    label.write_bytes(bytes(data))
    with pytest.raises(PipelineError, match=label.name):
        weights = (trained[1] / "model.pt",)
        evaluate_volumes(tmp_path / "manifest", [trained[0]], tmp_path / "out", weights=weights, split="all")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (math.nan, "model.pt: NaN or Inf in {key}"),
        (1e38, "basic_unet: the prediction of .*_image.nii.gz holds NaN or Inf"),
    ],
    ids=["weights", "prediction"],
)
def test_case_35_nan_is_an_error_with_its_place(trained, manifest, tmp_path: Path, spoil: float, message: str) -> None:
    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    key = last_bias(state)
    for name, value in state.items():
        if spoil < math.inf and value.is_floating_point() and not name.endswith("running_var"):
            value.mul_(spoil).clamp_(-spoil, spoil)
    state[key] += math.nan if math.isnan(spoil) else 0
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(PipelineError, match=message.format(key=re.escape(key))):
        evaluate_volumes(manifest, [bundle], tmp_path / "out", weights=(tmp_path / "model.pt",))
    assert not (tmp_path / "out" / "scores.csv").exists()


@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_case_35_bundle_configs_stop_at_nan_and_name_the_volume(
    trained, manifest, run_config, tmp_path, config
) -> None:
    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    variance = [key for key in state if key.endswith("running_var")][-1]
    state[variance].fill_(-1)  # finite weights whose prediction is not
    torch.save(state, tmp_path / "model.pt")
    folders = {"dataset_dir": str(manifest), "ckpt_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "o")}
    with pytest.raises(RuntimeError) as failure:
        run_config(bundle / "configs" / f"{config}.json", **folders, image_size=TINY["image_size"])
    assert re.search(r"the prediction of \S+_image.nii.gz holds NaN or Inf", str(failure.value.__cause__))
    assert not list(tmp_path.glob("o/*"))
