"""Weights of an experiment predict with the settings that they were trained with, or are refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_label, nifti_bytes
from pipeline.model.bundle import load_bundle
from pipeline.model.predictor import Predictor
from pipeline.scoring.evaluation import evaluate_volumes
from tests.conftest import BASIC, TINY, save_weights


def test_weights_outlive_the_words_of_a_config(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """A config that says the same in other words predicts the same."""
    bundle = shutil.copytree(trained[0], tmp_path / "reworded", ignore=shutil.ignore_patterns("models"))
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["head"] = re.sub(r"\bx\b", "image", content["head"])
    assert content["head"] != json.loads(path.read_text())["head"]
    path.write_text(json.dumps(content))
    assert load_bundle(bundle, trained[1] / "model.pt", trust=True).settings == {"image_size": TINY["image_size"]}


@pytest.mark.parametrize(
    "change",
    [
        {"intensity": [{"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0}]},
        {"normalize_head": False, "percentiles": [0, 90]},
        {"augmentation": []},
    ],
    ids=["intensity", "settings", "augmentation"],
)
def test_an_experiment_with_other_intensities_is_evaluated_from_its_record(
    manifest: Path, run_config: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    """What the network sees in prediction is what it saw in training."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    workflow = run_config(BASIC / "configs" / "train.json", **folders, **{**TINY, "max_epochs": 1}, **change)
    weights = tmp_path / "run" / "model.pt"
    summary = evaluate_volumes(manifest, [BASIC], tmp_path / "scores", weights=(weights,)).summary
    taken = {key: value for key, value in change.items() if key != "augmentation"}
    assert summary["bundles"][0]["settings"] == {"image_size": TINY["image_size"], **taken}
    dataset = workflow.parser.get_parsed_content("validate#dataset")
    seen = load_bundle(BASIC, weights).preprocessing({"image": dataset.data[0]["image"]})["image"]
    assert torch.equal(seen.as_tensor(), dataset[0]["image"].as_tensor())


def test_an_experiment_that_a_record_cannot_hold_is_refused(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    change = {"intensity": [{"_target_": "Lambdad", "keys": "image", "func": "$lambda image: image / 255"}]}
    run_config(BASIC / "configs" / "train.json", **folders, **{**TINY, "max_epochs": 1}, **change)
    with pytest.raises(PipelineError, match="trained with its own intensity, which a record cannot hold"):
        load_bundle(BASIC, tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_the_bundles_own_configs_refuse_other_settings_than_trained(
    trained: tuple[Path, Path], manifest: Path, run_config: Any, tmp_path: Path, name: str
) -> None:
    """They cannot take them over: a config is what it says."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(trained[1]), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / f"{name}.json", **folders)
    assert "trained with image_size 32 (the config: 192). Pass the same values" in str(failure.value.__cause__)
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / f"{name}.json", **folders, image_size=32, normalize_head="false")
    assert "normalize_head: 'false' (expected True or False" in str(failure.value.__cause__)
    assert not list(tmp_path.iterdir())
    run_config(BASIC / "configs" / f"{name}.json", **folders, image_size=32)
    assert list(tmp_path.iterdir())


def test_weights_trained_without_the_crop_predict_without_it(
    trained: tuple[Path, Path], manifest: Path, tmp_path: Path
) -> None:
    state = torch.load(trained[1] / "model.pt", weights_only=True)
    weights = save_weights(state, trained, tmp_path / "model.pt")
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["prediction"]["crop_to_head"] is True
    record["prediction"]["crop_to_head"] = False
    (tmp_path / "training.json").write_text(json.dumps(record))
    volume = read_manifest(manifest).sections["validation"][0]
    voxels = torch.zeros(40, 44, 3, 3, dtype=torch.uint8)
    voxels[10:30, 12:40] = 200
    (tmp_path / "image.nii.gz").write_bytes(nifti_bytes(voxels.numpy()))
    cropped, whole = load_bundle(trained[0], trained[1] / "model.pt"), load_bundle(trained[0], weights)
    assert whole.settings == {"image_size": TINY["image_size"], "crop_to_head": False}
    for bundle, share in ((cropped, 1.0), (whole, 20 * 28 / (40 * 44))):
        seen = bundle.preprocessing({"image": str(tmp_path / "image.nii.gz")})["image"]
        assert seen.shape[1:3] == (TINY["image_size"],) * 2
        assert float((seen[0] >= seen[0].mean()).float().mean()) == pytest.approx(share, abs=0.05)
    assert Predictor([whole]).predict(volume.image).probability.shape == load_label(volume.label).shape
