"""Settings of a wrong type or value are one line each, the same through the package and through MONAI's own command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from pipeline.errors import PipelineError
from pipeline.model.training_config import config_with
from pipeline.scripts.config import SETTINGS, setting_faults
from pipeline.scripts.faults import fault_line
from tests.conftest import BASIC, BUNDLES, ROOT

ATTENTION = ROOT / "bundles" / "attention_unet"
WRONG = [
    ("max_epochs", "ten", "max_epochs: 'ten' (expected a whole number of 1 or more)."),
    ("max_epochs", 0, "max_epochs: 0 (expected a whole number of 1 or more)."),
    ("max_epochs", 2.5, "max_epochs: 2.5 (expected a whole number of 1 or more)."),
    ("max_epochs", True, "max_epochs: True (expected a whole number of 1 or more)."),
    ("batch_size", 0, "batch_size: 0 (expected a whole number of 1 or more)."),
    ("seed", "x", "seed: 'x' (expected a whole number of 0 or more)."),
    ("fold", "all", "fold: 'all' (expected a whole number of 0 or more, or None)."),
    ("image_size", 8, "image_size: 8 (expected a whole number of 16 or more)."),
    ("learning_rate", -0.1, "learning_rate: -0.1 (expected a number above 0)."),
    ("learning_rate", 0, "learning_rate: 0 (expected a number above 0)."),
    ("learning_rate", float("nan"), "learning_rate: nan (expected a number above 0)."),
    ("weight_decay", -1, "weight_decay: -1 (expected a number of 0 or more)."),
    ("ema_momentum", 1, "ema_momentum: 1 (expected a number between 0 and 1)."),
    ("even_share", 1.1, "even_share: 1.1 (expected a number from 0 to 1)."),
    ("amp", "maybe", "amp: 'maybe' (expected True or False, capitalised as in Python)."),
    ("resume", "yes", "resume: 'yes' (expected True or False)."),
    ("percentiles", [99, 1], "percentiles: [99, 1] (expected two numbers from 0 to 100, the lower one first)."),
    ("init", 3, "init: 3 (expected a path; ./NAME for a name that is a number, or None)."),
    ("device", "gpu", "device: 'gpu' (expected one of this machine's: cpu"),
]


@pytest.mark.parametrize(("key", "value", "line"), WRONG, ids=[f"{key}-{value}" for key, value, _ in WRONG])
def test_a_wrong_value_is_one_line_everywhere(manifest: Path, run_config: Any, key: str, value: Any, line: str) -> None:
    with pytest.raises(PipelineError) as ours:
        config_with(BASIC / "configs" / "train.json", [], {key: value})
    assert str(ours.value).startswith(line)
    with pytest.raises(RuntimeError) as theirs:
        run_config(BASIC / "configs" / "train.json", dataset_dir=str(manifest), **{key: value})
    assert fault_line(theirs.value) == str(ours.value)


@pytest.mark.parametrize("name", ["evaluate", "inference"])
@pytest.mark.parametrize(
    ("key", "value"), [("device", "gpu"), ("image_size", "x"), ("threshold", 2), ("dataset_dir", 1)]
)
def test_a_prediction_refuses_them_too(run_config: Any, name: str, key: str, value: Any) -> None:
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / f"{name}.json", **{key: value})
    assert str(fault_line(failure.value)).startswith(f"{key}: {value!r} (expected ")


def test_a_size_that_a_network_cannot_take_is_reported_before_slices_are_read(run_config: Any, tmp_path: Path) -> None:
    expected = "image_size: 72 (expected a multiple of 16 for AttentionUnet). Pass --image_size 80."
    for name in ("train", "evaluate"):
        with pytest.raises(RuntimeError) as failure:  # there are no data
            run_config(ATTENTION / "configs" / f"{name}.json", dataset_dir=str(tmp_path), image_size=72)
        assert fault_line(failure.value) == expected
    for size in (16, 48, 208):
        config_with(ATTENTION / "configs" / "train.json", [], {"image_size": size})
    config_with(BASIC / "configs" / "train.json", [], {"image_size": 72})  # pads what it cannot halve
    fewer = {"network_def#channels": [16, 32, 64], "network_def#strides": [2, 2], "image_size": 72}
    config_with(ATTENTION / "configs" / "train.json", [], fewer)


def test_neighbouring_slices_want_a_network_of_their_channels(run_config: Any, tmp_path: Path) -> None:
    expected = (
        "around: 1 (expected a network of 9 channels, the config's takes 3). Pass --network_def#in_channels 9, and "
        "weights of such a network."
    )
    for name in ("train", "inference"):
        with pytest.raises(RuntimeError) as failure:
            run_config(BASIC / "configs" / f"{name}.json", dataset_dir=str(tmp_path), around=1)
        assert fault_line(failure.value) == expected
    config_with(BASIC / "configs" / "train.json", [], {"around": 1, "network_def#in_channels": 9})


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(PipelineError) as failure:
        config_with(BASIC / "configs" / "train.json", [], {"max_epochs": "ten", "amp": "maybe"})
    assert [line.partition(":")[0] for line in str(failure.value).splitlines()] == ["max_epochs", "amp"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_bundles_own_values_are_right_and_every_setting_is_one_of_theirs(bundle: Path) -> None:
    parsers = [
        ConfigParser(json.loads((bundle / "configs" / f"{name}.json").read_text()))
        for name in ("train", "evaluate", "inference")
    ]
    assert [setting_faults(parser) for parser in parsers] == [[], [], []]
    assert [key for key in SETTINGS if not any(key in parser for parser in parsers)] == []


def test_expressions_and_text_that_is_meant_are_taken() -> None:
    given = {"max_epochs": "$2 * 5", "device": "$torch.device('cpu')", "resume": "true", "percentiles": (1, 99)}
    assert config_with(BASIC / "configs" / "train.json", [], given)["max_epochs"] == "$2 * 5"
