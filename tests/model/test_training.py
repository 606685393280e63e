"""Trainings are planned before the first one runs: what there is to do, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.cohort.building import build_manifest
from pipeline.errors import PipelineError
from pipeline.model.training import TrainingRequest, best_validation_dsc, plan_training
from tests.conftest import ROOT


@pytest.fixture
def folded(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build_manifest(phantoms, tmp_path / "manifest", split="random", validation_fraction=0.25, folds=3)
    monkeypatch.chdir(ROOT)
    return tmp_path / "manifest"


def test_one_training_without_folds(folded: Path) -> None:
    plan = plan_training(TrainingRequest("basic_unet", folded, recipe="cpu", overrides=("--seed", "3")))
    (run,) = plan.runs
    assert (plan.out, run.folder, run.note) == (Path("runs/basic_unet_cpu"), Path("runs/basic_unet_cpu"), "")
    assert run.command[:4] == (sys.executable, "-m", "monai.bundle", "run")
    assert run.command[-2:] == ("--seed", "3")


def test_folds_are_planned_together_and_ended_ones_passed_over(folded: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "fold_1").mkdir(parents=True)
    (out / "fold_1" / "checkpoint_4.pt").touch()
    request = TrainingRequest("basic_unet", folded, fold="all", resume=True, out=out)
    plan = plan_training(request)
    assert [run.folder.name for run in plan.runs] == ["fold_0", "fold_1", "fold_2"]
    assert ["--resume" in run.command for run in plan.runs] == [False, True, False]
    assert [bool(run.note) for run in plan.runs] == [True, False, True]
    assert best_validation_dsc(plan) == []


def test_a_later_fold_that_cannot_run_is_refused_before_the_first(folded: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_2").mkdir(parents=True)
    (tmp_path / "run" / "fold_2" / "checkpoint_1.pt").touch()
    with pytest.raises(PipelineError, match="fold_2: holds an interrupted training"):
        plan_training(TrainingRequest("basic_unet", folded, fold="all", out=tmp_path / "run"))
