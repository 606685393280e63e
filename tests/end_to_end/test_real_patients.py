"""Real patients, where LGG_ROOT names them, train and are scored as phantoms are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.cohort.building import build_manifest
from pipeline.scoring.evaluation import evaluate_volumes
from tests.conftest import TINY, every_network, lively_weights


@every_network
@pytest.mark.real
@pytest.mark.skipif("LGG_ROOT" not in os.environ, reason="LGG_ROOT does not name the published folder kaggle_3m")
def test_real_patients_train_and_score(trained, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    patients = sorted(path for path in Path(os.environ["LGG_ROOT"]).iterdir() if path.is_dir())
    for folder in patients[:4]:
        shutil.copytree(folder, tmp_path / "kaggle_3m" / folder.name)
    manifest, run = tmp_path / "manifest", tmp_path / "run"
    build_manifest(tmp_path / "kaggle_3m", manifest, split="random", validation_fraction=0.5)
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(run), "output_dir": str(run / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **{**TINY, "max_epochs": 1})
    lively = lively_weights((bundle, run), manifest, tmp_path / "lively" / "model.pt")
    summary = evaluate_volumes(manifest, [bundle], tmp_path / "ours", weights=(lively,)).summary
    folders = {"dataset_dir": str(manifest), "output_dir": str(tmp_path / "theirs"), "ckpt_path": str(lively)}
    run_config(bundle / "configs" / "evaluate.json", **folders, image_size=TINY["image_size"])
    own = float((tmp_path / "theirs" / "metrics.csv").read_text().split(",")[1])
    assert summary["volumes"] == 2
    assert summary["dsc_mean"] > 0
    assert summary["dsc_mean"] == pytest.approx(own, abs=1e-6)
