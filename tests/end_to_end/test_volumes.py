"""A cohort of volumes in another orientation is trained on, evaluated and shown as the same patients in slices are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline import evaluate
from pipeline import manifest as manifest_command
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_image, load_label
from pipeline.pages.report import write_report
from pipeline.scoring.evaluation import evaluate_volumes
from pipeline.scoring.results import read_scores
from tests.cohort.volumes import save, write_json
from tests.conftest import BASIC, TINY, evaluated, lively_weights


@pytest.fixture(scope="module")
def volumes(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of image and mask volumes of the session's phantoms, stored from left, inferior, anterior."""
    root = tmp_path_factory.mktemp("volumes")
    for volume in read_manifest(manifest).volumes:
        save(root / "images" / f"{volume.patient}.nii.gz", load_image(volume.image), "LIA")
        save(root / "labels" / f"{volume.patient}.nii.gz", load_label(volume.label), "LIA")
    return root


@pytest.fixture(scope="module")
def of_volumes(volumes: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the volumes' manifest, whose sections are those of the slices'."""
    out = tmp_path_factory.mktemp("of_volumes")
    sections = read_manifest(manifest).sections
    write_json(out / "split.json", {name: [volume.patient for volume in part] for name, part in sections.items()})
    given = [str(volumes), "--out", str(out / "m"), "--split", str(out / "split.json"), "--folds", "2"]
    assert manifest_command.main(given) == 0
    return out / "m"


def test_training_sees_the_same_slices(trained: Any, of_volumes: Path, run_config: Any, tmp_path: Path) -> None:
    bundle, out = trained
    folders = {"dataset_dir": str(of_volumes), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    run_config(bundle / "configs" / "train.json", **folders, **TINY)
    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, out))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_evaluation_scores_as_that_of_slices_and_in_mm(
    trained, manifest: Path, of_volumes: Path, tmp_path: Path
) -> None:
    lively_weights(trained, manifest, tmp_path / "model.pt")
    folder = (trained[0], tmp_path)
    evaluated(folder, manifest, tmp_path / "slices", "--per-slice", "--split", "all")
    summary = evaluated(folder, of_volumes, tmp_path / "volumes", "--per-slice", "--split", "all")
    of_slices, of_volumes_ = read_scores(tmp_path / "slices"), read_scores(tmp_path / "volumes")
    assert [score.dsc for score in of_volumes_] == [score.dsc for score in of_slices]
    assert {score.hd95_mm for score in of_slices} == {None}
    assert sum(score.hd95_mm is not None for score in of_volumes_) >= 2
    assert summary["hd95_mm_median"] > 0
    assert summary["surface_dice_2mm_median"] is not None
    tables = [(tmp_path / name / "slices.csv").read_text() for name in ("slices", "volumes")]
    assert tables[0] == tables[1]
    rows = [row.split(",") for row in tables[0].splitlines()[1:]]
    for score in of_slices:
        mine = [[int(count) for count in row[1:5]] for row in rows if row[0] == score.patient]
        assert [number for number, *_ in mine] == list(range(1, len(mine) + 1))
        assert [sum(column) for column in zip(*mine, strict=True)][1:] == [
            score.tp_voxels,
            score.fp_voxels,
            score.fn_voxels,
        ]
    page, notes = write_report([tmp_path / "volumes"])
    assert page.is_file()
    assert not [note for note in notes if "lacks" in note]
    evaluated(folder, of_volumes, tmp_path / "volumes", "--split", "all")
    assert not (tmp_path / "volumes" / "slices.csv").exists()


def test_slices_keep_their_numbers_where_the_protocol_drops_ends(trained, manifest: Path, tmp_path: Path) -> None:
    evaluated(trained, manifest, tmp_path / "out", "--per-slice", "--protocol", "reference")
    first = read_manifest(manifest).sections["validation"][0]
    rows = [row.split(",") for row in (tmp_path / "out" / "slices.csv").read_text().splitlines()[1:]]
    depth = nib.load(first.image).shape[2]
    assert [int(row[1]) for row in rows if row[0] == first.patient] == list(range(2, depth))


def test_folds_of_volumes_are_trained_and_scored(of_volumes: Path, run_config: Any, tmp_path: Path) -> None:

    bundle = BASIC
    for fold in (0, 1):
        out = tmp_path / "run" / f"fold_{fold}"
        folders = {"dataset_dir": str(of_volumes), "ckpt_dir": str(out), "output_dir": str(out)}
        run_config(bundle / "configs" / "train.json", **folders, **{**TINY, "max_epochs": 1}, fold=fold)
    given = ["--manifest", str(of_volumes), "--bundle", str(bundle), "--folds", str(tmp_path / "run")]
    assert evaluate.main([*given, "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["volumes"], summary["seen_in_training"]) == (8, [])


def hand_written(volumes: Path, folder: Path, patients: list[str]) -> Path:
    """A datalist beside copies of volumes: one absolute, one relative, one not compressed; a test image."""
    items = [
        {"image": str(volumes / "images" / f"{name}.nii.gz"), "label": f"labels/{name}.nii.gz"} for name in patients
    ]
    (folder / "labels").mkdir()
    for name in patients:
        shutil.copy(volumes / "labels" / f"{name}.nii.gz", folder / "labels")
    plain = nib.load(volumes / "images" / f"{patients[0]}.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(plain.dataobj), plain.affine, plain.header), folder / f"{patients[0]}.nii")
    items[0]["image"] = f"{patients[0]}.nii"
    items[0]["label"] = f"../{folder.name}/labels/{patients[0]}.nii.gz"
    write_json(folder / "list.json", {"validation": [*items, "images/unlabelled.nii.gz"]})
    return folder / "list.json"


def test_a_hand_written_datalist_is_scored(
    trained, volumes: Path, of_volumes: Path, tmp_path: Path, caplog: Any
) -> None:
    bundle, weights = trained
    section = read_manifest(of_volumes).sections["validation"]
    path = hand_written(volumes, tmp_path, [volume.patient for volume in section])
    own = evaluate_volumes(of_volumes, bundle, tmp_path / "own", weights=weights / "model.pt")
    found = evaluate_volumes(path, bundle, tmp_path / "hand", weights=weights / "model.pt")
    assert "1 items of 'validation' without label are left out" in caplog.text
    assert [score.patient for score in found.scores] == [volume.patient for volume in section]
    assert [(s.dsc, s.hd95_mm) for s in found.scores] == [(s.dsc, s.hd95_mm) for s in own.scores]
    assert write_report([tmp_path / "hand"])[0].is_file()


@pytest.mark.parametrize(
    ("items", "fault"),
    [
        ([{"image": "x.nii.gz", "label": 3}], "expected image and label, each a path"),
        (
            [{"image": "a/x.nii.gz", "label": "y"}, {"image": "b/x.nii.gz", "label": "z"}],
            "patient x is listed twice. Put each",
        ),
        ([{"image": "=x.nii.gz", "label": "y"}], "the patient id '=x' starts with .* Rename =x.nii.gz"),
        ({"image": "x"}, "is not a list"),
    ],
)
def test_an_odd_datalist_is_refused(tmp_path: Path, items: Any, fault: str) -> None:
    write_json(tmp_path / "list.json", {"training": [], "validation": items})
    with pytest.raises(PipelineError, match=fault):
        read_manifest(tmp_path / "list.json")


def test_a_datalist_may_name_its_patients(tmp_path: Path) -> None:
    items = [{"image": f"{name}/flair.nii.gz", "label": "y", "patient": name, "fold": 1} for name in "ab"]
    write_json(tmp_path / "list.json", {"training": items, "test": [{"image": "/x/C_image.nii.gz", "label": "y"}]})
    found = read_manifest(tmp_path / "list.json")
    assert [volume.patient for volume in found.volumes] == ["a", "b", "C"]
    assert (found.folds, found.volumes[0].lesion_voxels) == ([1], None)
