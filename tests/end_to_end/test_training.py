"""A training leaves weights, their record and its curves, the same for the same seed; it stops on request."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.cohort.phantoms import make_phantoms
from pipeline.model.bundle import load_bundle
from pipeline.scoring.evaluation import evaluate_volumes
from pipeline.scripts.files import sha256_file
from pipeline.scripts.training import PrepareBatch
from tests.conftest import BASIC, BUNDLES, TINY, every_network, lively_weights, running_module, silent_weights

FIELDS = {"train_loss", "learning_rate", "val_dsc", "val_loss"}


def test_the_trainers_options_reach_a_batch() -> None:
    batch = {"image": torch.ones(1, 1, 2, 2), "label": torch.ones(1, 1, 2, 2)}
    image, label = PrepareBatch(dict)(batch, "cpu", dtype=torch.float64)
    assert image.dtype == label.dtype == torch.float64


@every_network
def test_training_leaves_weights_record_and_curves(trained: tuple[Path, Path], manifest: Path) -> None:
    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert (out / "model_best.pt").is_file()
    assert not [*out.glob("checkpoint*")]  # a finished training leaves nothing to resume
    assert json.loads((out / "run.json").read_text()) == {"status": "completed", "resumed": False}
    record = json.loads((out / "training.json").read_text())
    assert record["weights"] == {name: sha256_file(out / name) for name in ("model.pt", "model_best.pt")}
    assert str(out.parent) not in (out / "training.json").read_text()
    assert record["seed"] == 0
    assert record["config"]["image_size"] == TINY["image_size"]  # the override, not the file's value
    settings = record["prediction"]
    assert (
        settings.pop("network_def")["_target_"]
        == json.loads((bundle / "configs" / "train.json").read_text())["network_def"]["_target_"]
    )
    assert settings == {
        "image_size": TINY["image_size"],
        "around": 0,
        "crop_to_head": True,
        "percentiles": [1, 99.5],
        "normalize_head": True,
        "unrecorded": [],
    }
    assert record["manifest_sha256"] == read_manifest(manifest).sha256
    assert {"torch", "monai", "ignite", "numpy", "python"} <= record["versions"].keys()
    curves = EventAccumulator(str(out / "log"))
    curves.Reload()
    assert set(curves.Tags()["scalars"]) >= FIELDS
    assert len(curves.Scalars("train_loss")) == TINY["max_epochs"] * TINY["steps_per_epoch"]
    assert len(curves.Scalars("val_dsc")) == TINY["max_epochs"]
    rates = [point.value for point in curves.Scalars("learning_rate")]
    assert max(rates) <= 0.004 + 1e-9
    assert rates[-1] < max(rates)
    assert record["best_validation_dsc"] == pytest.approx(max(point.value for point in curves.Scalars("val_dsc")))
    assert [path.name.split(".")[4] for path in (out / "log").glob("events*")] == ["host"]  # not the machine's name
    for tag in ("validation/worst", "validation/median"):
        assert [picture.step for picture in curves.Images(tag)] == list(range(1, TINY["max_epochs"] + 1))
        texts = [event.tensor_proto.string_val[0].decode() for event in curves.Tensors(f"{tag}/text_summary")]
        patients = [volume.patient for volume in read_manifest(manifest).sections["validation"]]
        assert all(text.split(":")[0] in patients for text in texts)


@every_network
def test_same_seed_gives_the_same_weights(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle, out = trained
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **TINY)
    first, second = (torch.load(path / "model.pt", weights_only=True) for path in (out, tmp_path))
    assert all(torch.equal(first[key], second[key]) for key in first)
    run_config(bundle / "configs" / "train.json", **folders, **TINY, seed=1)
    third = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not all(torch.equal(first[key], third[key]) for key in first)


def test_training_says_what_the_manifest_lacks(trained, phantoms, run_config, tmp_path: Path, caplog) -> None:
    folders = {"ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    config = trained[0] / "configs" / "train.json"
    with pytest.raises(RuntimeError) as failure:
        run_config(config, dataset_dir=str(tmp_path), **folders, **TINY)
    assert "manifest.json: no manifest" in str(failure.value.__cause__)
    build_manifest(phantoms, tmp_path / "none", split="none")
    with pytest.raises(RuntimeError) as failure:
        run_config(config, dataset_dir=str(tmp_path / "none"), **folders, **TINY)
    assert "no training patients" in str(failure.value.__cause__)
    build_manifest(phantoms, tmp_path / "all", split="random", validation_fraction=0)
    run_config(config, dataset_dir=str(tmp_path / "all"), **folders, **TINY)
    assert "no validation patients" in caplog.text
    assert (tmp_path / "run" / "model.pt").is_file()
    assert not (tmp_path / "run" / "model_best.pt").exists()


def test_lesion_free_patients_train_and_are_a_class_of_their_own(trained, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    slices = make_phantoms(tmp_path / "phantoms", patients=4, size=48, slices=8, lesion_free=2)
    manifest = tmp_path / "manifest"
    build_manifest(slices, manifest, split="random", validation_fraction=0.25)
    run = tmp_path / "run"
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(run), "output_dir": str(run / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **TINY)
    silent = silent_weights((bundle, run), tmp_path / "silent" / "model.pt")
    result = evaluate_volumes(manifest, [bundle], tmp_path / "nothing", weights=(silent,), split="all")
    summary, healthy = result.summary, [score.patient for score in result.scores if score.lesion_voxels == 0]
    assert len(healthy) == 2
    assert summary["undefined"] == healthy  # nothing was predicted
    assert (summary["volumes"], summary["scored"], summary["dsc_mean"]) == (4, 2, 0.0)
    lively = lively_weights((bundle, run), manifest, tmp_path / "lively" / "model.pt")
    some = evaluate_volumes(manifest, [bundle], tmp_path / "some", weights=(lively,), split="all")
    assert some.summary["false_positive_volumes"] == healthy
    assert some.summary["undefined"] == []
    folders = {"dataset_dir": str(manifest), "output_dir": str(tmp_path / "theirs")}
    weights = {"ckpt_path": str(lively), "image_size": TINY["image_size"]}
    for section in ("training", "validation"):
        run_config(bundle / "configs" / "evaluate.json", **folders, **weights, split=section)
        own = float((tmp_path / "theirs" / "metrics.csv").read_text().split(",")[1])
        part = evaluate_volumes(manifest, [bundle], tmp_path / section, weights=(lively,), split=section)
        assert part.summary["dsc_mean"] == pytest.approx(own, abs=1e-6)
    scores = {score.patient: score for score in some.scores}
    assert all(scores[name].dsc == 0 < scores[name].fp_voxels for name in healthy)


def test_early_stop_ends_a_training_that_does_not_improve(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    bundle, _ = trained
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    overrides = {**TINY, "max_epochs": 6, "steps_per_epoch": 1, "early_stop_patience": 1}
    monkeypatch.setattr(running_module("metrics"), "validation_dsc", lambda engine: 0.5)
    workflow = run_config(bundle / "configs" / "train.json", **folders, **overrides)
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 2
    assert (tmp_path / "model.pt").is_file()


def test_batch_statistics_are_those_of_the_averaged_weights(manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    config = BASIC / "configs" / "train.json"
    # The second of three epochs ends with a validation, so the statistics must be computed again after the third.
    parser = run_config(config, **folders, **{**TINY, "max_epochs": 3, "val_interval": 2}, amp=False).parser
    network, loader, prepare = (
        parser.get_parsed_content(name) for name in ("network_def", "train#dataloader", "train#prepare_batch")
    )
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    set_determinism(seed=0)
    with torch.no_grad():
        means = [network.conv_0.conv_0.conv(prepare(batch, "cpu")[0]).mean((0, 2, 3)) for batch in loader]
    assert len(means) == TINY["steps_per_epoch"]
    assert torch.allclose(network.conv_0.conv_0.adn.N.running_mean, torch.stack(means).mean(0), atol=1e-4)


def test_the_engines_amp_is_for_cuda_alone(trained, manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    workflow = run_config(
        trained[0] / "configs" / "train.json", **folders, **TINY, device="$torch.device('cpu')", amp=True
    )
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.device, trainer.amp) == (torch.device("cpu"), False)


def test_training_batch_holds_lesion_weighted_slices(trained, manifest) -> None:
    workflow = ConfigWorkflow(
        config_file=str(trained[0] / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        dataset_dir=str(manifest),
        **{**TINY, "batch_size": 64, "steps_per_epoch": 1},
    )
    workflow.initialize()
    batch = next(iter(workflow.parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == (64, 3, 32, 32)
    assert batch["label"].shape == (64, 1, 32, 32)
    assert type(batch["image"]).__name__ == "Tensor"
    assert batch["label"].min() >= 0
    assert batch["label"].max() <= 1
    with_lesion = (batch["label"].amax(dim=(1, 2, 3)) > 0.5).float().mean().item()
    assert 0.7 < with_lesion < 1.0  # 9 of 10 by lesion area, and the floor of evenly drawn ones


def test_a_training_says_that_it_will_replace_the_bundles_own_weights(
    manifest, run_config, tmp_path: Path, caplog
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLES[0], bundle, ignore=shutil.ignore_patterns("models", "eval"))
    weights = bundle / "models" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"as shipped")
    metadata = bundle / "configs" / "metadata.json"
    metadata.write_text(
        json.dumps({**json.loads(metadata.read_text()), "weights": {"sha256": sha256_file(weights).upper()}})
    )
    shipped = "bundle's original weights"
    for places, warned in (({"ckpt_dir": str(tmp_path / "mine")}, False), ({}, True)):
        caplog.clear()
        run_config(bundle / "configs" / "train.json", dataset_dir=str(manifest), **places, **{**TINY, "max_epochs": 1})
        assert (shipped in caplog.text) == warned
        assert (weights.read_bytes() == b"as shipped") != warned
    replaced = "weights of a later training, not those that the bundle came with"
    assert replaced in load_bundle(bundle).as_trained()
    assert replaced not in load_bundle(bundle, tmp_path / "mine" / "model.pt").as_trained()


@every_network
@pytest.mark.slow
def test_training_from_the_command_line(trained, manifest, tmp_path: Path) -> None:
    """The README's command with overrides, one inside a section; a line an epoch and where the weights lie."""
    command = ["run", "--config_file", str(trained[0] / "configs" / "train.json"), "--dataset_dir", str(manifest)]
    overrides = {**TINY, "max_epochs": 1, "ckpt_dir": "run", "output_dir": "run", "train#slices#even_share": "1.0"}
    options = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", *command, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if "epoch " in line and "train_loss" in line]
    assert len(lines) == 1
    assert re.search(
        r"epoch 1/1  train_loss \d\.\d{4}  \d+ slices/s  left 0:00:00  val_dsc \d\.\d{4}  val_loss \d\.\d{4}", lines[0]
    )
    assert f"weights: {Path('run') / 'model.pt'}" in result.stdout
    config = json.loads((tmp_path / "run" / "training.json").read_text())["config"]
    assert config["train"]["slices"]["even_share"] == 1.0
