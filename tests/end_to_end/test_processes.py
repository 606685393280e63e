"""Several training processes and several loading processes give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cohort.building import build_manifest
from stress.kills import into, kill_all, training_command, wait_for
from tests.conftest import BASIC, ROOT, TINY

PLUSPLUS = ROOT / "bundles" / "basic_unet_plusplus"
LITTLE = [part for key, value in TINY.items() for part in (f"--{key}", str(value))]


@pytest.mark.slow
def test_two_processes_report_the_dsc_of_one(phantoms: Path, run_config: Any, tmp_path: Path) -> None:
    """Two gloo processes, three validation patients: what they report is what one process gives for the weights.

    UNet++ has several outputs and modules of the bundle's own; the test below is of basic_unet.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build_manifest(phantoms, tmp_path / "manifest", split="random", validation_fraction=0.4)
    configs = [str(PLUSPLUS / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
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

    config = str(PLUSPLUS / "configs" / "train.json")
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
    assert "a batch of 4 slices cannot be shared evenly by 3 processes" in str(failure.value.__cause__)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are found in /proc")
def test_two_processes_go_on_where_they_were_stopped(manifest: Path, tmp_path: Path) -> None:
    """Two gloo processes are killed in their second epoch, start again there, and end with their weights written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps, run = 60, tmp_path / "run"
    names = [str(BASIC / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(names), "--dataset_dir", str(manifest), *LITTLE]
    command += ["--steps_per_epoch", str(steps), "--ckpt_dir", str(run), "--device", "cpu"]
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


@pytest.mark.slow
def test_loader_processes_give_the_same_weights(manifest: Path, tmp_path: Path) -> None:
    """Started either way, of a network and a dataset from the bundle's own scripts."""
    weights = {}
    for start in ("none", "fork", "spawn"):
        options = () if start == "none" else ("--train#dataloader#multiprocessing_context", start)
        command = training_command(PLUSPLUS, manifest, workers=2 if options else 0, epochs=1)
        subprocess.run(into(command, tmp_path / start, *options), cwd=tmp_path, capture_output=True, check=True)
        weights[start] = torch.load(tmp_path / start / "model.pt", weights_only=True)
    for start in ("fork", "spawn"):
        assert all(torch.equal(weights["none"][key], value) for key, value in weights[start].items()), start
