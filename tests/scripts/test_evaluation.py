"""Evaluation by a bundle's own config: it says where no volume has a DSC, and where a section has no patients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from monai.data import load_decathlon_datalist

from tests.conftest import silent_weights
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
