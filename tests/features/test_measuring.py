"""Masks of predictions, evaluations and manifests are measured, and the tables hold what was measured."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.features.measuring import FEATURES, PAPER_FEATURES, find_masks, measure_shapes, values
from pipeline.features.shape import shape_features
from pipeline.shape import main
from tests.pages.evaluations import PATIENTS, make_run, trained_on


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "scores", 1)


def clinical(path: Path) -> Path:
    path.write_text(
        "patient,subtype\n" + "".join(f"{one},{group}\n" for one, group in zip(PATIENTS, "abab", strict=True))
    )
    return path


def test_an_evaluation_has_predicted_and_true_masks(run: Path, tmp_path: Path) -> None:
    result = measure_shapes(run, tmp_path / "out")
    assert {kind: sorted(shapes) for kind, shapes in result.shapes.items()} == {
        "predicted": sorted(PATIENTS),
        "true": sorted(PATIENTS),
    }
    label = np.asarray(nib.load(run / "volumes" / "3_label.nii.gz").dataobj)
    assert result.shapes["true"]["3"] == shape_features(label)
    assert result.unknown_spacing == sorted(PATIENTS)
    by_name = {one.feature: one for one in result.agreements}
    assert by_name["voxels"].patients == 4
    assert by_name["bounding_ellipsoid_volume_ratio"].patients == 3  # the fourth has no lesion
    assert by_name["voxels"].spearman == pytest.approx(1)
    table = pd.read_csv(tmp_path / "out" / "shape.csv", dtype={"patient": str})
    assert list(table.columns) == ["patient", "mask", *FEATURES]
    assert len(table) == 8
    row = table[(table["patient"] == "3") & (table["mask"] == "true")].iloc[0]
    assert row["margin_fluctuation"] == pytest.approx(result.shapes["true"]["3"].margin_fluctuation)
    assert np.isnan(row["volume_ml"])
    assert not (tmp_path / "out" / "associations.csv").exists()


def test_features_are_tested_against_a_table(run: Path, tmp_path: Path) -> None:
    path = clinical(tmp_path / "data.csv")
    result = measure_shapes(run, tmp_path / "out", clinical=path, features=["voxels", "largest_diameter_px"])
    assert {(kind, one.feature, one.column) for kind, found in result.associations.items() for one in found} == {
        (kind, "voxels", "subtype") for kind in ("predicted", "true")
    } | {(kind, "largest_diameter_px", "subtype") for kind in ("predicted", "true")}
    table = pd.read_csv(tmp_path / "out" / "associations.csv")
    assert sorted(table["groups"].unique()) == ["a: 2; b: 1", "a: 2; b: 2"]  # one has no lesion, so no diameter
    assert len(table) == 4
    content = json.loads((tmp_path / "out" / "shape.json").read_text())
    assert content["matched"] == 4
    assert content["clinical"]["name"] == "data.csv"
    assert len(content["shapes"]) == 8
    again = measure_shapes(run, tmp_path / "out")  # without a table, that of the earlier run goes
    assert again.associations == {}
    assert not (tmp_path / "out" / "associations.csv").exists()


def test_results_hold_no_cell_of_a_column_that_is_not_tested(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.features.association.MAX_GROUPS", 3)
    rows = [f"{patient},{place % 2},{5 * place}" for place, patient in enumerate(PATIENTS[:-1])]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["patient,subtype,number", *rows, f"{PATIENTS[-1]},1,A12345"]) + "\n")
    assert main([str(run), "--out", str(tmp_path / "out"), "--clinical", str(path), "--features", "voxels"]) == 0
    assert "number: A12345 is not a number" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "shape.json").read_text())
    why = "4 different values (expected 2 to 3), and 1 of 4 are not numbers"
    assert content["skipped_columns"] == {"number": why}
    assert f"Not tested: number ({why})." in (tmp_path / "out" / "shape.html").read_text()
    assert not [file for file in (tmp_path / "out").iterdir() if file.is_file() and "A12345" in file.read_text()]


def test_a_voxel_size_can_be_given_and_that_of_a_file_is_kept(run: Path, tmp_path: Path) -> None:
    result = measure_shapes(run, tmp_path / "out", spacing=(1, 1, 5))
    assert (result.unknown_spacing, result.given_spacing) == ([], sorted(PATIENTS))
    shape = result.shapes["true"]["3"]
    assert shape.volume_ml == pytest.approx(shape.voxels * 5 / 1000)
    folder = tmp_path / "masks"
    folder.mkdir()
    mask = np.zeros((12, 12, 6), np.uint8)
    mask[3:9, 3:9, 1:4] = 1
    image = nib.Nifti1Image(mask.transpose(2, 1, 0), np.diag([2.0, 0.5, 0.5, 1]))  # sagittal slices, 2 mm apart
    image.header.set_xyzt_units("mm")
    image.to_filename(folder / "p_mask.nii.gz")
    other = measure_shapes(folder, tmp_path / "other", spacing=(9, 9, 9))
    assert other.given_spacing == []
    (shape,) = other.shapes["predicted"].values()
    assert shape.volume_ml == pytest.approx(108 * 0.5 / 1000)
    assert shape.slices == 6  # axial slices


def test_the_largest_component_can_be_measured_alone(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 6), np.uint8)
    mask[3:9, 3:9, 1:4] = mask[0, 11, 5] = 1
    (tmp_path / "masks").mkdir()
    nib.Nifti1Image(mask, np.eye(4)).to_filename(tmp_path / "masks" / "p_mask.nii.gz")
    for only_largest, voxels in ((False, 109), (True, 108)):
        result = measure_shapes(tmp_path / "masks", tmp_path / "out", only_largest=only_largest)
        assert result.shapes["predicted"]["p"].voxels == voxels


def test_a_manifest_has_true_masks(manifest: Path, tmp_path: Path) -> None:
    result = measure_shapes(manifest, tmp_path / "out")
    assert list(result.shapes) == ["true"]
    assert len(result.shapes["true"]) == 8
    assert set(values(result.shapes["true"], "voxels")) == set(result.shapes["true"])
    assert list(find_masks(manifest / "manifest.json")) == ["true"]


def test_a_kind_of_mask_without_values_is_left_out_and_shapes_are_kept(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores, path, out = tmp_path / "scores", clinical(tmp_path / "data.csv"), tmp_path / "out"
    shutil.copytree(run, scores)
    for mask in (scores / "masks").iterdir():
        image = nib.load(mask)
        nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_filename(mask)
    result = measure_shapes(scores, out, clinical=path, features=["largest_diameter_px"])
    assert list(result.associations) == ["true"]
    assert "predicted masks: no association can be tested (no mask has largest_diameter_px" in caplog.text
    (out / "shape.html").write_text("of the earlier tables")
    with pytest.raises(PipelineError, match=r"^predicted masks: no association can be tested \(no mask has volume_ml"):
        measure_shapes(run, out, clinical=path, features=["volume_ml"])
    assert len(pd.read_csv(out / "shape.csv")) == 8
    assert pd.read_csv(out / "shape.csv")["voxels"].min() == 0
    assert not (out / "associations.csv").exists()
    assert not (out / "shape.html").exists()


def test_patients_of_the_training_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "scores", 1), tmp_path / "out"
    trained_on(run, PATIENTS[1])
    assert main([str(run), "--out", str(out)]) == 0
    assert "patients that the networks were trained on: 1; their predicted masks do not" in capsys.readouterr().out
    assert json.loads((out / "shape.json").read_text())["seen_in_training"] == [PATIENTS[1]]
    assert f"the networks were trained on {PATIENTS[1]}: their predicted masks" in (out / "shape.html").read_text()
    assert measure_shapes(run / "masks", out).seen_in_training == []


def test_what_cannot_be_measured_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"holds no masks NAME_mask\.nii\.gz\. Give a folder"):
        measure_shapes(tmp_path, tmp_path / "out")
    with pytest.raises(PipelineError, match=r"--features round \(expected some of bounding_ellipsoid"):
        measure_shapes(run, tmp_path / "out", features=["round"])
    with pytest.raises(PipelineError, match=r"--spacing 1 0 1 \(expected distances above 0 mm"):
        measure_shapes(run, tmp_path / "out", spacing=(1, 0, 1))
    with pytest.raises(PipelineError, match=r"--seed -1 \(expected 0 or more"):
        measure_shapes(run, tmp_path / "out", seed=-1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PipelineError, match="--features without --clinical"):
        main([str(run), "--out", str(tmp_path / "out"), "--features", "voxels"])
    one = find_masks(run / "masks" / "3_mask.nii.gz")
    assert list(one["predicted"]) == ["3"]
    assert FEATURES[:3] == PAPER_FEATURES


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8_are_escaped(run: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    shutil.copy(run / "masks" / "3_mask.nii.gz", tmp_path / "masks" / os.fsdecode(b"M\xfcller_mask.nii.gz"))
    assert [*measure_shapes(tmp_path / "masks", tmp_path / "out").shapes["predicted"]] == [r"M\udcfcller"]
