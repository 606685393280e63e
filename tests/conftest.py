"""Shared phantoms: one small dataset, its manifest and one short training for the whole session."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BUNDLES = sorted(path.parent for path in (ROOT / "bundles").glob("*/network.yaml"))

BASIC = ROOT / "bundles" / "basic_unet"

every_network = pytest.mark.parametrize("trained", BUNDLES, indirect=True, ids=lambda bundle: bundle.name)
"""For tests of what depends on the network; other tests that use ``trained`` get basic_unet."""

TINY = {"image_size": 32, "max_epochs": 2, "steps_per_epoch": 4, "batch_size": 4, "val_interval": 1, "log_interval": 1}
"""Overrides that shrink a training to seconds."""


def cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


on_cuda = pytest.mark.skipif(not cuda_is_there(), reason="no CUDA device on this machine: the CUDA path was not run")


def running_module(name: str) -> Any:
    """A module of the scripts as the configs that run in this process import it."""
    import importlib
    import sys

    if "scripts" not in sys.modules:
        sys.path.insert(0, str(BUNDLES[0]))
    return importlib.import_module(f"scripts.{name}")


@pytest.fixture(autouse=True)
def fresh_logger() -> None:
    """Every test begins with the package's logger unchanged, because commands add handlers and levels to it."""
    logger = logging.getLogger("pipeline")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published folder layout: 8 phantom patients of about 8 slices of 48 x 48 px."""
    from pipeline.cohort.phantoms import make_phantoms

    return make_phantoms(tmp_path_factory.mktemp("phantoms"), patients=8, size=48, slices=8, seed=3)


@pytest.fixture(scope="session")
def manifest(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the phantoms' manifest: 5 for training, 2 for validation, 1 for test."""
    from pipeline.cohort.building import build_manifest

    out = tmp_path_factory.mktemp("manifest")
    build_manifest(phantoms, out, split="random", validation_fraction=0.25, test_fraction=0.125)
    return out


@pytest.fixture(scope="session")
def run_config() -> Callable[..., Any]:
    """Run one of a bundle's configs in this process as ``python -m monai.bundle run`` does."""

    def run(config: Path | list[str], **overrides: Any) -> Any:
        from monai.bundle import ConfigWorkflow

        files = config if isinstance(config, list) else str(config)
        workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **overrides)
        workflow.initialize()
        workflow.run()
        return workflow

    return run


@pytest.fixture(scope="session", params=[BASIC], ids=lambda bundle: bundle.name)
def trained(
    request: pytest.FixtureRequest,
    manifest: Path,
    run_config: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """(bundle folder, folder with its weights after a tiny training)."""
    out = tmp_path_factory.mktemp(request.param.name)
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(out), "output_dir": str(out / "log")}
    run_config(request.param / "configs" / "train.json", **folders, **TINY)
    return request.param, out


def evaluated(trained: tuple[Path, Path], manifest: Path, out: Path, *options: str) -> dict[str, Any]:
    from pipeline import evaluate

    bundle, weights = trained
    given = ["--manifest", str(manifest), "--bundle", str(bundle), "--weights", str(weights / "model.pt")]
    assert evaluate.main([*given, "--out", str(out), *options]) == 0
    return json.loads((out / "summary.json").read_text())


def last_bias(state: dict[str, Any]) -> str:
    """Key of the output layer's bias, which shifts every logit."""
    return [key for key in state if key.endswith("bias")][-1]


def lively_weights(trained: tuple[Path, Path], manifest: Path, target: Path) -> Path:
    """Weights whose masks hit every lesion of the validation section: a tiny training marks nothing, or anything."""
    import torch

    from pipeline.cohort.manifest import read_manifest
    from pipeline.imaging.nifti import load_label
    from pipeline.model.bundle import load_bundle
    from pipeline.model.predictor import Predictor

    bundle, out = trained
    section = read_manifest(manifest).sections["validation"]
    volumes = [volume for volume in section if volume.lesion_voxels]
    built = load_bundle(bundle, out / "model.pt")
    with torch.inference_mode():
        image = built.preprocessing({"image": str(section[0].image)})["image"][None]
        logits = built.inferer(image.to(built.device), built.network).cpu().numpy()
    state = torch.load(out / "model.pt", weights_only=True)
    bias = state[last_bias(state)].clone()
    for share in (0.25, 0.5, 0.75, 0.95):  # of the slices' voxels marked
        state[last_bias(state)] = bias - float(np.quantile(logits, 1 - share))
        save_weights(state, trained, target)
        predictor = Predictor([load_bundle(bundle, target)])
        masks = [predictor.predict(volume.image).mask for volume in volumes]
        if all((mask * load_label(volume.label)).any() for mask, volume in zip(masks, volumes, strict=True)):
            return target
    raise AssertionError("no threshold hits every lesion")


def silent_weights(trained: tuple[Path, Path], target: Path) -> Path:
    """Weights that mark nothing."""
    import torch

    state = torch.load(trained[1] / "model.pt", weights_only=True)
    state[last_bias(state)] -= 1000
    return save_weights(state, trained, target)


def save_weights(state: dict[str, Any], trained: tuple[Path, Path], target: Path) -> Path:
    """Write weights with the record of the training they were made from."""
    import torch

    from pipeline.scripts.files import sha256_file

    target.parent.mkdir(exist_ok=True)
    torch.save(state, target)
    record = json.loads((trained[1] / "training.json").read_text())
    record["weights"] = {target.name: sha256_file(target)}
    (target.parent / "training.json").write_text(json.dumps(record))
    (target.parent / "training.json.sha256").unlink(missing_ok=True)
    return target
