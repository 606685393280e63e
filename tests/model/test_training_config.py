"""Experiments, recipes and overrides can only change keys that a config has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.model.training_config import config_with
from tests.conftest import BASIC, BUNDLES, ROOT

OVERRIDES = sorted([*(ROOT / "experiments").glob("*.yaml"), *(ROOT / "recipes").glob("*.yaml")])


def train_config(bundle: Path, *files: Path) -> dict[str, Any]:
    return config_with(bundle / "configs" / "train.json", files, {})


@pytest.mark.parametrize("file", OVERRIDES, ids=lambda file: file.stem)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_shipped_files_override_keys_that_exist(bundle: Path, file: Path) -> None:
    assert train_config(bundle, file) != train_config(bundle) or file.stem == "cpu"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_delta_for_several_processes_overrides_keys_that_exist(bundle: Path) -> None:
    delta = json.loads((bundle / "configs" / "multi_gpu_train.json").read_text())
    assert delta.pop("finalize")  # MONAI's own key, which a config may lack
    config_with(bundle / "configs" / "train.json", [], delta)  # raises if a key does not exist


def test_a_file_adds_to_a_list_as_monai_does(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("+augmentation: [{_target_: Identityd, keys: image}]\n")
    own = train_config(BASIC)["augmentation"]
    assert train_config(BASIC, file)["augmentation"] == [*own, {"_target_": "Identityd", "keys": "image"}]
    assert "+augmentation" not in train_config(BASIC, file)
    file.write_text("+seed: 3\n")
    with pytest.raises(PipelineError, match=r"more\.yaml: .*\+seed"):
        train_config(BASIC, file)
