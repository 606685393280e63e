"""Train, resume, evaluate and infer on small phantoms; the figures of all programs agree."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import (
    BUNDLES,
    ROOT,
    TINY,
    evaluated,
    last_bias,
    lively_weights,
    on_cuda,
    running_module,
    save_weights,
    silent_weights,
)

from pipeline import evaluate, phantom, report, train
from pipeline import manifest as manifest_cli
from pipeline.bundle import load_bundle
from pipeline.datalist import read_manifest, select
from pipeline.errors import PipelineError
from pipeline.inference import mask_from_probability, predict_probability
from pipeline.metrics import largest_component
from pipeline.scripts.faults import fault_line
from pipeline.scripts.files import sha256_file, write_durably
from pipeline.trust import faults_of
from pipeline.volumes import AFFINE, load_label, nifti_bytes

FIELDS = {"train_loss", "learning_rate", "val_dsc", "val_loss"}


def scores_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_leaves_weights_record_and_curves(trained: tuple[Path, Path], manifest: Path) -> None:
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
    told = record["prediction"]
    assert (
        told.pop("network_def")["_target_"]
        == json.loads((bundle / "configs" / "train.json").read_text())["network_def"]["_target_"]
    )
    head = bundle.name == "basic_unet_plusplus"
    assert told == {
        "image_size": TINY["image_size"],
        "crop_to_head": True,
        "percentiles": [1, 99.5],
        "normalize_head": head,
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


def interrupted_training(bundle: Path, out: Path, manifest: Path, run_config: Any, monkeypatch: Any) -> dict[str, Any]:
    """Stop a training in its second epoch as Ctrl-C does; returns the overrides it ran with."""
    import torch

    overrides = {"dataset_dir": str(manifest), "ckpt_dir": str(out), "output_dir": str(out / "log"), **TINY}
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == TINY["steps_per_epoch"] + 2:
            raise KeyboardInterrupt
        return clip(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
        with pytest.raises(KeyboardInterrupt):
            run_config(bundle / "configs" / "train.json", **overrides)
    kept = {f"{name}.pt{end}" for name in ("checkpoint_1", "model_best") for end in ("", ".sha256")}
    assert {path.name for path in out.glob("[!.]*.*")} == kept | {"checkpoint.json", "run.json"}
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    return overrides


def test_resumed_training_goes_on(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    import torch
    from ignite.handlers import Checkpoint
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    bundle, out = trained
    config = bundle / "configs" / "train.json"
    overrides = interrupted_training(bundle, tmp_path, manifest, run_config, monkeypatch)
    saved = torch.load(tmp_path / "checkpoint_1.pt", weights_only=True)
    loaded: dict[str, Any] = {}
    load = Checkpoint.load_objects

    def watch(to_load: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        load(to_load, checkpoint)
        loaded.update({key: deepcopy(item.state_dict()) for key, item in to_load.items()})

    monkeypatch.setattr(Checkpoint, "load_objects", watch)
    overrides["output_dir"] = str(tmp_path / "resumed")
    workflow = run_config(config, **overrides, resume="true")
    for name in ("network", "ema"):
        assert all(torch.equal(loaded[name][key], saved[name][key]) for key in saved[name])
    assert not all(torch.equal(saved["network"][key], saved["ema"][key]) for key in saved["ema"])
    for index, moments in saved["optimizer"]["state"].items():
        assert torch.equal(loaded["optimizer"]["state"][index]["exp_avg"], moments["exp_avg"])
    assert loaded["early_stop"]["best_score"] == saved["early_stop"]["best_score"] is not None
    state = workflow.parser.get_parsed_content("train#trainer").state
    assert (state.epoch, state.iteration) == (2, 8)
    rates = {}
    for name, folder in (("whole", out / "log"), ("resumed", tmp_path / "resumed")):
        curves = EventAccumulator(str(folder))
        curves.Reload()
        rates[name] = [(point.step, point.value) for point in curves.Scalars("learning_rate")]
    assert rates["resumed"] == rates["whole"][4:]
    resumed, whole = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, out))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)  # to the bit
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "completed", "resumed": True}


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_a_scaler_is_resumed(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    """Of trainings in 16 bits on CUDA; here one that is there and scales nothing."""
    import torch
    from monai.engines import SupervisedTrainer

    build, scalers = SupervisedTrainer.__init__, []

    def with_scaler(self: Any, *given: Any, **named: Any) -> None:
        build(self, *given, **named)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 if scalers else 64.0)
        self.scaler.scale(torch.ones(1))  # it has a scale once it has been used
        scalers.append(self.scaler)

    monkeypatch.setattr(SupervisedTrainer, "__init__", with_scaler)
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert [scaler.get_scale() for scaler in scalers] == [64.0, 64.0]


def test_a_damaged_checkpoint_is_passed_over(  # noqa: PLR0917
    trained, manifest, run_config, tmp_path: Path, monkeypatch, caplog
) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    good = (tmp_path / "checkpoint_1.pt").read_bytes()
    (tmp_path / "checkpoint_2.pt").write_bytes(good[:-100])
    shutil.copy(tmp_path / "checkpoint_1.pt.sha256", tmp_path / "checkpoint_2.pt.sha256")
    run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "checkpoint_2.pt: damaged" in caplog.text
    assert "going on from checkpoint_1.pt" in caplog.text
    assert not list(tmp_path.glob("checkpoint*"))


def test_resume_with_nothing_whole_is_refused(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    with (tmp_path / "checkpoint_1.pt").open("r+b") as file:
        file.seek(1000)
        file.write(b"flipped")
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "every checkpoint is damaged: checkpoint_1.pt: damaged" in str(failure.value.__cause__)


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_a_damaged_record_of_the_beginning_is_told(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    for content in ("{", "{}", "[]", None):
        (tmp_path / "checkpoint.json").write_text(content) if content else (tmp_path / "checkpoint.json").unlink()
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
        told = fault_line(failure.value)
        assert "checkpoint.json: no readable record of how this training began" in told


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_a_training_that_had_stopped_early_is_resumed_as_stopped(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    """Killed between its last checkpoint and its end, it must end with the same weights."""
    import torch

    config, folders = trained[0] / "configs" / "train.json", {"dataset_dir": str(manifest)}
    patient = {**TINY, "max_epochs": 5, "early_stop_patience": 1}
    monkeypatch.setattr(running_module("metrics"), "validation_dsc", lambda engine: 0.5)
    whole, killed, save = tmp_path / "whole", tmp_path / "killed", torch.save
    run_config(config, **folders, **patient, ckpt_dir=str(whole), output_dir=str(whole))

    def stop(*given: Any) -> None:
        if (killed / "checkpoint_2.pt").is_file():
            raise KeyboardInterrupt
        save(*given)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run_config(config, **folders, **patient, ckpt_dir=str(killed), output_dir=str(killed))
    assert (killed / "checkpoint_2.pt").is_file()
    run_config(config, **folders, **patient, ckpt_dir=str(killed), output_dir=str(killed), resume=True)
    one, other = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_versions_are_refused_unless_allowed(  # noqa: PLR0917
    trained, manifest, run_config, tmp_path: Path, monkeypatch, caplog
) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    path = tmp_path / "checkpoint.json"
    record = json.loads(path.read_text())
    record["versions"]["monai"] = "1.0.0"
    path.write_text(json.dumps(record))
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "changed since the training began: monai (1.0.0, now " in str(failure.value.__cause__)
    assert "--allow_different True" in str(failure.value.__cause__)
    run_config(trained[0] / "configs" / "train.json", **overrides, resume=True, allow_different=True)
    assert "goes on all the same: monai (1.0.0" in caplog.text
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_a_second_training_in_one_folder_is_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys, time\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    overrides = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log"), **TINY}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides)
        assert "another run writes there" in str(failure.value.__cause__)
        assert not list(tmp_path.glob("*.pt"))
        # Its checkpoints are not called those of an interrupted one, to be deleted.
        (tmp_path / "checkpoint_1.pt").touch()
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides)
        assert "another run writes there" in str(failure.value.__cause__)
        with pytest.raises(PipelineError, match="another run writes there"):
            train.main(["--bundle", str(trained[0]), "--manifest", str(manifest), "--out", str(tmp_path)])
        (tmp_path / "checkpoint_1.pt").unlink()
        other.communicate("")
    run_config(trained[0] / "configs" / "train.json", **overrides)  # the other is gone, its lock with it
    assert (tmp_path / "model.pt").is_file()


def test_a_disk_that_refuses_leaves_the_checkpoint(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    """The second epoch's checkpoint meets a full disk; the first one stays, and training goes on from it."""
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == "checkpoint_2.pt":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    overrides = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log"), **TINY}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides)
    assert "checkpoint_2.pt: cannot be written (No space left on device)" in str(failure.value.__cause__)
    assert "Free space" in str(failure.value.__cause__)
    assert not list(tmp_path.glob(".*.tmp"))
    run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert (tmp_path / "model.pt").is_file()


def test_a_switch_that_is_text_is_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    for switch in ("crop_to_head", "amp"):
        with pytest.raises(RuntimeError) as failure:
            overrides = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), **TINY}
            run_config(trained[0] / "configs" / "train.json", **overrides, **{switch: "false"})
        assert "expected True or False, capitalised" in str(failure.value.__cause__)
    assert not list(tmp_path.glob("*.pt"))


def test_resume_refuses_what_would_not_go_on(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    import torch

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **{**overrides, **changes})
        assert message in str(failure.value.__cause__)
        there = {path.name for path in tmp_path.glob("checkpoint*")}
        assert there == {"checkpoint_1.pt", "checkpoint_1.pt.sha256", "checkpoint.json"}

    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    refused("Pass --resume True")
    refused("changed since the training began: learning_rate", resume=True, learning_rate=0.001)
    amp = json.loads((tmp_path / "checkpoint.json").read_text())["amp"]
    with monkeypatch.context() as other_cpu:
        other_cpu.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not amp}, raising=False)
        refused(f"changed since the training began: amp on this device (pass --amp {amp})", resume=True)
    shutil.copytree(manifest, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text((manifest / "manifest.json").read_text() + " ")
    (tmp_path / "other" / "manifest.json.sha256").unlink()
    refused("changed since the training began: the manifest", resume=True, dataset_dir=str(tmp_path / "other"))
    for path in tmp_path.glob("checkpoint_*"):
        path.unlink()
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "nothing to resume" in str(failure.value.__cause__)


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.001}, "max_lr 0.004 (now 0.001)"),
        ({"weight_decay": 0.1}, "weight_decay 0.0001 (now 0.1)"),
        ({"max_epochs": 3}, "max_epochs 2 (now 3)"),
        ({"steps_per_epoch": 5}, "steps_per_epoch 4 (now 5)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_change_that_a_checkpoint_would_undo_is_refused(  # noqa: PLR0917
    trained, manifest, run_config, tmp_path: Path, monkeypatch, change, message
) -> None:
    """Never a record of settings that did not take effect; what a checkpoint does not hold may change."""
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    began = (tmp_path / "checkpoint.json").read_bytes()
    changed = {**overrides, **change, "resume": True, "allow_different": True}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **changed)
    assert message in str(failure.value.__cause__)
    assert "would not take effect" in str(failure.value.__cause__)
    assert (tmp_path / "checkpoint.json").read_bytes() == began
    assert not (tmp_path / "training.json").exists()
    if "learning_rate" in change:
        allowed = {**overrides, "gradient_clip": 1.0, "resume": True, "allow_different": True}
        run_config(trained[0] / "configs" / "train.json", **allowed)
        assert json.loads((tmp_path / "training.json").read_text())["config"]["gradient_clip"] == 1.0


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_handlers_that_leave_the_average_out_are_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    """The weights that are kept would be those of the first step."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **folders, **TINY, **{"train#handlers": []})
    assert "does not attach the average of the weights" in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_a_resumed_training_keeps_its_network_from_a_loader(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    import torch

    config = trained[0] / "configs" / "train.json"
    handlers = json.loads(config.read_text())["train"]["handlers"]
    load = {"_target_": "CheckpointLoader", "load_path": str(trained[1] / "model.pt")}
    loader = {"train#handlers": [{**load, "load_dict": {"model": "$@network"}}, *handlers]}

    def with_loader(path: Path, **overrides: Any) -> Any:
        return run_config(path, **overrides, **loader)

    overrides = interrupted_training(trained[0], tmp_path / "a", manifest, with_loader, monkeypatch)
    with_loader(config, **overrides, resume=True)
    whole = {**overrides, "ckpt_dir": str(tmp_path / "b"), "output_dir": str(tmp_path / "b" / "log")}
    with_loader(config, **whole)
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_a_damaged_volume_is_named_before_any_is_read(trained, manifest, run_config, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "data")
    volume = sorted((tmp_path / "data" / "volumes").glob("*_image.nii.gz"))[0]
    volume.write_bytes(volume.read_bytes()[:-50])
    folders = {"ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", dataset_dir=str(tmp_path / "data"), **folders, **TINY)
    told = fault_line(failure.value)
    assert told
    assert told.startswith(f"{volume}: changed since the manifest was built") or "manifest" in told
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_checkpoints_of_another_version_are_refused(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    del record["record_version"]  # as of 0.1
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True, allow_different=True)
    assert "began with another version of the bundle" in str(failure.value.__cause__)


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_keys_of_earlier_versions_name_their_successors(trained, manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    for config, key, successor in (
        ("train", "missing_sequences", "augmentation"),
        ("train", "train#sampler", "batch_size and steps_per_epoch"),
        ("train", "ckpt_path", "a CheckpointLoader among train#handlers"),
        ("evaluate", "datalist", "dataset_dir"),
    ):
        places = {**folders, "ckpt_dir": str(trained[1])} if config == "evaluate" else {**folders, **TINY}
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / f"{config}.json", **places, **{key: "x"})
        assert f"{key}: is no key of this version. Use {successor}" in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


def test_training_says_what_the_manifest_lacks(trained, phantoms, run_config, tmp_path: Path, caplog) -> None:
    folders = {"ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "log")}
    config = trained[0] / "configs" / "train.json"
    with pytest.raises(RuntimeError) as failure:
        run_config(config, dataset_dir=str(tmp_path), **folders, **TINY)
    assert "manifest.json: no manifest" in str(failure.value.__cause__)
    assert manifest_cli.main([str(phantoms), "--out", str(tmp_path / "none"), "--split", "none"]) == 0
    with pytest.raises(RuntimeError) as failure:
        run_config(config, dataset_dir=str(tmp_path / "none"), **folders, **TINY)
    assert "no training patients" in str(failure.value.__cause__)
    everyone = ["--split", "random", "--validation-fraction", "0"]
    assert manifest_cli.main([str(phantoms), "--out", str(tmp_path / "all"), *everyone]) == 0
    run_config(config, dataset_dir=str(tmp_path / "all"), **folders, **TINY)
    assert "no validation patients" in caplog.text
    assert (tmp_path / "run" / "model.pt").is_file()
    assert not (tmp_path / "run" / "model_best.pt").exists()


def test_lesion_free_patients_train_and_are_a_class_of_their_own(trained, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    size = ["--patients", "4", "--size", "48", "--slices", "8", "--lesion-free", "2"]
    assert phantom.main([str(tmp_path / "phantoms"), *size]) == 0
    split = ["--split", "random", "--validation-fraction", "0.25", "--out", str(tmp_path / "manifest")]
    assert manifest_cli.main([str(tmp_path / "phantoms" / "kaggle_3m"), *split]) == 0
    run = tmp_path / "run"
    folders = {"dataset_dir": str(tmp_path / "manifest"), "ckpt_dir": str(run), "output_dir": str(run / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **TINY)
    silent_weights((bundle, run), tmp_path / "silent" / "model.pt")
    summary = evaluated((bundle, tmp_path / "silent"), tmp_path / "manifest", tmp_path / "nothing", "--split", "all")
    healthy = [row["patient"] for row in scores_of(tmp_path / "nothing") if row["lesion_voxels"] == "0"]
    assert len(healthy) == 2
    assert summary["undefined"] == healthy  # nothing was predicted
    assert (summary["volumes"], summary["scored"], summary["dsc_mean"]) == (4, 2, 0.0)
    lively_weights((bundle, run), tmp_path / "manifest", tmp_path / "lively" / "model.pt")
    summary = evaluated((bundle, tmp_path / "lively"), tmp_path / "manifest", tmp_path / "some", "--split", "all")
    assert summary["false_positive_volumes"] == healthy
    assert summary["undefined"] == []
    folders = {"dataset_dir": str(tmp_path / "manifest"), "output_dir": str(tmp_path / "theirs")}
    weights = {"ckpt_path": str(tmp_path / "lively" / "model.pt"), "image_size": TINY["image_size"]}
    for section in ("training", "validation"):
        run_config(bundle / "configs" / "evaluate.json", **folders, **weights, split=section)
        own = float((tmp_path / "theirs" / "metrics.csv").read_text().split(",")[1])
        part = evaluated((bundle, tmp_path / "lively"), tmp_path / "manifest", tmp_path / section, "--split", section)
        assert part["dsc_mean"] == pytest.approx(own, abs=1e-6)
    rows = {row["patient"]: row for row in scores_of(tmp_path / "some")}
    assert all(float(rows[name]["dsc"]) == 0 < int(rows[name]["fp_voxels"]) for name in healthy)


def test_same_seed_gives_the_same_weights(trained, manifest, run_config, tmp_path: Path) -> None:
    import torch

    bundle, out = trained
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **TINY)
    first, second = (torch.load(path / "model.pt", weights_only=True) for path in (out, tmp_path))
    assert all(torch.equal(first[key], second[key]) for key in first)
    run_config(bundle / "configs" / "train.json", **folders, **TINY, seed=1)
    third = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not all(torch.equal(first[key], third[key]) for key in first)


def test_the_engines_amp_is_for_cuda_alone(trained, manifest, run_config, tmp_path: Path) -> None:
    import torch

    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    workflow = run_config(
        trained[0] / "configs" / "train.json", **folders, **TINY, device="$torch.device('cpu')", amp=True
    )
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.device, trainer.amp) == (torch.device("cpu"), False)


@on_cuda
def test_training_finds_cuda(trained, manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    workflow = run_config(trained[0] / "configs" / "train.json", **folders, **TINY)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.device.type, trainer.amp) == ("cuda", True)
    assert (tmp_path / "model.pt").is_file()


@on_cuda
def test_slices_lie_on_cuda_and_are_augmented_there_as_on_a_cpu(trained, manifest) -> None:
    import torch
    from monai.bundle import ConfigWorkflow

    batches = {}
    for kind in ("cuda", "cpu"):
        workflow = ConfigWorkflow(
            str(trained[0] / "configs" / "train.json"),
            logging_file=False,
            **{**TINY, "dataset_dir": str(manifest), "device": f"$torch.device('{kind}')"},
        )
        workflow.initialize()
        slices, prepare, device = (
            workflow.parser.get_parsed_content(key) for key in ("train#slices", "train#prepare_batch", "device")
        )
        assert {value.device.type for volume in slices.volumes for value in volume.values()} == {kind}
        torch.manual_seed(0)
        batches[kind] = prepare(slices[[0, 3, 7]], device, False)
        assert {part.device.type for part in batches[kind]} == {kind}
    for there, here in zip(batches["cuda"], batches["cpu"], strict=True):
        assert torch.allclose(there.cpu(), here, atol=1e-3)


@on_cuda
def test_evaluation_on_cuda_gives_what_a_cpu_gives(trained, manifest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra backends) is not installed")
    lively_weights(trained, manifest, tmp_path / "model.pt")
    there = evaluated((trained[0], tmp_path), manifest, tmp_path / "there")
    here = evaluated((trained[0], tmp_path), manifest, tmp_path / "here", "--backend", "onnx")
    assert (there["device"], here["device"]) == ("cuda", "cpu")
    assert there["dsc_mean"] == pytest.approx(here["dsc_mean"], abs=1e-3)


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


def test_a_loss_that_is_not_finite_stops_training(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    overrides = {
        **TINY,
        "augmentation": [{"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * float('nan')"}],
    }
    with pytest.raises(Exception, match="Failed to evaluate") as failure:
        run_config(bundle / "configs" / "train.json", **folders, **overrides)
    assert "not finite at iteration 1" in str(failure.value.__cause__)
    assert not (tmp_path / "model.pt").exists()


def test_training_batch_holds_lesion_weighted_slices(trained, manifest) -> None:
    from monai.bundle import ConfigWorkflow

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


def test_evaluate_agrees_with_the_bundle_and_with_medpy(trained, manifest, run_config, tmp_path: Path) -> None:
    from medpy.metric.binary import dc

    bundle, _ = trained
    weights = lively_weights(trained, manifest, tmp_path / "model.pt")
    summary = evaluated((bundle, tmp_path), manifest, tmp_path / "ours", "--split", "validation")
    folders = {"dataset_dir": str(manifest), "ckpt_path": str(weights), "output_dir": str(tmp_path / "theirs")}
    run_config(bundle / "configs" / "evaluate.json", image_size=TINY["image_size"], **folders)
    own = float((tmp_path / "theirs" / "metrics.csv").read_text().split(",")[1])
    assert summary["bundles"][0]["settings"] == {"image_size": TINY["image_size"]}
    assert summary["dsc_mean"] > 0  # something was predicted and something was hit
    assert summary["dsc_mean"] == pytest.approx(own, abs=1e-6)
    rows = scores_of(tmp_path / "ours")
    volumes = {volume.patient: volume for volume in read_manifest(manifest).sections["validation"]}
    assert {row["patient"] for row in rows} == volumes.keys()
    per_volume = (tmp_path / "theirs" / "val_dsc_raw.csv").read_text()
    assert str(tmp_path) not in per_volume
    theirs = {line.split("_image")[0]: float(line.split(",")[1]) for line in per_volume.splitlines()[1:]}
    assert theirs.keys() == volumes.keys()
    for row in rows:
        volume = volumes[row["patient"]]
        mask = tmp_path / "ours" / "masks" / f"{row['patient']}_mask.nii.gz"
        image = nib.load(volume.image)
        assert np.array_equal(nib.load(mask).affine, image.affine)
        assert nib.load(mask).shape == image.shape[:3]
        assert float(row["dsc"]) == pytest.approx(dc(load_label(mask), load_label(volume.label)), abs=1e-6)
        assert float(row["dsc"]) == pytest.approx(theirs[row["patient"]], abs=1e-6)


def test_the_reference_protocol_drops_end_slices_before_the_component_rule(trained, manifest, tmp_path: Path) -> None:
    bundle, _ = trained
    lively_weights(trained, manifest, tmp_path / "model.pt")
    lively = (bundle, tmp_path)
    native = evaluated(lively, manifest, tmp_path / "native", "--split", "all")
    reference = evaluated(lively, manifest, tmp_path / "reference", "--split", "all", "--protocol", "reference")
    assert (native["volumes"], native["protocol"], reference["protocol"]) == (8, "native", "reference")
    volumes = {volume.patient: volume for volume in select(read_manifest(manifest), "all")}
    built = load_bundle(bundle, tmp_path / "model.pt")
    for row in scores_of(tmp_path / "reference"):
        inner = predict_probability([built], volumes[row["patient"]].image)[..., 1:-1]
        assert int(row["tp_voxels"]) + int(row["fp_voxels"]) == largest_component(inner >= 0.5).sum()


def test_probabilities_are_averaged_over_bundles_and_flips(trained, manifest, tmp_path: Path) -> None:
    bundle, out = trained
    one = load_bundle(bundle, out / "model.pt")
    other = load_bundle(bundle, lively_weights(trained, manifest, tmp_path / "model.pt"))
    image = read_manifest(manifest).sections["validation"][0].image
    alone = [predict_probability([item], image) for item in (one, other)]
    assert np.abs(alone[0] - alone[1]).max() > 0.001
    assert np.allclose(predict_probability([one, other], image), np.mean(alone, axis=0), atol=1e-6)
    volume = nib.load(image)
    mirrored = tmp_path / "mirrored_image.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[:, ::-1], volume.affine), mirrored)
    by_hand = (alone[1] + predict_probability([other], mirrored)[:, ::-1]) / 2
    assert np.abs(by_hand - alone[1]).max() > 0.001
    assert np.allclose(predict_probability([other], image, flips=True), by_hand, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 56, 5, 3), (48, 48, 1, 3), (17, 16, 3, 3)])
@pytest.mark.parametrize("content", ["noise", "black", "one bright voxel"])
def test_odd_volumes_come_back_on_their_own_grid(trained, tmp_path: Path, shape: tuple[int, ...], content: str) -> None:
    bundle, out = trained
    voxels = np.zeros(shape, dtype=np.uint8)
    if content == "noise":
        voxels[:] = np.random.default_rng(0).integers(0, 255, shape)
    elif content == "one bright voxel":
        voxels[3, 4, 0, 1] = 255
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "x_image.nii.gz")
    built = load_bundle(bundle, out / "model.pt")
    probability = predict_probability([built], tmp_path / "x_image.nii.gz", flips=True)
    assert probability.shape == shape[:3]
    assert probability.dtype == np.float32
    assert 0 <= probability.min() <= probability.max() <= 1


def test_a_volume_that_cannot_be_read_is_named(trained, tmp_path: Path) -> None:
    built = load_bundle(trained[0], trained[1] / "model.pt")
    (tmp_path / "x_image.nii.gz").write_bytes(b"no volume")
    with pytest.raises(PipelineError, match=r"x_image\.nii\.gz"):
        predict_probability([built], tmp_path / "x_image.nii.gz")
    with pytest.raises(PipelineError, match="no bundle"):
        predict_probability([], tmp_path / "x_image.nii.gz")


def test_evaluate_averages_and_flips(trained, manifest, tmp_path: Path, monkeypatch) -> None:
    from pipeline import inference

    bundle, out = trained
    lively_weights(trained, manifest, tmp_path / "model.pt")
    asked: list[tuple[int, bool]] = []
    passes = inference.predict_passes

    def watch(bundles: Any, image: Path, *, flips: bool) -> Any:
        asked.append((len(bundles), flips))
        return passes(bundles, image, flips=flips)

    monkeypatch.setattr(inference, "predict_passes", watch)
    evaluated((bundle, tmp_path), manifest, tmp_path / "alone")
    second = ("--bundle", str(bundle), "--weights", str(out / "model.pt"))
    both = evaluated((bundle, tmp_path), manifest, tmp_path / "both", *second)
    assert [item["weights_sha256"] for item in both["bundles"]] == [
        sha256_file(folder / "model.pt") for folder in (tmp_path, out)
    ]
    flipped = evaluated((bundle, tmp_path), manifest, tmp_path / "flipped", "--tta")
    assert flipped["tta"] is True
    assert asked == [(1, False)] * 2 + [(2, False)] * 2 + [(1, True)] * 2


def test_evaluate_draws_figures_and_uncertainty(trained, manifest, tmp_path: Path, capsys) -> None:
    lively_weights(trained, manifest, tmp_path / "model.pt")
    for path in trained[1].glob("log/events*"):
        shutil.copy(path, tmp_path)
    asked = ("--figures", "--tta", "--uncertainty")
    evaluated((trained[0], tmp_path), manifest, tmp_path / "out", *asked)
    patients = [volume.patient for volume in read_manifest(manifest).sections["validation"]]
    assert (tmp_path / "out" / "figures" / "dsc.png").is_file()
    for patient in patients:
        drawn = len(list((tmp_path / "out" / "figures" / patient).glob("slice_*.png")))
        mask = load_label(tmp_path / "out" / "masks" / f"{patient}_mask.nii.gz")
        truth = load_label(tmp_path / "out" / "volumes" / f"{patient}_label.nii.gz")
        assert drawn == (mask | truth).any(axis=(0, 1)).sum() < mask.shape[2]
        assert (tmp_path / "out" / "uncertainty" / f"{patient}_uncertainty.nii.gz").is_file()
    assert all(0 < float(row["agreement"]) <= 1 for row in scores_of(tmp_path / "out"))
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    tags = curves[trained[0].name]
    assert [step for step, _ in tags["val_dsc"]] == [4, 8]  # iterations, as those of the training loss
    assert [step for step, _ in tags["train_loss"]] == list(range(1, 9))
    assert "(2 of 2 patients drawn" in capsys.readouterr().out
    evaluated((trained[0], tmp_path), manifest, tmp_path / "out", *asked)
    assert "(0 of 2 patients drawn" in capsys.readouterr().out
    evaluated((trained[0], tmp_path), manifest, tmp_path / "out")
    assert not list((tmp_path / "out" / "uncertainty").iterdir())
    assert not list((tmp_path / "out" / "figures").iterdir())  # they were of a mask and a map of before
    with pytest.raises(PipelineError, match="--uncertainty of one network"):
        evaluated((trained[0], tmp_path), manifest, tmp_path / "out", "--uncertainty")
    with pytest.raises(PipelineError, match="--all-slices without --figures"):
        evaluated((trained[0], tmp_path), manifest, tmp_path / "out", "--all-slices")


def test_report_of_an_evaluation_needs_neither_weights_nor_manifest(trained, manifest, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "manifest")
    shutil.copytree(trained[1], tmp_path / "weights")
    evaluated((trained[0], tmp_path / "weights"), tmp_path / "manifest", tmp_path / "out")
    shutil.rmtree(tmp_path / "manifest")
    shutil.rmtree(tmp_path / "weights")
    assert report.main([str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert record["bundles"][0]["weights_sha256"] in page
    assert "8 steps of 4 slices, 32 px; seed 0" in page
    assert page.count("data:image/webp") > 4


def test_an_evaluation_that_did_not_end_says_so(trained, manifest, tmp_path: Path, monkeypatch) -> None:
    """Its masks may be of two runs."""
    evaluated(trained, manifest, tmp_path / "out")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.evaluate._keep_curves", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluated(trained, manifest, tmp_path / "out", "--tta")
    with pytest.raises(PipelineError, match="did not come to its end"):
        report.main([str(tmp_path / "out")])
    evaluated(trained, manifest, tmp_path / "out", "--tta")
    assert report.main([str(tmp_path / "out")]) == 0


def test_results_of_another_split_are_not_mixed(trained, manifest, tmp_path: Path) -> None:
    evaluated(trained, manifest, tmp_path / "out", "--split", "validation")
    evaluated(trained, manifest, tmp_path / "out", "--split", "validation", "--tta")
    with pytest.raises(PipelineError, match="another split"):
        evaluated(trained, manifest, tmp_path / "out", "--split", "test")


def test_evaluate_twice_writes_the_same_bytes(trained, manifest, tmp_path: Path) -> None:
    for name in ("first", "second"):
        evaluated(trained, manifest, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    # Table, summary, curves; of two patients mask, image and label.
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_evaluate_writes_no_path_of_the_machine(trained, manifest, tmp_path: Path) -> None:
    evaluated(trained, manifest, tmp_path / "out")
    for name in ("scores.csv", "summary.json", "curves.json"):
        assert str(tmp_path.parent) not in (tmp_path / "out" / name).read_text()


def test_a_changed_volume_is_refused_before_anything_is_scored(trained, manifest, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "manifest")
    label = next((tmp_path / "manifest" / "volumes").glob("*_label.nii.gz"))
    data = bytearray(label.read_bytes())
    data[len(data) // 2] ^= 1
    label.write_bytes(bytes(data))
    with pytest.raises(PipelineError, match=label.name):
        evaluated(trained, tmp_path / "manifest", tmp_path / "out", "--split", "all")
    assert not (tmp_path / "out").exists()


def test_case_33_weights_of_another_architecture_name_the_keys(trained, manifest, tmp_path: Path) -> None:
    import torch

    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    key = last_bias(state)
    state["stranger"] = state.pop(key)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(PipelineError, match=rf"(?s)missing {re.escape(key)}.*unexpected stranger"):
        evaluated((bundle, tmp_path), manifest, tmp_path / "out")
    torch.save({"model": state}, tmp_path / "model.pt")
    with pytest.raises(PipelineError, match="no plain state dict"):
        evaluated((bundle, tmp_path), manifest, tmp_path / "out")
    (tmp_path / "model.pt").write_bytes((out / "model.pt").read_bytes()[:1000])
    with pytest.raises(PipelineError, match="no readable weights"):
        evaluated((bundle, tmp_path), manifest, tmp_path / "out")
    (tmp_path / "model.pt").unlink()
    with pytest.raises(PipelineError, match="no weights"):
        evaluated((bundle, tmp_path), manifest, tmp_path / "out")


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (math.nan, "model.pt: NaN or Inf in {key}"),
        (1e38, "basic_unet: the prediction of .*_image.nii.gz holds NaN or Inf"),
    ],
    ids=["weights", "prediction"],
)
def test_case_35_nan_is_an_error_with_its_place(trained, manifest, tmp_path: Path, spoil: float, message: str) -> None:
    import torch

    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    key = last_bias(state)
    for name, value in state.items():
        if spoil < math.inf and value.is_floating_point() and not name.endswith("running_var"):
            value.mul_(spoil).clamp_(-spoil, spoil)
    state[key] += math.nan if math.isnan(spoil) else 0
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(PipelineError, match=message.format(key=re.escape(key))):
        evaluated((bundle, tmp_path), manifest, tmp_path / "out")
    assert not (tmp_path / "out" / "scores.csv").exists()


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_case_35_bundle_configs_stop_at_nan_and_name_the_volume(
    trained, manifest, run_config, tmp_path, config
) -> None:
    import torch

    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    state[last_bias(state)] += math.nan
    torch.save(state, tmp_path / "model.pt")
    folders = {"dataset_dir": str(manifest), "ckpt_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "o")}
    with pytest.raises(RuntimeError) as failure:
        run_config(bundle / "configs" / f"{config}.json", **folders, image_size=TINY["image_size"])
    assert re.search(r"the prediction of \S+_image.nii.gz holds NaN or Inf", str(failure.value.__cause__))
    assert not list(tmp_path.glob("o/*"))


def test_patients_the_weights_were_trained_on_are_named(trained, manifest, phantoms, tmp_path: Path, capsys) -> None:
    unseen = evaluated(trained, manifest, tmp_path / "unseen")
    assert unseen["seen_in_training"] == []
    other = ["--split", "random", "--validation-fraction", "0.5", "--seed", "7", "--out", str(tmp_path / "other")]
    assert manifest_cli.main([str(phantoms), *other]) == 0
    capsys.readouterr()
    seen = evaluated(trained, tmp_path / "other", tmp_path / "seen")["seen_in_training"]
    trained_on = {volume.patient for volume in read_manifest(manifest).sections["training"]}
    validated = {volume.patient for volume in read_manifest(tmp_path / "other").sections["validation"]}
    assert set(seen) == trained_on & validated != set()
    printed = capsys.readouterr().out
    assert f"warning: {len(seen)} of {len(validated)} patients were trained on" in printed
    assert all(patient in printed for patient in seen)


def test_weights_without_their_record_are_said_to_be(trained, manifest, tmp_path: Path, capsys) -> None:
    shutil.copy(trained[1] / "model.pt", tmp_path)
    summary = evaluated((trained[0], tmp_path), manifest, tmp_path / "out")
    assert not summary["bundles"][0]["recorded"]
    assert "no training.json beside the weights" in capsys.readouterr().out


def test_other_weights_than_the_bundle_came_with_are_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle = tmp_path / trained[0].name
    shutil.copytree(trained[0], bundle, ignore=shutil.ignore_patterns("models", "eval"))
    (bundle / "models").mkdir()
    weights, record = bundle / "models" / "model.pt", bundle / "models" / "training.json"
    shutil.copy(trained[1] / "model.pt", weights)
    metadata = bundle / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    places = {"dataset_dir": str(manifest), "output_dir": str(tmp_path / "masks"), "image_size": TINY["image_size"]}

    def predicts() -> list[str]:
        told = []
        for config in ("inference", "evaluate"):
            try:
                run_config(bundle / "configs" / f"{config}.json", **places)
            except RuntimeError as error:
                told.append(str(error.__cause__))
        return told

    metadata.write_text(json.dumps({**content, "weights": {"sha256": sha256_file(weights).upper()}}))
    assert not load_bundle(bundle).recorded
    assert predicts() == []
    weights.write_bytes(b"not even a state dict")
    with pytest.raises(PipelineError, match=r"SHA-256 .*\(the bundle's metadata"):
        load_bundle(bundle)
    assert ["the bundle's metadata" in text for text in predicts()] == [True, True]
    shutil.copy(trained[1] / "model.pt", weights)
    metadata.write_text(json.dumps({**content, "weights": {"sha256": "0" * 64}}))
    assert ["the bundle's metadata" in text for text in predicts()] == [True, True]
    shutil.copy(trained[1] / "training.json", record)  # a training of the user's own, with its record
    assert load_bundle(bundle).recorded
    assert predicts() == []
    for other in ({}, {"model.pt": "0" * 64}):
        record.write_text(json.dumps({**json.loads(record.read_text()), "weights": other}))
        assert ["belongs to other weights" in text for text in predicts()] == [True, True]
    record.unlink()
    for unknown in (None, "text", {"md5": "0"}):  # of such metadata nothing is known
        metadata.write_text(json.dumps({**content, "weights": unknown}))
        assert load_bundle(bundle).weights_sha256 == sha256_file(weights)
        assert predicts() == []


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
    shipped = "weights that the bundle came with"
    for places, warned in (({"ckpt_dir": str(tmp_path / "mine")}, False), ({}, True)):
        caplog.clear()
        run_config(bundle / "configs" / "train.json", dataset_dir=str(manifest), **places, **{**TINY, "max_epochs": 1})
        assert (shipped in caplog.text) == warned
        assert (weights.read_bytes() == b"as shipped") != warned
    replaced = "other weights than the bundle came with"
    assert replaced in load_bundle(bundle).as_trained()
    assert replaced not in load_bundle(bundle, tmp_path / "mine" / "model.pt").as_trained()


def test_out_must_not_be_a_file(trained, manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match="is a file"):
        evaluated(trained, manifest, tmp_path / "file")
    with pytest.raises(PipelineError, match="a file stands where a folder is needed"):
        write_durably(tmp_path / "file" / "scores.csv", b"")


@pytest.mark.parametrize("trained", [ROOT / "bundles" / "basic_unet"], indirect=True, ids=["basic_unet"])
def test_weights_are_held_against_the_hash_beside_them(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle, out = trained
    for name in ("model.pt", "model.pt.sha256"):
        shutil.copy(out / name, tmp_path / name)
    evaluated((bundle, tmp_path), manifest, tmp_path / "out")
    data = bytearray((tmp_path / "model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(PipelineError, match=r"model.pt: damaged, its SHA-256 .* is not that in model.pt.sha256"):
        evaluated((bundle, tmp_path), manifest, tmp_path / "out")
    for config in ("evaluate", "inference"):
        with pytest.raises(RuntimeError) as failure:
            run_config(
                bundle / "configs" / f"{config}.json",
                ckpt_path=str(tmp_path / "model.pt"),
                output_dir=str(tmp_path / "own"),
                dataset_dir=str(manifest if config == "evaluate" else manifest / "volumes"),
            )
        assert re.search(r"model.pt: damaged, its SHA-256 \w+ is not that", str(failure.value.__cause__))


def test_a_damaged_training_record_is_named(trained, manifest, tmp_path: Path) -> None:
    shutil.copy(trained[1] / "model.pt", tmp_path)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(PipelineError, match=r"training\.json: no readable record"):
        evaluated((trained[0], tmp_path), manifest, tmp_path / "out")
    record = json.loads((trained[1] / "training.json").read_text())
    prediction = record["prediction"]
    for changes, message in (
        ({"weights": {"model.pt": "0" * 64}}, "belongs to other weights"),
        ({"prediction": {**prediction, "unrecorded": ["image_spatial"]}}, "trained with image_spatial of its own"),
        ({"prediction": {**prediction, "image_size": "$1"}}, "holds image_size as none of the plain values"),
        ({"prediction": {**prediction, "network_def": {"_target_": "os.system"}}}, "holds network_def as none of the"),
        ({"prediction": {**prediction, "imports": ["$import os"]}}, "holds imports as none of the plain values"),
        ({"prediction": []}, "has no readable 'prediction'"),
    ):
        (tmp_path / "training.json").write_text(json.dumps({**record, **changes}))
        with pytest.raises(PipelineError, match=message):
            evaluated((trained[0], tmp_path), manifest, tmp_path / "out")


def test_weights_trained_without_the_crop_predict_without_it(trained, manifest, tmp_path: Path) -> None:
    import torch

    state = torch.load(trained[1] / "model.pt", weights_only=True)
    weights = save_weights(state, trained, tmp_path / "model.pt")
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["prediction"]["crop_to_head"] is True
    record["prediction"]["crop_to_head"] = False
    (tmp_path / "training.json").write_text(json.dumps(record))
    volume = read_manifest(manifest).sections["validation"][0]
    voxels = torch.zeros(40, 44, 3, 3, dtype=torch.uint8)
    voxels[10:30, 12:40] = 200
    (tmp_path / "image.nii.gz").write_bytes(nifti_bytes(voxels.numpy()))
    cropped, whole = load_bundle(trained[0], trained[1] / "model.pt"), load_bundle(trained[0], weights)
    assert whole.settings == {"image_size": TINY["image_size"], "crop_to_head": False}
    for bundle, share in ((cropped, 1.0), (whole, 20 * 28 / (40 * 44))):
        seen = bundle.preprocessing({"image": str(tmp_path / "image.nii.gz")})["image"]
        assert seen.shape[1:3] == (TINY["image_size"],) * 2
        assert float((seen[0] >= seen[0].mean()).float().mean()) == pytest.approx(share, abs=0.05)
    assert predict_probability([whole], volume.image).shape == load_label(volume.label).shape


def test_bundle_and_weights_come_in_pairs(trained, manifest, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="expected one each"):
        evaluated(trained, manifest, tmp_path / "out", "--bundle", str(trained[0]))
    with pytest.raises(PipelineError, match=r"configs/inference\.json"):
        evaluated((tmp_path, trained[1]), manifest, tmp_path / "out")


def test_a_broken_config_is_named(trained, manifest, tmp_path: Path) -> None:
    bundle, out = trained
    (tmp_path / "configs").mkdir()
    shutil.copy(out / "model.pt", tmp_path)
    config = tmp_path / "configs" / "inference.json"
    whole = (bundle / "configs" / "inference.json").read_text()
    for text, message in (
        (whole[:100], "no readable JSON"),
        ("{}", "device, network"),
        (json.dumps({**json.loads(whole), "network_def": {"_target_": "NoSuchNetwork"}}), "'network' cannot be built"),
    ):
        config.write_text(text)
        with pytest.raises(PipelineError, match=message):
            evaluated((tmp_path, tmp_path), manifest, tmp_path / "out", "--trust")


def test_a_foreign_bundle_is_read_before_it_runs(trained, manifest, tmp_path: Path) -> None:
    """It would create a file as soon as its config is resolved; with ``--trust`` it does."""
    bundle, out = trained
    foreign = shutil.copytree(bundle, tmp_path / "foreign", ignore=shutil.ignore_patterns("models"))
    config = foreign / "configs" / "inference.json"
    content = json.loads(config.read_text())
    attack = f"$__import__('pathlib').Path({str(tmp_path / 'pwned')!r}).touch() or torch.device('cpu')"
    config.write_text(json.dumps({**content, "device": attack}, indent=2))
    given = ["--manifest", str(manifest), "--bundle", str(foreign), "--weights", str(out / "model.pt")]
    with pytest.raises(PipelineError, match="if you trust it, pass --trust") as error:
        evaluate.main([*given, "--out", str(tmp_path / "scores")])
    line = next(n for n, text in enumerate(config.read_text().splitlines(), 1) if "pwned" in text)
    found = [str(fault) for fault in faults_of(foreign, only=["configs/inference.json"])]
    assert f"configs/inference.json:{line}: the attribute 'touch'" in found
    assert f"configs/inference.json:{line}: the attribute 'touch'" in str(error.value)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "scores").exists()
    assert evaluate.main([*given, "--out", str(tmp_path / "scores"), "--trust"]) == 0
    assert (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_bundle_runs_alone_from_any_directory(trained, manifest, tmp_path: Path) -> None:
    """Copied elsewhere, started by MONAI's own command line where ``pipeline`` cannot be imported."""
    bundle, _ = trained
    shutil.copytree(bundle, tmp_path / "elsewhere" / bundle.name, ignore=shutil.ignore_patterns("*.pt", "eval"))
    copied = tmp_path / "elsewhere" / bundle.name
    (copied / "models").mkdir(exist_ok=True)
    weights = lively_weights(trained, manifest, copied / "models" / "model.pt")
    patients = tmp_path / "images"
    patients.mkdir()
    volume = read_manifest(manifest).sections["validation"][0]
    shutil.copy(volume.image, patients)
    code = "import runpy, sys; sys.modules['pipeline'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    config = str(copied / "configs" / "inference.json")
    command = ["run", "--config_file", config, "--dataset_dir", str(patients), "--output_dir", "masks"]
    command += ["--image_size", str(TINY["image_size"])]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    written = nib.load(tmp_path / "masks" / f"{volume.patient}_image_mask.nii.gz")
    assert written.shape == nib.load(volume.image).shape[:3]
    built = load_bundle(bundle, weights)
    expected = mask_from_probability(built, predict_probability([built], volume.image))
    assert expected.any()
    assert np.array_equal(np.asarray(written.dataobj), expected)
    assert np.allclose(written.affine, nib.load(volume.image).affine, atol=1e-5)


def test_inference_without_volumes_is_said(trained, run_config, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "inference.json", dataset_dir=str(tmp_path))
    assert "no *_image.nii.gz" in str(failure.value.__cause__)


@pytest.mark.real
@pytest.mark.skipif("LGG_ROOT" not in os.environ, reason="LGG_ROOT does not name the published folder kaggle_3m")
def test_real_patients_train_and_score(trained, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    patients = sorted(path for path in Path(os.environ["LGG_ROOT"]).iterdir() if path.is_dir())
    for folder in patients[:4]:
        shutil.copytree(folder, tmp_path / "kaggle_3m" / folder.name)
    split = ["--split", "random", "--validation-fraction", "0.5", "--out", str(tmp_path / "manifest")]
    assert manifest_cli.main([str(tmp_path / "kaggle_3m"), *split]) == 0
    run = tmp_path / "run"
    folders = {"dataset_dir": str(tmp_path / "manifest"), "ckpt_dir": str(run), "output_dir": str(run / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **{**TINY, "max_epochs": 1})
    lively_weights((bundle, run), tmp_path / "manifest", tmp_path / "lively" / "model.pt")
    summary = evaluated((bundle, tmp_path / "lively"), tmp_path / "manifest", tmp_path / "ours")
    weights = {"ckpt_path": str(tmp_path / "lively" / "model.pt"), "image_size": TINY["image_size"]}
    run_config(
        bundle / "configs" / "evaluate.json",
        dataset_dir=str(tmp_path / "manifest"),
        output_dir=str(tmp_path / "theirs"),
        **weights,
    )
    own = float((tmp_path / "theirs" / "metrics.csv").read_text().split(",")[1])
    assert summary["volumes"] == 2
    assert summary["dsc_mean"] > 0
    assert summary["dsc_mean"] == pytest.approx(own, abs=1e-6)


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo_reaches_080_on_unseen_phantoms(tmp_path: Path) -> None:
    command = ["make", "demo-run", f"PY={sys.executable}", f"DEMO={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"results: {tmp_path / 'results'}" in result.stdout
    said = [line for line in result.stdout.splitlines() if not line.startswith("make")]
    assert f"Open in a browser: {tmp_path / 'report.html'}" in said[-1]
    assert (tmp_path / "report.html").stat().st_size > 2e5
    assert len(list((tmp_path / "results" / "figures").glob("*.gif"))) == 6
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["volumes"] == 6
    assert summary["dsc_mean"] >= 0.8, result.stdout
