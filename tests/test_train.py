"""The front door of training, experiment and recipe files, folds, several processes, networks that are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import BUNDLES, ROOT, TINY
from torture.kills import into, kill_all, training_command, wait_for

from pipeline import evaluate, train
from pipeline import manifest as manifest_cli
from pipeline.datalist import read_manifest
from pipeline.errors import PipelineError
from pipeline.overrides import as_recorded, check_overrides, merged

BASIC = ROOT / "bundles" / "basic_unet"
OVERRIDES = sorted([*(ROOT / "experiments").glob("*.yaml"), *(ROOT / "recipes").glob("*.yaml")])
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
LITTLE = [part for key, value in TINY.items() for part in (f"--{key}", str(value))]


def train_config(bundle: Path = BASIC) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "train.json").read_text())


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the front door would run; every run succeeds."""
    seen: list[list[str]] = []

    def record(command: list[str], **_: Any) -> Any:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(train.subprocess, "run", record)
    monkeypatch.chdir(ROOT)
    return seen


@pytest.fixture(scope="module")
def folded(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a manifest with two folds and one patient in the test section."""
    out = tmp_path_factory.mktemp("folded")
    split = ["--split", "random", "--validation-fraction", "0.25", "--test-fraction", "0.125", "--folds", "2"]
    assert manifest_cli.main([str(phantoms), "--out", str(out), *split]) == 0
    return out


@pytest.mark.parametrize("file", OVERRIDES, ids=lambda file: file.stem)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_shipped_files_override_keys_that_exist(bundle: Path, file: Path) -> None:
    result = merged(train_config(bundle), file)  # refuses keys that do not
    assert result != train_config(bundle) or file.stem in ("cpu", *(other.name for other in BUNDLES), "attention")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_delta_for_several_processes_overrides_keys_that_exist(bundle: Path) -> None:
    delta = json.loads((bundle / "configs" / "multi_gpu_train.json").read_text())
    check_overrides({**train_config(bundle), "finalize": []}, delta, "multi_gpu_train.json")


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
    given = ["--manifest", str(manifest), "--bundle", str(BASIC), "--weights", str(tmp_path / "model.pt")]
    assert evaluate.main([*given, "--out", str(tmp_path / "scores")]) == 0
    settings = json.loads((tmp_path / "scores" / "summary.json").read_text())["bundles"][0]["settings"]
    assert settings.get("network_def") == wanted.get("network_def")


def built(experiment: str, *keys: str, **overrides: Any) -> list[Any]:
    """Parts of basic_unet's training with an experiment on top."""
    from monai.bundle import ConfigParser

    config = merged(train_config(), ROOT / "experiments" / f"{experiment}.yaml")
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


def test_front_door_runs_the_plain_command(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--max_epochs"], "expected pairs"),
        (["max_epochs", "3"], "max_epochs: belongs to no --KEY"),
        (["--resume", "True"], "True: belongs to no --KEY"),
        (["--ckpt_dir", "here"], "Pass --out here"),
        (["--output_dir=here"], "Pass --out here"),
        (["--dataset_dir", "there"], "Pass --manifest there"),
        (["--bundle", "basic_unets"], "found there: attention_unet, basic_unet, basic_unet_plusplus"),
        (["--bundle", "tests"], "no configs/train.json"),
        (["--experiment", "soft"], "found there: adam_constant, attention"),
        (["--recipe", "tpu"], "found there: cpu, cpu_quarter, gpu"),
        (["--fold", "0", "--manifest", "nowhere"], "no manifest"),
    ],
)
def test_front_door_refuses(commands: list[list[str]], options: list[str], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        train.main(options)
    assert commands == []


def test_arguments_of_components_are_keys(commands: list[list[str]]) -> None:
    assert train.main(["--network_def#bias", "False", "--train#slices#num_threads", "1"]) == 0
    assert len(commands) == 1


def test_front_door_refuses_experiment_files(commands: list[list[str]], tmp_path: Path) -> None:
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


def test_front_door_runs_folds_in_turn(commands: list[list[str]], folded: Path, tmp_path: Path, capsys) -> None:
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
    config = {**as_recorded(train_config()), "fold": 0, "seed": 5}
    record = {"config": config, "weights": {}, "manifest_sha256": read_manifest(folded).sha256}
    (tmp_path / "fold_0" / "training.json").write_text(json.dumps(record))
    assert train.main([*given, "--fold", "all", "--seed", "5", "--learning_rate", "4e-3"]) == 0
    assert len(commands) == 3
    assert train.main([*given, "--fold", "all", "--seed", "5", "--network_def#dropout", "0.0"]) == 0
    assert len(commands) == 4
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
    assert len(commands) == 4
    with pytest.raises(PipelineError, match="holds a finished training"):
        train.main([*given[:-1], "--fold", "0", "--seed", "5"])
    (tmp_path / "fold_0" / "training.json").unlink()
    capsys.readouterr()
    assert train.main([*given, "--fold", "0"]) == 0
    assert "fold_0: nothing to resume, starts afresh" in capsys.readouterr().out
    assert train.main([*given, "--fold", "1"]) == 0
    assert "nothing to resume" not in capsys.readouterr().out
    assert ["--resume" in command for command in commands[4:]] == [False, True]
    with pytest.raises(PipelineError, match="found: 0, 1"):
        train.main([*given, "--fold", "2"])
    with pytest.raises(PipelineError, match="--fold x"):
        train.main([*given, "--fold", "x"])


def test_front_door_passes_the_status_on(commands: list[list[str]], folded: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(train.subprocess, "run", fail)
    assert train.main(["--manifest", str(folded), "--out", str(tmp_path), "--fold", "all"]) == 3
    assert len(commands) == 1

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.subprocess, "run", interrupt)
    assert train.main([]) == 130


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
    assert "warning" not in capsys.readouterr().out
    groups = [{fold: f"{name}{fold}" for fold in (0, 1)} for name in "ab"]
    by_fold = {volume.fold: evaluate.predictors(groups, volume) for volume in volumes}
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
    rows = [(tmp_path / name / "scores.csv").read_text().splitlines() for name in ("one", "folds")]
    assert set(rows[0]) < set(rows[1])
    with pytest.raises(PipelineError, match="another split, fold or manifest"):
        evaluate.main([*given, str(tmp_path / "one"), "--weights", str(tmp_path / "run/fold_1/model.pt")])
    with pytest.raises(PipelineError, match=r"holds weights of folds 1, 2 \(the manifest's: 0, 1\)"):
        evaluate.main([*one, "--fold", "0"])
    with pytest.raises(PipelineError, match=r"--fold 2 \(the manifest's folds: 0, 1\)"):
        evaluate.main([*one, "--fold", "2"])
    with pytest.raises(PipelineError, match="no patient of it in this --split"):
        evaluate.main([*one, "--fold", "1", "--split", "test"])
    with pytest.raises(PipelineError, match=r"holds weights of folds 1, 2 \(the manifest's: 0, 1\)"):
        evaluate.main([*given, str(tmp_path / "missing"), "--folds", str(tmp_path / "run")])
    shutil.rmtree(tmp_path / "run" / "fold_2")
    shutil.copytree(tmp_path / "run" / "fold_1", tmp_path / "run" / "fold_0")
    assert evaluate.main([*given, str(tmp_path / "swapped"), "--folds", str(tmp_path / "run")]) == 0
    assert "were trained on" in capsys.readouterr().out
    with pytest.raises(PipelineError, match="holds weights of folds none"):
        evaluate.main([*given, str(tmp_path / "none"), "--folds", str(tmp_path)])
    with pytest.raises(PipelineError, match="--weights and --folds"):
        evaluate.main([*given, str(tmp_path / "none"), "--folds", str(tmp_path), "--weights", "model.pt"])


def test_a_fold_that_does_not_exist_is_refused(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, fold=0)
    assert "has no fold 0" in str(failure.value.__cause__)


FOUR_HEADS = "monai.networks.nets.BasicUNetPlusPlus(2, 3, 1, deep_supervision=True)"
MEAN_OF_SIGMOIDS = (
    "$type('Averaged', (monai.networks.nets.BasicUNetPlusPlus,), {'forward': lambda self, x: "
    "torch.stack(monai.networks.nets.BasicUNetPlusPlus.forward(self, x)).sigmoid().mean(dim=0)})"
    "(2, 3, 1, deep_supervision=True)"
)
"""The case report's UNet++."""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("network_def", MEAN_OF_SIGMOIDS, "probab"),
        ("network_def", f"${FOUR_HEADS}", "one tensor of logits"),
        ("network_def", "$torch.nn.Sequential(monai.networks.nets.BasicUNet(2, 3, 1), torch.nn.Sigmoid())", "probab"),
        ("network_def", "$torch.nn.Sequential(monai.networks.nets.BasicUNet(2, 3, 1), torch.nn.Softmax(1))", "probab"),
        ("network_def", {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 2}, "logits"),
        ("loss", {"_target_": "DiceLoss", "sigmoid": False}, "no sigmoid or with two"),
        ("loss", "$lambda p, t: monai.losses.DiceLoss(sigmoid=True, jaccard=True)(p.sigmoid(), t)", "or with two"),
    ],
    ids=["case report", "four heads", "probabilities", "constant", "two channels", "no sigmoid", "two sigmoids"],
)
def test_what_collapsed_is_refused(manifest, run_config, tmp_path: Path, key, value, message) -> None:  # noqa: PLR0917
    """The case report's UNet++ averaged four heads after a sigmoid, and the loss applied another."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, **{key: value})
    assert message in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


def test_unet_plusplus_cannot_be_given_more_heads(manifest, run_config, tmp_path: Path) -> None:
    config = ROOT / "bundles" / "basic_unet_plusplus" / "configs" / "train.json"
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(config, **folders, **TINY, **{"network_def#deep_supervision": True})
    assert "deep_supervision" in str(failure.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_two_processes_report_the_dsc_of_one(bundle: Path, phantoms: Path, run_config: Any, tmp_path: Path) -> None:
    """Two gloo processes, three validation patients: what they report is what one process gives for the weights."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    split = ["--split", "random", "--validation-fraction", "0.4", "--out", str(tmp_path / "manifest")]
    assert manifest_cli.main([str(phantoms), *split]) == 0
    configs = [str(bundle / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(configs), "--dataset_dir", str(tmp_path / "manifest")]
    command += ["--ckpt_dir", "run", "--output_dir", "run", *LITTLE, "--ema_momentum", "0.5", "--learning_rate", "0.02"]
    command += ["--threshold", "0.3"]  # a tiny training may mark nothing at 0.5
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("epoch 2/2") == 1
    assert len([*(tmp_path / "run").glob("events.*")]) == 1
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["processes"], record["slices_per_process_and_step"]) == (2, TINY["batch_size"] // 2)
    assert record["patients_per_process"] == [3, 2]
    assert len(record["training_patients"]) == 5
    curves = EventAccumulator(str(tmp_path / "run"))
    curves.Reload()
    reported = curves.Scalars("val_loss")[-1].value, curves.Scalars("val_dsc")[-1].value
    folders = {"dataset_dir": str(tmp_path / "manifest"), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    from monai.bundle import ConfigWorkflow

    config = str(bundle / "configs" / "train.json")
    workflow = ConfigWorkflow(config, logging_file=False, **{**TINY, **folders}, threshold=0.3)
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.network.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
    evaluator.run()
    metrics = evaluator.state.metrics
    assert metrics["val_dsc"] > 0
    assert reported == pytest.approx((metrics["val_loss"], metrics["val_dsc"]), abs=1e-6)


def test_a_batch_that_cannot_be_shared_out_is_refused(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, world_size=3)
    assert "a batch of 4 cannot be shared out evenly to 3 processes" in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are found in /proc")
def test_two_processes_go_on_where_they_were_stopped(manifest: Path, tmp_path: Path) -> None:
    """Two gloo processes are killed in their second epoch, start again there, and end with their weights written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps, run = 60, tmp_path / "run"
    names = [str(ROOT / "bundles" / "basic_unet" / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(names), "--dataset_dir", str(manifest), *LITTLE]
    command += ["--steps_per_epoch", str(steps), "--ckpt_dir", str(run)]
    with subprocess.Popen([*command, "--output_dir", str(tmp_path / "first")], stdout=subprocess.DEVNULL) as process:
        wait_for((run / "checkpoint_1.pt").is_file, process)
        kill_all(str(run))
        assert process.wait() != 0
    assert {path.name for path in run.iterdir()} >= {"checkpoint_1.pt", "checkpoint.json"}
    assert not (run / "model.pt").exists()
    command += ["--output_dir", str(tmp_path / "second"), "--resume", "True"]
    resumed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert resumed.stdout.count("epoch 2/2") == 1
    assert "epoch 1/2" not in resumed.stdout
    curves = EventAccumulator(str(tmp_path / "second"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("train_loss")] == [*range(steps + 1, 2 * steps + 1)]
    assert (run / "model.pt").is_file()
    assert not [*run.glob("checkpoint*")]


def test_the_last_line_says_how_to_score_and_show(commands, folded: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "other").touch()
    given = ["--manifest", str(folded), "--out", str(out)]
    assert train.main(given) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"next: python -m pipeline.evaluate --manifest {folded} --bundle bundles/basic_unet --weights {out}/model.pt "
        f"--out {out}/scores --figures && python -m pipeline.report {out}/scores"
    )
    assert train.main([*given, "--fold", "1"]) == 0
    assert f"--folds {out} --fold 1 --out {out}/scores" in capsys.readouterr().out.splitlines()[-1]
    for fold, dsc in ((0, 0.5), (1, 0.75)):
        (out / f"fold_{fold}").mkdir()
        record = {"config": {}, "best_validation_dsc": dsc}
        (out / f"fold_{fold}" / "training.json").write_text(json.dumps(record))
    assert train._next(train.arguments().parse_args([*given, "--fold", "all"]), BASIC, out, [0, 1]).startswith(
        "best validation DSC 0.5000, 0.7500; next: "
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_processes_give_the_same_weights(manifest: Path, tmp_path: Path, start: str) -> None:
    """Started either way, of a network and a dataset from the bundle's own scripts."""
    bundle = ROOT / "bundles" / "basic_unet_plusplus"
    weights = []
    for name, options in (("none", ()), (start, ("--train#dataloader#multiprocessing_context", start))):
        command = training_command(bundle, manifest, workers=2 if options else 0, epochs=1)
        out = tmp_path / name
        subprocess.run(into(command, out, *options), cwd=tmp_path, capture_output=True, check=True)
        weights.append(torch.load(out / "model.pt", weights_only=True))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
