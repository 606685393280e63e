"""Weights are held against what is known of them: the hash beside them, their record, the bundle's metadata."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model.bundle import load_bundle
from pipeline.scripts.faults import fault_line
from pipeline.scripts.files import sha256_file
from pipeline.scripts.weights import read_state, weights_in
from tests.conftest import TINY, save_weights


def test_weights_that_lead_the_unpickler_astray_are_an_error() -> None:
    """Found by mutation: torch's unpickler pops from an empty list."""
    data = b"\x80\x02}q\x00(X\x01\x00\x00\x00aRK\x03tR."
    with pytest.raises(PipelineError, match="no readable weights"):
        read_state(data, Path("model.pt"), torch.device("cpu"))


def test_a_folder_means_its_weights(tmp_path: Path) -> None:
    assert weights_in(tmp_path / "model.pt") == tmp_path / "model.pt"
    assert weights_in(tmp_path) == tmp_path / "models" / "model.pt"  # named where there is none
    (tmp_path / "model.pt").touch()
    assert weights_in(tmp_path) == tmp_path / "model.pt"  # of a training
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    assert weights_in(tmp_path) == tmp_path / "models" / "model.pt"  # of a bundle


def wrapped(state: dict[str, torch.Tensor], how: str) -> dict[str, Any]:
    """A state dict as other programs save it."""
    if how in ("module.", "_orig_mod.", "_orig_mod.module."):
        return {f"{how}{name}": value for name, value in state.items()}
    if how == "lightning":
        return {"state_dict": wrapped(state, "module."), "epoch": 3}
    return {how: state}


@pytest.mark.parametrize("how", ["model", "state_dict", "module.", "_orig_mod.module.", "lightning"])
def test_weights_of_other_programs_are_read_alike(trained, manifest, run_config, tmp_path: Path, how: str) -> None:
    """By the package and by the bundle's own configs, which write the same masks as by plain weights."""
    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    file = save_weights(wrapped(state, how), trained, tmp_path / "other" / "model.pt")
    loaded = load_bundle(bundle, file).network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    for name, weights in (("plain", out / "model.pt"), ("other", file)):
        places = {"dataset_dir": str(manifest), "output_dir": str(tmp_path / "scores" / name)}
        run_config(bundle / "configs/evaluate.json", **places, ckpt_path=str(weights), image_size=TINY["image_size"])
    scores = [(tmp_path / "scores" / name / "val_dsc_raw.csv").read_text() for name in ("plain", "other")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("content", ["checkpoint", "other network"])
def test_other_contents_are_refused_alike(trained, manifest, run_config, tmp_path: Path, content: str) -> None:
    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    if content == "checkpoint":
        given, message = {"network": state, "ema": state, "trainer": {}}, "no plain state dict"
    else:
        given, message = {f"encoder.{name}": value for name, value in state.items()}, "another architecture"
    file = save_weights(given, trained, tmp_path / "other" / "model.pt")
    with pytest.raises(PipelineError, match=message):
        load_bundle(bundle, file)
    places = {"dataset_dir": str(manifest), "output_dir": str(tmp_path / "scores")}
    with pytest.raises(RuntimeError) as failure:
        run_config(bundle / "configs/evaluate.json", **places, ckpt_path=str(file), image_size=TINY["image_size"])
    assert message in str(fault_line(failure.value))


def test_weights_are_held_against_the_hash_beside_them(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle, out = trained
    for name in ("model.pt", "model.pt.sha256"):
        shutil.copy(out / name, tmp_path / name)
    load_bundle(bundle, tmp_path / "model.pt")
    data = bytearray((tmp_path / "model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(PipelineError, match=r"model.pt: damaged, its SHA-256 .* is not that in model.pt.sha256"):
        load_bundle(bundle, tmp_path / "model.pt")
    for config in ("evaluate", "inference"):
        with pytest.raises(RuntimeError) as failure:
            run_config(
                bundle / "configs" / f"{config}.json",
                ckpt_path=str(tmp_path / "model.pt"),
                output_dir=str(tmp_path / "own"),
                dataset_dir=str(manifest if config == "evaluate" else manifest / "volumes"),
            )
        assert re.search(r"model.pt: damaged, its SHA-256 \w+ is not that", str(failure.value.__cause__))


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
        causes = []
        for config in ("inference", "evaluate"):
            try:
                run_config(bundle / "configs" / f"{config}.json", **places)
            except RuntimeError as error:
                causes.append(str(error.__cause__))
        return causes

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
