"""An evaluation agrees with the bundle's own, with medpy and with its report, which needs nothing else."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medpy.metric.binary import dc

from pipeline.cohort.manifest import read_manifest
from pipeline.imaging.nifti import load_label
from pipeline.pages.report import write_report
from pipeline.scoring.evaluation import evaluate_volumes
from tests.conftest import TINY, every_network, lively_weights


@every_network
def test_evaluate_agrees_with_the_bundle_and_with_medpy(trained, manifest, run_config, tmp_path: Path) -> None:
    bundle, _ = trained
    weights = lively_weights(trained, manifest, tmp_path / "model.pt")
    ours = evaluate_volumes(manifest, [bundle], tmp_path / "ours", weights=(weights,), split="validation")
    summary = ours.summary
    folders = {"dataset_dir": str(manifest), "ckpt_path": str(weights), "output_dir": str(tmp_path / "theirs")}
    run_config(bundle / "configs" / "evaluate.json", image_size=TINY["image_size"], **folders)
    own = float((tmp_path / "theirs" / "metrics.csv").read_text().split(",")[1])
    assert summary["bundles"][0]["settings"] == {"image_size": TINY["image_size"]}
    assert summary["dsc_mean"] > 0  # something was predicted and something was hit
    assert summary["dsc_mean"] == pytest.approx(own, abs=1e-6)
    with (tmp_path / "ours" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [score.patient for score in ours.scores]
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


def test_report_of_an_evaluation_needs_neither_weights_nor_manifest(trained, manifest, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "manifest")
    shutil.copytree(trained[1], tmp_path / "weights")
    weights = (tmp_path / "weights" / "model.pt",)
    evaluate_volumes(tmp_path / "manifest", [trained[0]], tmp_path / "out", weights=weights)
    shutil.rmtree(tmp_path / "manifest")
    shutil.rmtree(tmp_path / "weights")
    write_report([tmp_path / "out"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert record["bundles"][0]["weights_sha256"] in page
    assert "8 steps of 4 slices, 32 px; seed 0" in page
    assert page.count("data:image/webp") > 4
