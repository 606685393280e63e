"""All trainings are planned and checked before the first one runs."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.model.training import as_typed, plan_training
from pipeline.model.training_config import config_with
from pipeline.scripts.files import sha256_file
from tests.conftest import BASIC, ROOT


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


def test_a_manifest_is_named_by_its_file_or_folder(folded: Path) -> None:
    for manifest in (folded, folded / "manifest.json"):
        (command,) = plan_training("basic_unet", manifest).commands.values()
        assert command[command.index("--dataset_dir") + 1] == str(folded)


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
    assert caplog.messages == [
        f"{out}/fold_{fold}: nothing to resume, so the training starts from the beginning" for fold in (0, 2)
    ]
    assert plan.best_validation_dsc() == []


def test_a_later_fold_that_cannot_run_is_refused_before_the_first(folded: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_2").mkdir(parents=True)
    (tmp_path / "run" / "fold_2" / "checkpoint_1.pt").touch()
    with pytest.raises(PipelineError, match="fold_2: holds an interrupted training"):
        plan_training("basic_unet", folded, fold="all", out=tmp_path / "run")


ODD_NAMES = (
    *("2024", "None", "True", "1e3", "-x", "[a]", "a,b", "(a)", "{a}", "a#b", "#a", "$a", "@fold", "@#fold", "%fold"),
    *("a%#b", "a@::b", "'a'", '"a"', "it's", "a\\#b", "a\nb", "a: b", "a + b", "~", "a\udcffb"),
)


@pytest.mark.parametrize("name", ["data", "my data/läuft-2", *ODD_NAMES])
def test_a_path_reaches_a_config_as_it_is(name: str) -> None:
    from fire.parser import DefaultParseValue
    from monai.bundle import ConfigParser

    typed = as_typed(Path(name))
    parser = ConfigParser({"dataset_dir": DefaultParseValue(typed), "used": "@dataset_dir", "fold": 1})
    assert parser.get_parsed_content("used") == name
    assert not typed.startswith("-")
    assert (typed != name) == (name in ODD_NAMES)


def test_a_start_is_named_by_bundle_folder_or_file(folded: Path, tmp_path: Path) -> None:
    basic = BASIC / "models" / "model.pt"
    shutil.copy(basic, tmp_path / "model.pt")
    shutil.copy(basic, tmp_path / "mine.pt")
    for init, expected in (
        ("basic_unet", Path("bundles/basic_unet/models/model.pt")),
        (BASIC, basic),
        (tmp_path, tmp_path / "model.pt"),
        (str(tmp_path / "mine.pt"), tmp_path / "mine.pt"),
    ):
        (command,) = plan_training("basic_unet", folded, init=init, out=tmp_path / "run").commands.values()
        assert command[command.index("--init") + 1] == str(expected)
    (tmp_path / "start.yaml").write_text("init: basic_unet\n")
    (command,) = plan_training("basic_unet", folded, experiment=[str(tmp_path / "start.yaml")]).commands.values()
    assert command[command.index("--init") + 1] == "bundles/basic_unet/models/model.pt"
    with pytest.raises(PipelineError, match="neither a path nor one of the bundles"):
        plan_training("basic_unet", folded, init="nowhere")
    for option in ("init", "recipe"):  # such as of a variable of the shell that is not set
        with pytest.raises(PipelineError, match="neither a path nor one of the"):
            plan_training("basic_unet", folded, **{option: ""})
    (tmp_path / "mine.pt.sha256").write_text(f"{'0' * 64}  mine.pt\n")
    with pytest.raises(PipelineError, match=r"mine.pt: damaged"):
        plan_training("basic_unet", folded, init=tmp_path / "mine.pt")


def test_a_fold_that_started_from_other_weights_is_another_training(folded: Path, tmp_path: Path) -> None:
    sha256 = sha256_file(BASIC / "models" / "model.pt")
    config = config_with(BASIC / "configs" / "train.json", [], {})
    for fold in range(3):
        record = {"config": {**config, "fold": fold, "init": "model.pt"}, "weights": {}, "init": {"sha256": sha256}}
        (tmp_path / f"fold_{fold}").mkdir()
        text = json.dumps({**record, "manifest_sha256": read_manifest(folded).sha256})
        (tmp_path / f"fold_{fold}" / "training.json").write_text(text)
    given = {"manifest": folded, "fold": "all", "out": tmp_path}
    assert not any(plan_training("basic_unet", **given, init="basic_unet").commands.values())
    for other in (None, "attention_unet"):
        with pytest.raises(PipelineError, match=r"it differs in the weights of --init"):
            plan_training("basic_unet", **given, init=other)


def test_a_bundle_that_knows_no_start_is_refused(folded: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(BASIC, tmp_path / "mine")
    config = json.loads((bundle / "configs" / "train.json").read_text())
    config.pop("init")
    (bundle / "configs" / "train.json").write_text(json.dumps(config))
    with pytest.raises(PipelineError, match="has no key init, so --init has no effect"):
        plan_training(bundle, folded, init="basic_unet", trust=True)
