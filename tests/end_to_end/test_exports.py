"""TorchScript and ONNX through MONAI's own verbs: the same logits as the weights, for any number of slices."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.model.bundle import Bundle, load_bundle
from tests.conftest import TINY, every_network

SIZE = TINY["image_size"]


def arguments(bundle: Path, weights: Path, target: Path) -> dict[str, Any]:
    return {
        "net_id": "network_def",
        "filepath": str(target),
        "ckpt_file": str(weights),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.json"),
        "bundle_root": str(bundle),
    }


def slices(built: Bundle, manifest: Path) -> torch.Tensor:
    """(N, 3, S, S): preprocessed slices of a volume; real ones where LGG_ROOT names them."""
    image = read_manifest(manifest).sections["validation"][0].image
    return built.preprocessing({"image": str(image)})["image"].as_tensor().permute(3, 0, 1, 2).contiguous()


@pytest.fixture(scope="module")
def slice_manifest(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "LGG_ROOT" not in os.environ:
        return manifest
    out = tmp_path_factory.mktemp("real")
    for folder in sorted(path for path in Path(os.environ["LGG_ROOT"]).iterdir() if path.is_dir())[:2]:
        shutil.copytree(folder, out / "kaggle_3m" / folder.name)
    build_manifest(out / "kaggle_3m", out / "manifest", split="random", validation_fraction=0.5)
    return out / "manifest"


@every_network
def test_torchscript_gives_the_same_logits(trained, slice_manifest: Path, tmp_path: Path) -> None:
    from monai.bundle import ckpt_export
    from monai.data import load_net_with_metadata

    bundle, out = trained
    ckpt_export(**arguments(bundle, out / "model.pt", tmp_path / "model.ts"))
    network, metadata, extra = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=("inference.json",))
    assert metadata["version"]
    assert b"SliceInferer" in extra["inference.json"]
    built = load_bundle(bundle, out / "model.pt")
    data = slices(built, slice_manifest)
    with torch.inference_mode():
        for batch in (data[:1], data[:3], data):
            assert (network(batch) - built.network(batch)).abs().max() < 1e-4


@every_network
def test_onnx_gives_the_same_logits(trained, slice_manifest: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime (extra export) is not installed")
    from monai.bundle import onnx_export

    bundle, out = trained
    batch = {"image": {0: "batch"}, "pred": {0: "batch"}}
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": batch}
    given = arguments(bundle, out / "model.pt", tmp_path / "model.onnx")
    onnx_export(**given, input_shape=[2, 3, SIZE, SIZE], converter_kwargs=names)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    built = load_bundle(bundle, out / "model.pt")
    data = slices(built, slice_manifest)
    with torch.inference_mode():
        for part in (data[:1], data[:3], data):
            found = session.run(["pred"], {"image": part.numpy()})[0]
            assert np.abs(found - built.network(part).numpy()).max() < 1e-4
