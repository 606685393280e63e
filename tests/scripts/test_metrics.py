"""The metric by which a training picks weights is the DSC that an evaluation gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import load_decathlon_datalist

from tests.conftest import TINY, evaluated, lively_weights


def test_key_metric_of_training_is_what_evaluation_gives(trained, half_healthy, tmp_path: Path) -> None:
    """Averaged weights, whole volumes, component rule, false positives on lesion-free patients: to 1e-6."""
    bundle, _ = trained
    weights = lively_weights(trained, half_healthy, tmp_path / "model.pt")
    datalist = str(half_healthy / "manifest.json")
    everyone = [item for part in ("training", "validation") for item in load_decathlon_datalist(datalist, True, part)]
    folders = {"dataset_dir": str(half_healthy), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        **{**TINY, **folders, "validate#dataset#data": everyone},
    )
    workflow.initialize()
    averaged = workflow.parser.get_parsed_content("ema").ema_model
    averaged.load_state_dict(torch.load(weights, weights_only=True))
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    summary = evaluated((bundle, tmp_path), half_healthy, tmp_path / "ours", "--split", "all")
    assert len(summary["false_positive_volumes"]) == 2
    assert 0 < summary["dsc_mean"] < 0.5
    assert evaluator.state.metrics["val_dsc"] == pytest.approx(summary["dsc_mean"], abs=1e-6)
