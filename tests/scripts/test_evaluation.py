"""Evaluation by a bundle's own config: it says where no volume has a DSC, and where a section has no patients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import nifti_bytes
from pipeline.model.predictions import predict_volumes
from pipeline.scripts.faults import fault_line
from tests.conftest import BUNDLES, silent_weights
from tests.scripts.conftest import SIZE


def test_evaluate_json_says_where_there_is_no_dsc(trained, half_healthy, run_config, tmp_path: Path, caplog) -> None:
    bundle, _ = trained
    datalist = str(half_healthy / "manifest.json")
    patients = json.loads((half_healthy / "manifest.json").read_text())["patients"]
    everyone = [item for part in ("training", "validation") for item in load_decathlon_datalist(datalist, True, part)]
    healthy = [item for item in everyone if not patients[item["patient"]]["lesion_voxels"]]
    silent_weights(trained, tmp_path / "model.pt")
    folders = {"dataset_dir": str(half_healthy), "output_dir": str(tmp_path), "ckpt_path": str(tmp_path / "model.pt")}
    overrides: dict[str, Any] = {**folders, "image_size": SIZE, "dataset#data": healthy}
    workflow = run_config(bundle / "configs" / "evaluate.json", **overrides)
    details = workflow.parser.get_parsed_content("evaluator").state.metric_details["val_dsc"]
    assert all(math.isnan(value) for value in details.flatten())
    assert "no volume has a DSC" in caplog.text
    with pytest.raises(RuntimeError) as failure:
        run_config(bundle / "configs" / "evaluate.json", **folders, split="test")
    assert "no patients in section test" in str(failure.value.__cause__)


def test_many_unfit_files_are_one_message_everywhere(run_config, tmp_path: Path) -> None:
    for number in range(53):
        (tmp_path / f"{number:02}_image.nii.gz").write_bytes(nifti_bytes(np.ones((8, 9 + number, 4, 2), np.uint8)))
    with pytest.raises(PipelineError) as ours:
        predict_volumes(tmp_path, BUNDLES[0], tmp_path / "out")
    with pytest.raises(RuntimeError) as theirs:
        run_config(BUNDLES[0] / "configs" / "inference.json", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "o"))
    for message in (str(ours.value), str(fault_line(theirs.value))):
        assert len(message.splitlines()) == 1
        assert "02_image.nii.gz and 50 more (53 in all): such as shape (8, 9, 4, 2) (expected" in message


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_volume_without_a_head_is_refused_before_any_mask_is_written(
    bundle: Path, run_config, tmp_path: Path
) -> None:
    for name, value in (("a", 1), ("b", 0)):
        (tmp_path / f"{name}_image.nii.gz").write_bytes(nifti_bytes(np.full((32, 32, 4), value, np.uint8)))
    with pytest.raises(RuntimeError) as failure:
        run_config(bundle / "configs" / "inference.json", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert str(fault_line(failure.value)).startswith(f"{tmp_path / 'b_image.nii.gz'}: no voxel is above 0")
    assert not [*tmp_path.glob("out/**/*.nii.gz")]


def test_volumes_of_other_names_are_named(run_config, tmp_path: Path) -> None:
    for name in ("sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/anat/sub-02_FLAIR.nii"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(RuntimeError) as failure:
        run_config(BUNDLES[0] / "configs" / "inference.json", dataset_dir=str(tmp_path))
    assert str(fault_line(failure.value)) == (
        f"{tmp_path}: found no *_image.nii.gz among 2 NIfTI files, such as sub-01_FLAIR.nii.gz. Rename them to "
        "NAME_image.nii.gz, or use lgg-flair predict."
    )
