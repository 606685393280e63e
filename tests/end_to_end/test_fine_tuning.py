"""A training that starts from weights: it uses them, records them, and says whom they were trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import train
from pipeline.cohort.manifest import read_manifest
from pipeline.model.bundle import load_bundle
from pipeline.scoring.evaluation import evaluate_volumes
from pipeline.scripts.faults import fault_line
from pipeline.scripts.files import sha256_file
from pipeline.scripts.records import seen_patients
from pipeline.scripts.training import Setup
from tests.conftest import BASIC, ROOT, TINY, every_network, save_weights
from tests.end_to_end.test_resuming import interrupted_training

STILL = {"learning_rate": 1e-9, "weight_decay": 0.0, "max_epochs": 1}
"""A training that leaves the weights where they are; the statistics of its batches move."""


def places(manifest: Path, out: Path, init: Path) -> dict[str, str]:
    return {"dataset_dir": str(manifest), "ckpt_dir": str(out), "output_dir": str(out / "log"), "init": str(init)}


def learnt(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.endswith(("_mean", "_var", "_tracked"))}


def is_near(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.allclose(value, other[name], atol=1e-6) for name, value in learnt(one).items())


@every_network
def test_a_training_starts_from_weights_and_records_them(trained, manifest, run_config, tmp_path: Path, caplog) -> None:
    bundle, out = trained
    caplog.set_level("INFO", logger="train")
    run_config(bundle / "configs/train.json", **places(manifest, tmp_path, out), **{**TINY, **STILL})
    first, state = (torch.load(folder / "model.pt", weights_only=True) for folder in (out, tmp_path))
    assert is_near(state, first)  # a training that stands still keeps them
    record = json.loads((tmp_path / "training.json").read_text())
    first_record, sha256 = json.loads((out / "training.json").read_text()), sha256_file(out / "model.pt")
    patients = {key: first_record[key] for key in ("training_patients", "manifest_sha256", "pseudonymised")}
    assert patients["pseudonymised"] is False
    assert record["init"] == {"name": "model.pt", "sha256": sha256, **patients, "init": None}
    assert str(tmp_path.parent) not in (tmp_path / "training.json").read_text()
    assert f"starts from {out / 'model.pt'} (SHA-256 {sha256})" in caplog.text
    assert "trained with other settings" not in caplog.text
    # The same weights as another program keeps them.
    file = save_weights(
        {"state_dict": {f"module.{name}": value for name, value in first.items()}}, trained, tmp_path / "w.pt"
    )
    other = tmp_path / "other"
    run_config(bundle / "configs/train.json", **places(manifest, other, file), **{**TINY, **STILL})
    again = torch.load(other / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_patients_of_the_weights_count_as_seen(trained, manifest, run_config, tmp_path: Path, caplog) -> None:
    """Weights that saw the validation patients: the training says so, and its scores are not of unseen ones."""
    bundle, out = trained
    unseen = [volume.patient for volume in read_manifest(manifest).sections["validation"]]
    start = tmp_path / "start"
    shutil.copytree(out, start)
    record = json.loads((start / "training.json").read_text())
    (start / "training.json").write_text(json.dumps({**record, "training_patients": [unseen[0], "SOMEBODY"]}))
    (start / "training.json.sha256").unlink()
    run = tmp_path / "run"
    run_config(bundle / "configs/train.json", **places(manifest, run, start), **{**TINY, **STILL})
    assert "the weights of --init were trained on 1 of 2 validation patients, whose" in caplog.text
    assert f"not of unseen patients: {unseen[0]}" in caplog.text
    assert {unseen[0], "SOMEBODY"} < set(seen_patients(load_bundle(bundle, run / "model.pt").record))
    result = evaluate_volumes(manifest, bundle, tmp_path / "scores", weights=run / "model.pt")
    assert result.summary["seen_in_training"] == [unseen[0]]
    # Weights that started from these have seen them as well.
    second = tmp_path / "second"
    run_config(bundle / "configs/train.json", **places(manifest, second, run), **{**TINY, **STILL})
    record = json.loads((second / "training.json").read_text())
    assert {unseen[0], "SOMEBODY"} < set(seen_patients(record))
    assert record["init"]["init"]["training_patients"] == [unseen[0], "SOMEBODY"]


def test_another_exam_of_a_person_counts_as_seen(trained, manifest, tmp_path: Path, caplog) -> None:
    start = shutil.copytree(trained[1], tmp_path / "start")
    record = json.loads((start / "training.json").read_text())
    (start / "training.json").write_text(json.dumps({**record, "training_patients": ["TCGA_HT_7616_19940813"]}))
    (start / "training.json.sha256").unlink()
    volume = read_manifest(manifest).sections["validation"][0]
    training, validation = (
        {"image": str(volume.image), "label": str(volume.label), "patient": patient}
        for patient in ("TCGA_DU_5852_19950709", "TCGA_HT_7616_19940814")
    )
    Setup(
        training_data=[training],
        validation_data=[validation],
        dataset_dir=str(tmp_path),
        ckpt_dir=str(tmp_path / "run"),
        workflow=[],
        batch_size=4,
        init=str(start),
    ).check()
    assert "trained on 1 of 1 validation patients, whose scores are not of unseen patients: TCGA_HT_7616" in caplog.text


def test_weights_without_a_record_or_of_other_settings_are_reported(
    trained, manifest, run_config, tmp_path: Path, caplog
) -> None:
    bare = tmp_path / "bare.pt"
    shutil.copy(trained[1] / "model.pt", bare)
    config = trained[0] / "configs/train.json"
    run_config(config, **places(manifest, tmp_path / "one", bare), **{**TINY, **STILL})
    assert "which patients the weights of --init were trained on is not known: there is no training" in caplog.text
    init = json.loads((tmp_path / "one" / "training.json").read_text())["init"]
    assert (init["name"], init["training_patients"]) == ("bare.pt", None)
    result = evaluate_volumes(manifest, trained[0], tmp_path / "scores", weights=tmp_path / "one" / "model.pt")
    assert {score.seen for score in result.scores} == {None}  # also where other weights started from these
    caplog.clear()
    run_config(config, **places(manifest, tmp_path / "next", tmp_path / "one"), **{**TINY, **STILL})
    assert "is not known: their training.json does not name all" in caplog.text
    result = evaluate_volumes(
        manifest, trained[0], tmp_path / "all", weights=tmp_path / "next" / "model.pt", split="all"
    )
    seen = {volume.patient for volume in read_manifest(manifest).sections["training"]}
    assert {score.seen for score in result.scores if score.patient in seen} == {True}
    assert {score.seen for score in result.scores if score.patient not in seen} == {None}
    run_config(config, **places(manifest, tmp_path / "two", trained[1]), **{**TINY, **STILL, "image_size": 48})
    assert "the weights of --init were trained with other settings: image_size 32 (now 48)" in caplog.text
    run_config(config, **places(manifest, tmp_path / "own", BASIC), **{**TINY, **STILL})
    assert json.loads((tmp_path / "own" / "training.json").read_text())["init"]["name"] == "basic_unet"


def test_an_initialised_training_is_resumed_to_the_bit(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    bundle, out = trained
    config = bundle / "configs/train.json"

    def with_init(path: Path, **overrides: Any) -> Any:
        return run_config(path, **{"init": str(out), **overrides})

    overrides = interrupted_training(bundle, tmp_path / "a", manifest, with_init, monkeypatch)
    for other, message in ((str(BASIC), "changed since the training started: the weights of --init"), (None, "--init")):
        with pytest.raises(RuntimeError) as failure:
            run_config(config, **overrides, init=other, resume=True)
        assert message in str(fault_line(failure.value))
    with_init(config, **overrides, resume=True)
    whole = {**overrides, "ckpt_dir": str(tmp_path / "b"), "output_dir": str(tmp_path / "b" / "log")}
    with_init(config, **whole)
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [json.loads((tmp_path / name / "training.json").read_text())["init"] for name in "ab"]
    assert records[0] == records[1] is not None


def test_a_resumed_training_may_have_replaced_what_it_started_from(
    trained, manifest, run_config, tmp_path: Path, monkeypatch
) -> None:
    """Killed after it wrote model.pt, in the folder of the weights that it started from."""
    bundle, out = trained
    shutil.copy(out / "model.pt", tmp_path / "model.pt")
    sha256 = sha256_file(tmp_path / "model.pt")
    config, overrides = bundle / "configs/train.json", {**places(manifest, tmp_path, tmp_path), **TINY}
    save = torch.save

    def stop(content: Any, file: Any) -> None:
        save(content, file)
        if (tmp_path / "checkpoint_2.pt").is_file() and "trainer" not in content:
            (tmp_path / "model.pt").write_bytes(b"replaced")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run_config(config, **overrides)
    run_config(config, **overrides, resume=True)
    assert json.loads((tmp_path / "training.json").read_text())["init"]["sha256"] == sha256


def test_weights_of_another_network_are_refused(trained, manifest, run_config, tmp_path: Path) -> None:
    config, attention = trained[0] / "configs/train.json", ROOT / "bundles" / "attention_unet"
    shutil.copy(attention / "models" / "model.pt", tmp_path / "bare.pt")  # without its record
    for init, message in (
        (attention, "weights of AttentionUnet (expected BasicUNet)"),
        (tmp_path / "bare.pt", "weights of another architecture than the one to be trained"),
        (tmp_path / "nothing", "nothing: no weights"),
    ):
        with pytest.raises(RuntimeError) as failure:
            run_config(config, **places(manifest, tmp_path / "run", init), **TINY)
        assert message in str(fault_line(failure.value))
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.slow
def test_the_command_starts_from_a_bundle_by_name(trained, manifest: Path, tmp_path: Path, capfd) -> None:
    """In folders whose names MONAI would misread."""
    folder = tmp_path / "a [b], #c $d @e 'f' %g \"h\""
    folder.mkdir()
    shutil.copytree(manifest, folder / "data")
    tiny = [f"--{key}={value}" for key, value in {**TINY, **STILL}.items()]
    given = ["--manifest", str(folder / "data"), "--out", str(folder / "run"), "--init", "basic_unet"]
    assert train.main([*given, *tiny]) == 0
    state, start = (torch.load(path / "model.pt", weights_only=True) for path in (folder / "run", BASIC / "models"))
    assert is_near(state, start)
    text = (folder / "run" / "training.json").read_text()
    assert json.loads(text)["init"]["name"] == "basic_unet"
    assert str(tmp_path) not in text
    assert json.loads(text)["config"]["dataset_dir"] == "data"
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}
