"""Training, evaluation and full memory on a GPU; skipped where there is none."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import IterationEvents
from monai.inferers import SliceInferer
from monai.networks.nets import BasicUNet

from pipeline.scoring.evaluation import evaluate_volumes
from pipeline.scripts import handlers, inferers
from pipeline.scripts.faults import PipelineError
from stress.kills import into, training_command
from tests.conftest import BASIC, ROOT, TINY, every_network, lively_weights, on_cuda


@every_network
@on_cuda
def test_training_finds_cuda(trained, manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    workflow = run_config(trained[0] / "configs" / "train.json", **folders, **TINY)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.device.type, trainer.amp, trainer.inferer.is_active) == ("cuda", False, True)
    assert (tmp_path / "model.pt").is_file()


@on_cuda
def test_loader_processes_cannot_read_slices_that_lie_on_cuda(trained, manifest, run_config, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "train.json", **folders, **TINY, **{"train#dataloader#num_workers": 2})
    assert "num_workers 2: the slices lie on cuda" in str(failure.value.__cause__)


@on_cuda
def test_a_loss_that_is_not_finite_on_cuda_is_found_one_step_later() -> None:
    check, engine = handlers.StopAtNaN(), Engine(lambda engine, batch: None)
    engine.register_events(*IterationEvents)
    engine.network = BasicUNet(2, 3, 1, features=(16, 16, 32, 64, 128, 16)).cuda()
    check.attach(engine)
    image = torch.zeros(1, 3, 16, 16, device="cuda")
    for iteration, loss in enumerate((0.5, float("nan")), 1):
        engine.state.iteration = iteration
        engine.state.output = {"image": image, "label": image, "pred": image, "loss": torch.tensor(loss).cuda()}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
    with pytest.raises(PipelineError, match="not finite at iteration 2: NaN or Inf first in the loss itself"):
        engine.fire_event(Events.EPOCH_COMPLETED)
    engine.state.output = {**engine.state.output, "pred": image / 0}
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    with pytest.raises(PipelineError, match="not finite at iteration 2: NaN or Inf first in the network's prediction"):
        engine.fire_event(IterationEvents.LOSS_COMPLETED)


@on_cuda
def test_slices_lie_on_cuda_and_are_augmented_there_as_on_a_cpu(trained, manifest) -> None:
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


@every_network
@on_cuda
def test_evaluation_on_cuda_gives_what_a_cpu_gives(trained, manifest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra backends) is not installed")
    weights = lively_weights(trained, manifest, tmp_path / "model.pt")
    there, here = (
        evaluate_volumes(manifest, [trained[0]], tmp_path / backend, weights=(weights,), backend=backend).summary
        for backend in ("torch", "onnx")
    )
    assert (there["device"], here["device"]) == ("cuda", "cpu")
    assert there["dsc_mean"] == pytest.approx(here["dsc_mean"], abs=1e-3)


@contextlib.contextmanager
def memory_of_the_gpu(megabytes: int) -> Iterator[None]:
    """What this process may take of the GPU's memory, beyond what it holds."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@on_cuda
def test_slices_of_a_volume_fit_a_gpu_that_is_really_full(caplog: Any) -> None:
    torch.manual_seed(0)
    network = BasicUNet(2, 3, 1, features=(16, 16, 32, 64, 128, 16), norm="batch").cuda().eval()
    volume = torch.rand(1, 3, 256, 256, 64, device="cuda")
    inferer = SliceInferer(roi_size=(256, 256), sw_batch_size=64, spatial_dim=2)
    with torch.inference_mode():
        expected = inferer(volume, network).cpu()
        with memory_of_the_gpu(500):
            found = inferers.ShrinkingInferer(inferer)(volume, network).cpu()
    assert 1 <= inferer.sw_batch_size < 64
    assert "the GPU's memory ran out" in caplog.text
    assert torch.allclose(found, expected, atol=1e-2)


@on_cuda
def test_a_training_too_large_for_a_gpu_ends_in_one_line(manifest: Path, tmp_path: Path) -> None:
    """A batch that the GPU's memory does not hold: no traceback, no lock, no status of success."""
    small = (
        "import runpy, torch; torch.cuda.set_per_process_memory_fraction(0.01); "
        "runpy.run_module('monai.bundle', {}, '__main__', True)"
    )
    command = into(training_command(BASIC, manifest), tmp_path, "--image_size", "192", "--batch_size", "2048")
    at = command.index("monai.bundle")
    command[at - 1 : at + 1] = ["-c", small]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2, ended.stderr
    assert len(errors) == 1, ended.stderr
    assert errors[0].startswith("error: memory ran out (CUDA out of memory")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "model.pt").exists()
