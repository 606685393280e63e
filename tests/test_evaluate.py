"""The command that evaluates: what its options do, and the lines that it prints."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline import evaluate
from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_label, load_map
from pipeline.pages.figures import UNCERTAIN
from tests.conftest import evaluated, lively_weights


def test_figures_are_drawn_of_these_masks_alone(trained, manifest, tmp_path: Path, capsys) -> None:
    lively_weights(trained, manifest, tmp_path / "model.pt")
    folder, out = (trained[0], tmp_path), tmp_path / "out"
    asked = ("--figures", "--tta", "--uncertainty")
    evaluated(folder, manifest, out, *asked)
    patients = [volume.patient for volume in read_manifest(manifest).sections["validation"]]
    assert (out / "figures" / "dsc.png").is_file()
    for patient in patients:
        drawn = len(list((out / "figures" / patient).glob("slice_*.png")))
        mask = load_label(out / "masks" / f"{patient}_mask.nii.gz")
        truth = load_label(out / "volumes" / f"{patient}_label.nii.gz")
        uncertain = load_map(out / "uncertainty" / f"{patient}_uncertainty.nii.gz") >= UNCERTAIN
        assert drawn == (mask | truth | uncertain).any(axis=(0, 1)).sum() < mask.shape[2]
    assert "(2 of 2 patients drawn" in capsys.readouterr().out
    evaluated(folder, manifest, out, *asked)
    assert "(0 of 2 patients drawn" in capsys.readouterr().out
    evaluated(folder, manifest, out)
    assert not list((out / "figures").iterdir())  # they showed an earlier mask and map
    with pytest.raises(PipelineError, match="--uncertainty with one network"):
        evaluated(folder, manifest, out, "--uncertainty")
    with pytest.raises(PipelineError, match="--all-slices without --figures"):
        evaluated(folder, manifest, out, "--all-slices")


def test_warnings_are_printed_before_the_scores(trained, manifest, phantoms, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    build_manifest(phantoms, other, split="random", validation_fraction=0.5, seed=7)
    with pytest.MonkeyPatch.context() as terminal:
        terminal.setattr(sys, "stderr", sys.stdout)  # as a person sees them
        capsys.readouterr()
        seen = evaluated(trained, other, tmp_path / "seen")["seen_in_training"]
        warning, _, table = capsys.readouterr().out.partition("\npatient ")
    assert seen
    assert f"warning: the weights were trained on {len(seen)} of 4 patients" in warning
    assert all(patient in warning for patient in seen)
    assert all(patient in table for patient in seen)
    assert "warning: " not in table
    shutil.copy(trained[1] / "model.pt", tmp_path)
    evaluated((trained[0], tmp_path), manifest, tmp_path / "unrecorded")
    assert "no training.json beside the weights" in capsys.readouterr().out


def test_a_foreign_bundle_runs_where_it_is_trusted(trained, manifest, tmp_path: Path) -> None:
    """Its config creates a file when it is resolved, which only ``--trust`` allows."""
    bundle, out = trained
    foreign = shutil.copytree(bundle, tmp_path / "foreign", ignore=shutil.ignore_patterns("models"))
    config = foreign / "configs" / "inference.json"
    content = json.loads(config.read_text())
    attack = f"$__import__('pathlib').Path({str(tmp_path / 'pwned')!r}).touch() or torch.device('cpu')"
    config.write_text(json.dumps({**content, "device": attack}, indent=2))
    given = ["--manifest", str(manifest), "--bundle", str(foreign), "--weights", str(out / "model.pt")]
    with pytest.raises(PipelineError, match=r"pass --trust if you trust") as error:
        evaluate.main([*given, "--out", str(tmp_path / "scores")])
    assert f"differs from this project's {bundle.name} in configs/inference.json" in str(error.value)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "scores").exists()
    assert evaluate.main([*given, "--out", str(tmp_path / "scores"), "--trust"]) == 0
    assert (tmp_path / "pwned").exists()


def test_scripts_get_one_document(trained, manifest: Path, tmp_path: Path, capsys) -> None:
    bundle, weights = trained
    given = ["--manifest", str(manifest), "--bundle", bundle.name, "--weights", str(weights / "model.pt")]
    assert evaluate.main([*given, "-o", str(tmp_path / "out"), "--device", "cpu", "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {key: value for key, value in document.items() if key != "scores"} == summary
    assert [score["patient"] for score in document["scores"]] == [
        volume.patient for volume in read_manifest(manifest).sections["validation"]
    ]
    assert summary["command"].startswith("python -m pipeline.evaluate --manifest")
    assert "out" not in summary["command"].split()
    with pytest.raises(PipelineError, match="--device cuda:99: this machine has no such device"):
        evaluate.main([*given, "-o", str(tmp_path / "none"), "--device", "cuda:99"])
    assert not (tmp_path / "none").exists()


def test_files_of_no_evaluation_stay(trained, manifest: Path, tmp_path: Path) -> None:
    """Such as the true masks of a datalist, or the figures of a paper."""
    for number, name in enumerate(
        ("masks/mine.txt", "figures/mine.txt", "volumes/mine.txt", "scores.csv", "slices.csv")
    ):
        mine = tmp_path / str(number) / name
        mine.parent.mkdir(parents=True)
        mine.touch()
        out = str(tmp_path / str(number))
        with pytest.raises(PipelineError, match=f"{name.partition('/')[0]}: is of no evaluation"):
            evaluate.main(["--manifest", str(manifest), "--bundle", str(trained[0]), "--out", out])
        assert mine.is_file()
