"""The command that trains: what it runs, what it refuses and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import train
from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.model.training_config import config_with
from tests.conftest import BASIC, ROOT, TINY


def train_config(bundle: Path = BASIC) -> dict[str, Any]:
    return config_with(bundle / "configs" / "train.json", [], {})


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the command would run; every run succeeds."""
    seen: list[list[str]] = []

    def record(command: list[str], **_: Any) -> Any:
        seen.append(list(command))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(train.subprocess, "run", record)
    monkeypatch.chdir(ROOT)
    return seen


@pytest.fixture(scope="module")
def folded(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a manifest with two folds and one patient in the test section."""
    out = tmp_path_factory.mktemp("folded")
    build_manifest(phantoms, out, split="random", validation_fraction=0.25, test_fraction=0.125, folds=2)
    return out


def test_command_runs_the_plain_command(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--bundle", "basic_unet", "--experiment", "soft_iou", "--recipe", "cpu", "--out", "here"]
    assert train.main([*options, "--manifest", "data", "--learning_rate", "0.001", "--train#trainer#amp=False"]) == 0
    files = ["bundles/basic_unet/configs/train.json", "recipes/cpu.yaml", "experiments/soft_iou.yaml"]
    assert commands[0][:6] == [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(files).replace(" ", ""),
    ]
    assert commands[0][6:] == [
        *("--dataset_dir", "data", "--ckpt_dir", "here", "--output_dir", "here"),
        *("--learning_rate", "0.001", "--train#trainer#amp", "False"),
    ]
    printed = capsys.readouterr().out
    assert printed.startswith("python -m monai.bundle run --config_file ")
    assert """ "['bundles/basic_unet/configs/train.json','recipes/cpu.yaml','experiments/soft_iou.yaml']" """ in printed
    assert train.main(["--bundle", str(BASIC)]) == 0
    assert commands[1][5:] == [
        *(str(BASIC / "configs" / "train.json"), "--dataset_dir", "data_manifest"),
        *("--ckpt_dir", "runs/basic_unet", "--output_dir", "runs/basic_unet"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_epoch", "3"], r"max_epoch \(nearest: max_epochs\)"),
        (["--train#trainer#ampp", "False"], r"train#trainer#ampp \(nearest: train#trainer#amp\)"),
        (["--network_def#biass", "False"], "network_def#biass"),
        (["--experimant", "dice"], r"experimant \(nearest: experiment\)"),
        (["--ckpt_path", "model.pt"], "ckpt_path: is no key of this version. Use init, to start from weights"),
        (["--init", "nowhere"], "nowhere: neither a path nor one of the bundles"),
        (["--max_epochs", "ten"], r"max_epochs: 'ten' \(expected a whole number of 1 or more\)"),
        (["--batch_size=0"], r"batch_size: 0 \(expected"),
        (["--device", "gpu"], r"device: 'gpu' \(expected one of this machine's: cpu"),
        (["--amp", "maybe"], r"amp: 'maybe' \(expected True or False"),
        (["--bundle", "attention_unet", "--image_size", "72"], "expected a multiple of 16 for AttentionUnet"),
        (["--max_epochs"], "expected pairs"),
        (["max_epochs", "3"], "max_epochs: belongs to no --KEY"),
        (["--resume", "True"], "True: belongs to no --KEY"),
        (["--ckpt_dir", "here"], "Pass --out here"),
        (["--output_dir=here"], "Pass --out here"),
        (["--dataset_dir", "there"], "Pass --manifest there"),
        (["--bundle", "basic_unets"], "known: attention_unet, basic_unet, basic_unet_plusplus"),
        (["--bundle", "tests"], "no configs/train.json"),
        (["--experiment", "soft"], "known: adam_constant, bce_dice"),
        (["--recipe", "tpu"], "known: cpu, cpu_quarter, gpu"),
        (["--fold", "0", "--manifest", "nowhere"], "no manifest"),
    ],
)
def test_command_refuses(commands: list[list[str]], options: list[str], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        train.main(options)
    assert commands == []


def test_arguments_of_components_are_keys(commands: list[list[str]]) -> None:
    assert train.main(["--network_def#bias", "False", "--train#slices#num_threads", "1"]) == 0
    assert len(commands) == 1


def test_command_refuses_experiment_files(commands: list[list[str]], tmp_path: Path) -> None:
    for text, message in (
        ("los: {_target_: DiceLoss}\n", r"los \(nearest: loss\)"),
        ("+augmentations: []\n", r"augmentations \(nearest: augmentation\)"),
        ("a: [", "no readable YAML"),
        ("text", "no readable YAML"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(PipelineError, match=message):
            train.main(["--experiment", str(tmp_path / "mine.yaml")])
    (tmp_path / "mine.yaml").write_text("+augmentation: []\nseed: 3\n")
    assert train.main(["--experiment", str(tmp_path / "mine.yaml")]) == 0
    assert len(commands) == 1


def test_command_runs_folds_in_turn(commands: list[list[str]], folded: Path, tmp_path: Path, capsys) -> None:
    given = ["--manifest", str(folded), "--out", str(tmp_path), "--resume"]
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "checkpoint_1.pt").touch()
    with pytest.raises(PipelineError, match="holds an interrupted training"):
        train.main([*given[:-1], "--fold", "1"])
    assert train.main([*given, "--fold", "all"]) == 0
    assert [command[command.index("--fold") + 1] for command in commands] == ["0", "1"]
    assert ["--resume" in command for command in commands] == [False, True]
    assert commands[1][commands[1].index("--ckpt_dir") + 1] == str(tmp_path / "fold_1")
    (tmp_path / "fold_0").mkdir()
    config = {**train_config(), "fold": 0, "seed": 5}
    record = {"config": config, "weights": {}, "manifest_sha256": read_manifest(folded).sha256}
    (tmp_path / "fold_0" / "training.json").write_text(json.dumps(record))
    assert train.main([*given, "--fold", "all", "--seed", "5", "--learning_rate", "4e-3"]) == 0
    assert len(commands) == 3
    assert train.main([*given, "--fold", "all", "--seed", "5", "--network_def#dropout", "0.0"]) == 0
    assert len(commands) == 4
    assert train.main([*given, "--fold", "all", "--seed", "5", "--percentiles", "1,99.5"]) == 0  # a tuple to MONAI
    assert len(commands) == 5
    with pytest.raises(PipelineError, match="differs in network_def"):
        train.main([*given, "--fold", "all", "--seed", "5", "--network_def#bias", "False"])
    with pytest.raises(PipelineError, match=r"holds another training \(it differs in seed\)"):
        train.main([*given, "--fold", "all"])
    with pytest.raises(PipelineError, match="differs in seed, loss"):
        train.main([*given, "--fold", "all", "--experiment", "dice"])
    (tmp_path / "fold_0" / "training.json").write_text(json.dumps({**record, "manifest_sha256": "0"}))
    with pytest.raises(PipelineError, match="differs in the manifest"):
        train.main([*given, "--fold", "all", "--seed", "5"])
    (tmp_path / "fold_0" / "training.json").write_text("{}")
    with pytest.raises(PipelineError, match="no readable record"):
        train.main([*given, "--fold", "all", "--seed", "5"])
    (tmp_path / "fold_0" / "training.json").unlink()
    (tmp_path / "fold_0" / "training.json").write_text(json.dumps(record))
    assert train.main([*given, "--fold", "0", "--seed", "5"]) == 0  # trained already
    assert len(commands) == 5
    with pytest.raises(PipelineError, match="holds a finished training"):
        train.main([*given[:-1], "--fold", "0", "--seed", "5"])
    (tmp_path / "fold_0" / "training.json").unlink()
    capsys.readouterr()
    assert train.main([*given, "--fold", "0"]) == 0
    assert "fold_0: nothing to resume, so the training starts from the beginning" in capsys.readouterr().out
    assert train.main([*given, "--fold", "1"]) == 0
    assert "nothing to resume" not in capsys.readouterr().out
    assert ["--resume" in command for command in commands[5:]] == [False, True]
    with pytest.raises(PipelineError, match="found: 0, 1"):
        train.main([*given, "--fold", "2"])
    with pytest.raises(PipelineError, match="--fold x"):
        train.main([*given, "--fold", "x"])


def test_command_passes_the_status_on(commands: list[list[str]], folded: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(command: list[str], **_: Any) -> Any:
        commands.append(list(command))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(train.subprocess, "run", fail)
    assert train.main(["--manifest", str(folded), "--out", str(tmp_path), "--fold", "all"]) == 3
    assert len(commands) == 1

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.subprocess, "run", interrupt)
    assert train.main([]) == 130


def test_the_last_line_says_how_to_score_and_show(commands, folded: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "other").touch()
    given = ["--manifest", str(folded), "--out", str(out)]
    assert train.main(given) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"next: lgg-flair evaluate --manifest {folded} --bundle bundles/basic_unet --weights {out}/model.pt "
        f"--out {out}/scores --figures && lgg-flair report {out}/scores"
    )
    assert train.main([*given, "--fold", "1"]) == 0
    assert f"--folds {out} --fold 1 --out {out}/scores" in capsys.readouterr().out.splitlines()[-1]
    for fold, dsc in ((0, 0.5), (1, 0.75)):
        (out / f"fold_{fold}").mkdir()
        config = {**train_config(), "fold": fold}
        record = {"config": config, "weights": {}, "manifest_sha256": read_manifest(folded).sha256}
        (out / f"fold_{fold}" / "training.json").write_text(json.dumps({**record, "best_validation_dsc": dsc}))
    assert train.main([*given, "--fold", "all"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("best validation DSC 0.5000, 0.7500; next: ")
    assert train.main([*given, "--fold", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "best_validation_dsc": [0.5, 0.75]}


def test_monais_warning_about_trust_is_for_bundles_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def record(command: list[str], **options: Any) -> Any:
        seen.append(options)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(train.subprocess, "run", record)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:mine")
    given = ["--manifest", str(tmp_path), "--out", str(tmp_path / "run")]
    assert train.main(given) == 0
    assert train.main([*given, "--trust", "--quiet"]) == 0
    assert train.main([*given, "--json"]) == 0
    own, other, _ = (options["env"]["PYTHONWARNINGS"] for options in seen)
    assert (own, other) == ("ignore:mine,ignore:parsing config_file", "ignore:mine")
    assert [options["stdout"] for options in seen] == [None, subprocess.DEVNULL, sys.stderr]


@pytest.mark.slow
def test_a_training_of_our_own_shows_no_warning(manifest: Path, tmp_path: Path) -> None:
    """MONAI warns of configs that run code and, with pydicom, of a decoder; no user can change either."""
    tiny = [f"--{key}={value}" for key, value in {**TINY, "max_epochs": 1}.items()]
    command = [sys.executable, "-m", "pipeline", "train", "--manifest", str(manifest), "--out", "läuft", *tiny]
    clean = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    assert "Logging error" not in done.stderr, done.stderr
    assert r"ckpt_dir: 'l\xe4uft'" in done.stdout
    said = done.stdout + done.stderr
    assert not [word for word in ("parsing config_file", "nvImageCodec", "NvImgCodec") if word in said], said
    assert f"--bundle {BASIC.name} --weights" in done.stdout.splitlines()[-1]


def test_weights_of_another_program_stay(commands: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    for resume in ([], ["--resume"]):
        with pytest.raises(PipelineError, match=r"model.pt: weights without the record of a training"):
            train.main(["--out", str(tmp_path), *resume])
    assert commands == []
    assert (tmp_path / "model.pt").read_bytes() == b""
