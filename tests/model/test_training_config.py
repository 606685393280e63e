"""Experiments, recipes and overrides change keys that a config has, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.training_config import check_overrides, merged
from tests.conftest import BUNDLES, ROOT

BASIC = ROOT / "bundles" / "basic_unet"

OVERRIDES = sorted([*(ROOT / "experiments").glob("*.yaml"), *(ROOT / "recipes").glob("*.yaml")])


def train_config(bundle: Path = BASIC) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "train.json").read_text())


@pytest.mark.parametrize("file", OVERRIDES, ids=lambda file: file.stem)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_shipped_files_override_keys_that_exist(bundle: Path, file: Path) -> None:
    result = merged(train_config(bundle), file)  # refuses keys that do not
    assert result != train_config(bundle) or file.stem == "cpu"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_delta_for_several_processes_overrides_keys_that_exist(bundle: Path) -> None:
    delta = json.loads((bundle / "configs" / "multi_gpu_train.json").read_text())
    check_overrides({**train_config(bundle), "finalize": []}, delta, "multi_gpu_train.json")
