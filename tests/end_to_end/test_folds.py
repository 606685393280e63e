"""Patients are scored by the training that held their fold out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import evaluate
from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.scoring.evaluation import bundles_for
from pipeline.scoring.results import read_scores
from tests.conftest import BASIC, TINY


@pytest.fixture(scope="module")
def folded(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a manifest with two folds and one patient in the test section."""
    out = tmp_path_factory.mktemp("folded")
    build_manifest(phantoms, out, split="random", validation_fraction=0.25, test_fraction=0.125, folds=2)
    return out


def test_folds_are_scored_by_weights_that_have_not_seen_them(folded, run_config, tmp_path: Path, capsys) -> None:
    for fold in (0, 1):
        out = tmp_path / "run" / f"fold_{fold}"
        folders = {"dataset_dir": str(folded), "ckpt_dir": str(out), "output_dir": str(out)}
        run_config(BASIC / "configs" / "train.json", **folders, **{**TINY, "max_epochs": 1}, fold=fold, seed=fold)
    volumes = [volume for section in read_manifest(folded).sections.values() for volume in section]
    records = [json.loads((tmp_path / "run" / f"fold_{fold}" / "training.json").read_text()) for fold in (0, 1)]
    for fold, record in enumerate(records):
        expected = [volume.patient for volume in volumes if volume.fold not in (None, fold)]
        assert record["training_patients"] == sorted(expected) != []
    given = ["--manifest", str(folded), "--bundle", str(BASIC), "--out"]
    assert evaluate.main([*given, str(tmp_path / "folds"), "--folds", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "folds" / "summary.json").read_text())
    assert (summary["split"], summary["volumes"], summary["seen_in_training"]) == ("all", 8, [])
    assert [entry["fold"] for entry in summary["bundles"]] == [0, 1]
    assert "warning" not in capsys.readouterr().err
    groups = [{fold: f"{name}{fold}" for fold in (0, 1)} for name in "ab"]
    by_fold = {volume.fold: bundles_for(groups, volume) for volume in volumes}
    assert by_fold == {0: ["a0", "b0"], 1: ["a1", "b1"], None: ["a0", "a1", "b0", "b1"]}
    (tmp_path / "run" / "fold_0").rename(tmp_path / "run" / "fold_2")
    one = [*given, str(tmp_path / "one"), "--folds", str(tmp_path / "run")]
    assert evaluate.main([*one, "--fold", "1"]) == 0
    alone = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert (alone["fold"], alone["volumes"], alone["seen_in_training"]) == (
        1,
        len([v for v in volumes if v.fold == 1]),
        [],
    )
    by_patient = [{score.patient: score.dsc for score in read_scores(tmp_path / name)} for name in ("one", "folds")]
    assert by_patient[0].items() < by_patient[1].items()
    with pytest.raises(PipelineError, match="another split, fold, manifest or choice of patients"):
        evaluate.main([*given, str(tmp_path / "one"), "--weights", str(tmp_path / "run/fold_1/model.pt")])
    with pytest.raises(PipelineError, match=r"holds weights of folds 1, 2 \(expected the manifest's: 0, 1\)"):
        evaluate.main([*one, "--fold", "0"])
    with pytest.raises(PipelineError, match=r"--fold 2: not in the manifest \(expected one of its folds: 0, 1\)"):
        evaluate.main([*one, "--fold", "2"])
    with pytest.raises(PipelineError, match="has no patient in this --split"):
        evaluate.main([*one, "--fold", "1", "--split", "test"])
    with pytest.raises(PipelineError, match=r"holds weights of folds 1, 2 \(expected the manifest's: 0, 1\)"):
        evaluate.main([*given, str(tmp_path / "missing"), "--folds", str(tmp_path / "run")])
    shutil.rmtree(tmp_path / "run" / "fold_2")
    shutil.copytree(tmp_path / "run" / "fold_1", tmp_path / "run" / "fold_0")
    assert evaluate.main([*given, str(tmp_path / "swapped"), "--folds", str(tmp_path / "run")]) == 0
    assert "were trained on" in capsys.readouterr().err
    with pytest.raises(PipelineError, match="holds weights of folds none"):
        evaluate.main([*given, str(tmp_path / "none"), "--folds", str(tmp_path)])
    with pytest.raises(PipelineError, match="--weights with --folds"):
        evaluate.main([*given, str(tmp_path / "none"), "--folds", str(tmp_path), "--weights", "model.pt"])


def test_a_fold_that_does_not_exist_is_refused(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, fold=0)
    assert "has no fold 0" in str(failure.value.__cause__)
