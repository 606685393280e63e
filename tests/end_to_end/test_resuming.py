"""An interrupted training goes on to the bit as if nothing had happened, or is refused where it could not."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.handlers import Checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.scripts.faults import fault_line
from tests.conftest import TINY, every_network, running_module


def interrupted_training(bundle: Path, out: Path, manifest: Path, run_config: Any, monkeypatch: Any) -> dict[str, Any]:
    """Stop a training in its second epoch as Ctrl-C does; returns the overrides it ran with."""
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


@every_network
def test_resumed_training_goes_on(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
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


def test_a_scaler_is_resumed(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    """Trainings in float16 on CUDA have a scaler, which MONAI makes when they start. This one is on the CPU."""
    scalers: list[Any] = []

    def make() -> Any:
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0 if scalers else 64.0))
        return scalers[-1]

    def config(path: Path, **overrides: Any) -> Any:
        return run_config(path, **overrides, float16=True)

    monkeypatch.setattr(torch.cuda.amp, "GradScaler", make)
    overrides = interrupted_training(trained[0], tmp_path, manifest, config, monkeypatch)
    config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert [scaler.get_scale() for scaler in scalers] == [64.0, 64.0]


def test_a_schedule_with_a_state_of_its_own_is_resumed(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    """Its progress is no setting, and its settings are still compared."""
    schedule = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts", "optimizer": "@optimizer", "T_0": 3}

    def config(path: Path, **overrides: Any) -> Any:
        return run_config(path, **{"lr_scheduler": schedule, **overrides})

    overrides = interrupted_training(trained[0], tmp_path, manifest, config, monkeypatch)
    with pytest.raises(RuntimeError) as failure:
        other = {"lr_scheduler": {**schedule, "T_0": 2}, "resume": True, "allow_different": True}
        config(trained[0] / "configs" / "train.json", **overrides, **other)
    assert "T_0 3 (now 2)" in str(failure.value.__cause__)
    config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert (tmp_path / "model.pt").is_file()


def test_a_resumed_training_keeps_its_network_from_a_loader(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
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


def test_a_training_that_had_stopped_early_is_resumed_as_stopped(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    """Killed between its last checkpoint and its end, it must end with the same weights."""
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


def test_a_damaged_checkpoint_is_passed_over(  # noqa: PLR0917
    trained, manifest, run_config, tmp_path: Path, monkeypatch, caplog
) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    good = (tmp_path / "checkpoint_1.pt").read_bytes()
    (tmp_path / "checkpoint_2.pt").write_bytes(good[:-100])
    shutil.copy(tmp_path / "checkpoint_1.pt.sha256", tmp_path / "checkpoint_2.pt.sha256")
    run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "checkpoint_2.pt: damaged" in caplog.text
    assert "the training continues from checkpoint_1.pt" in caplog.text
    assert not list(tmp_path.glob("checkpoint*"))


def test_resume_with_nothing_whole_is_refused(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    with (tmp_path / "checkpoint_1.pt").open("r+b") as file:
        file.seek(1000)
        file.write(b"flipped")
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "every checkpoint is damaged: checkpoint_1.pt: damaged" in str(failure.value.__cause__)
    assert "delete them and start again without --resume." in str(failure.value.__cause__)


def test_a_damaged_record_of_the_start_is_reported(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    for content in ("{", "{}", "[]", None):
        (tmp_path / "checkpoint.json").write_text(content) if content else (tmp_path / "checkpoint.json").unlink()
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
        message = fault_line(failure.value)
        assert "checkpoint.json: no readable record of a training" in message


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
    assert "changed since the training started: monai 1.0.0 (now " in str(failure.value.__cause__)
    assert "--allow_different True" in str(failure.value.__cause__)
    run_config(trained[0] / "configs" / "train.json", **overrides, resume=True, allow_different=True)
    assert "continues anyway: monai 1.0.0" in caplog.text
    assert (tmp_path / "model.pt").is_file()


def test_resume_refuses_what_would_not_go_on(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(RuntimeError) as failure:
            run_config(trained[0] / "configs" / "train.json", **{**overrides, **changes})
        assert message in str(failure.value.__cause__)
        there = {path.name for path in tmp_path.glob("checkpoint*")}
        assert there == {"checkpoint_1.pt", "checkpoint_1.pt.sha256", "checkpoint.json"}

    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    refused("Pass --resume True")
    refused("changed since the training started: learning_rate", resume=True, learning_rate=0.001)
    amp = json.loads((tmp_path / "checkpoint.json").read_text())["amp"]
    with monkeypatch.context() as other_cpu:
        other_cpu.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not amp}, raising=False)
        refused(f"changed since the training started: amp on this device (pass --amp {amp})", resume=True)
    shutil.copytree(manifest, tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text((manifest / "manifest.json").read_text() + " ")
    (tmp_path / "other" / "manifest.json.sha256").unlink()
    refused("changed since the training started: the manifest", resume=True, dataset_dir=str(tmp_path / "other"))
    for path in tmp_path.glob("checkpoint_*"):
        path.unlink()
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True)
    assert "nothing to resume" in str(failure.value.__cause__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.001}, "max_lr 0.004 (now 0.001)"),
        ({"weight_decay": 0.1}, "weight_decay 0.0001 (now 0.1)"),
        ({"optimizer#eps": 0.1}, "eps 1e-08 (now 0.1)"),
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
    assert "would have no effect" in str(failure.value.__cause__)
    assert (tmp_path / "checkpoint.json").read_bytes() == began
    assert not (tmp_path / "training.json").exists()
    if "learning_rate" in change:
        allowed = {**overrides, "gradient_clip": 1.0, "resume": True, "allow_different": True}
        run_config(trained[0] / "configs" / "train.json", **allowed)
        assert json.loads((tmp_path / "training.json").read_text())["config"]["gradient_clip"] == 1.0


def test_a_resumed_training_keeps_its_patients(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    """Its record would call patients unseen that it was trained on."""
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    began = json.loads((tmp_path / "checkpoint.json").read_text())
    other = {**began, "training_patients": [*began["training_patients"], "SOMEBODY"], "init": {"sha256": "0"}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(other))
    (tmp_path / "checkpoint.json.sha256").unlink(missing_ok=True)
    changed = {**overrides, "resume": True, "allow_different": True}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **changed)
    assert "cannot resume with other training patients than at the start" in str(failure.value.__cause__)
    (tmp_path / "checkpoint.json").write_text(json.dumps({**other, "training_patients": began["training_patients"]}))
    run_config(trained[0] / "configs" / "train.json", **changed)
    assert json.loads((tmp_path / "training.json").read_text())["init"] == {"sha256": "0"}


def test_checkpoints_of_another_version_are_refused(trained, manifest, run_config, tmp_path: Path, monkeypatch) -> None:
    overrides = interrupted_training(trained[0], tmp_path, manifest, run_config, monkeypatch)
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    del record["record_version"]  # as of 0.1
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **overrides, resume=True, allow_different=True)
    assert "started with another version of the bundle" in str(failure.value.__cause__)
