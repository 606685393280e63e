"""Every experiment trains, is scored with what it was trained with, and is what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from pipeline.model.training_config import config_with
from pipeline.scoring.evaluation import evaluate_volumes
from tests.conftest import BASIC, ROOT, TINY

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiment_trains_and_is_scored(file: Path, manifest: Path, run_config: Any, tmp_path: Path) -> None:
    """One epoch on the basic_unet bundle; the weights are then scored with the network they were trained with."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    config = [str(BASIC / "configs" / "train.json"), str(file)]
    workflow = run_config(config, **folders, **{**TINY, "max_epochs": 1, "steps_per_epoch": 2})
    wanted = yaml.safe_load(file.read_text())
    for key in ("loss", "network_def", "optimizer", "lr_scheduler"):
        if isinstance(wanted.get(key), dict):
            built = type(workflow.parser.get_parsed_content(key)).__name__
            assert built == wanted[key]["_target_"].rpartition(".")[2]
    result = evaluate_volumes(manifest, [BASIC], tmp_path / "scores", weights=(tmp_path / "model.pt",))
    settings = result.summary["bundles"][0]["settings"]
    network = {key: value for key, value in wanted.get("network_def", {}).items() if key != "_requires_"}
    assert settings.get("network_def", {}) == network
    assert settings.get("around") == wanted.get("around")


def built(experiment: str, *keys: str, **overrides: Any) -> list[Any]:
    """Parts of basic_unet's training with an experiment on top."""
    file = ROOT / "experiments" / f"{experiment}.yaml"
    config = config_with(BASIC / "configs" / "train.json", [file], {})
    parser = ConfigParser({**config, "device": "cpu", "bundle_root": str(BASIC), **overrides})
    parser.get_parsed_content("scripts_path")
    return [parser.get_parsed_content(key) for key in keys]


def test_losses_of_the_experiments_are_what_they_are_called() -> None:
    """On two slices, one with 8 lesion voxels of 32, against formulas written out."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 4, 8, generator=generator)
    truth = torch.zeros(2, 1, 4, 8)
    truth[0, 0, :, :2] = 1
    p = logits.sigmoid()
    tp, fp, fn = (p * truth).sum(), (p * (1 - truth)).sum(), ((1 - p) * truth).sum()
    by_slice = 1 - 2 * (p * truth).sum((1, 2, 3)) / (p + truth).sum((1, 2, 3))
    expected = {
        "dice": 1 - 2 * tp / (2 * tp + fp + fn),
        "soft_iou": 1 - tp / (tp + fp + fn),
        "bce_dice": 0.5 * by_slice.mean() + 0.5 * torch.nn.functional.binary_cross_entropy(p, truth),
        "focal_tversky": (1 - tp / (tp + 0.3 * fp + 0.7 * fn)) ** 0.75,
    }
    for name, value in expected.items():
        (loss,) = built(name, "loss")
        assert float(loss(logits, truth)) == pytest.approx(float(value), abs=1e-3), name
        perfect = (100 * truth - 50).requires_grad_()
        loss(perfect, truth).backward()
        assert torch.isfinite(perfect.grad).all(), name


def test_rates_of_the_experiments() -> None:
    budget = {"max_epochs": 2, "steps_per_epoch": 5}
    rates: dict[str, list[float]] = {}
    for name in ("adam_constant", "sgd_poly"):
        optimizer, scheduler = built(name, "optimizer", "lr_scheduler", **budget)
        rates[name] = []
        for _ in range(10):
            rates[name].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates["adam_constant"] == [1e-4] * 10
    assert rates["sgd_poly"] == pytest.approx([0.01 * (1 - step / 10) ** 0.9 for step in range(10)])
