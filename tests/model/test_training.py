"""Trainings are planned before the first one runs: what there is to do, and what is refused."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from pipeline.cohort.building import build_manifest
from pipeline.errors import PipelineError
from pipeline.model.training import plan_training
from tests.conftest import ROOT


@pytest.fixture
def folded(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build_manifest(phantoms, tmp_path / "manifest", split="random", validation_fraction=0.25, folds=3)
    monkeypatch.chdir(ROOT)
    return tmp_path / "manifest"


def test_one_training_without_folds(folded: Path) -> None:
    plan = plan_training("basic_unet", folded, recipe="cpu", overrides=["--seed", "3"])
    ((folder, command),) = plan.commands.items()
    assert (plan.out, folder) == (Path("runs/basic_unet_cpu"), Path("runs/basic_unet_cpu"))
    assert command[:4] == [sys.executable, "-m", "monai.bundle", "run"]
    assert command[-2:] == ["--seed", "3"]


def test_folders_with_a_space_are_kept(folded: Path, tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    recipe = tmp_path / "my files" / "mine.yaml"
    recipe.write_text("seed: 3\n")
    (command,) = plan_training("basic_unet", folded, recipe=str(recipe)).commands.values()
    assert ast.literal_eval(command[5]) == ["bundles/basic_unet/configs/train.json", str(recipe)]


def test_folds_are_planned_together_and_ended_ones_passed_over(folded: Path, tmp_path: Path, caplog) -> None:
    out = tmp_path / "run"
    (out / "fold_1").mkdir(parents=True)
    (out / "fold_1" / "checkpoint_4.pt").touch()
    with caplog.at_level("INFO", logger="pipeline"):
        plan = plan_training("basic_unet", folded, fold="all", resume=True, out=out)
    assert [folder.name for folder in plan.commands] == ["fold_0", "fold_1", "fold_2"]
    assert ["--resume" in command for command in plan.commands.values()] == [False, True, False]
    assert caplog.messages == [f"{out}/fold_{fold}: nothing to resume, starts afresh" for fold in (0, 2)]
    assert plan.best_validation_dsc() == []


def test_a_later_fold_that_cannot_run_is_refused_before_the_first(folded: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_2").mkdir(parents=True)
    (tmp_path / "run" / "fold_2" / "checkpoint_1.pt").touch()
    with pytest.raises(PipelineError, match="fold_2: holds an interrupted training"):
        plan_training("basic_unet", folded, fold="all", out=tmp_path / "run")
