"""What prediction takes over from a training's record: plain values, whatever the configs' text is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.model.bundle import load_bundle
from pipeline.scripts import config, records
from pipeline.scripts.files import sha256_file
from tests.conftest import BASIC, BUNDLES, silent_weights


def own() -> dict[str, Any]:
    return config.config_without_overrides(BASIC / "configs" / "train.json")


def test_an_unchanged_config_has_nothing_unrecorded() -> None:
    found = records.for_prediction(own(), own())
    network = found.pop("network_def")
    assert (network["_target_"], network["features"]) == ("BasicUNet", [16, 16, 32, 64, 128, 16])
    expected = {"image_size": 192, "around": 0, "crop_to_head": True, "percentiles": [1, 99.5], "normalize_head": True}
    assert found == {**expected, "unrecorded": []}


@pytest.mark.parametrize(
    ("change", "recorded", "unrecorded"),
    [
        ({"normalize_head": False}, {"normalize_head": False}, []),
        ({"percentiles": [0, 100]}, {"percentiles": [0, 100]}, []),
        ({"percentiles": (0, 100)}, {"percentiles": [0, 100]}, []),
        ({"percentiles": "$[0, 100]"}, {}, ["percentiles"]),
        ({"image_size": 96.0}, {}, ["image_size"]),
        ({"normalize_head": "false"}, {}, ["normalize_head"]),
        ({"intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}]}, {}, []),
        ({"intensity": [{"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}]}, {}, ["intensity"]),
        ({"intensity": [{"_target_": "RandGaussianNoised", "keys": "image"}]}, {}, ["intensity"]),
        ({"head": "$lambda image: image > 0"}, {}, ["head"]),
        ({"network_def": "$torch.nn.Identity()"}, {}, ["network_def"]),
        ({"augmentation": []}, {}, []),
    ],
)
def test_what_a_training_changed_is_recorded_or_named(change: Any, recorded: Any, unrecorded: list[str]) -> None:
    found = records.for_prediction({**own(), **change}, own())
    assert found["unrecorded"] == unrecorded
    assert {key: found[key] for key in recorded} == recorded
    assert ("intensity" in found) == ("intensity" in change and not unrecorded)


def test_changed_transforms_of_training_are_named() -> None:
    changed = own()
    changed["train"] = {**changed["train"], "spatial": []}
    assert records.for_prediction(changed, own())["unrecorded"] == ["train#spatial"]


@pytest.mark.parametrize(
    ("definition", "plain"),
    [
        ({"_target_": "BasicUNet", "spatial_dims": 2, "act": ["LeakyReLU", {"inplace": True}]}, True),
        ({"_target_": "monai.networks.nets.BasicUNet", "_requires_": "@scripts_path"}, True),
        ({"_target_": "scripts.networks.UNetPlusPlus", "spatial_dims": 2}, True),
        ({"_target_": "scripts.networks.EfficientNetLiteUNet", "in_channels": 3, "out_channels": 1}, True),
        ({"_target_": "scripts.networks.prepare_network"}, False),
        ({"_target_": "os.system", "command": "true"}, False),
        ({"_target_": "torch.nn.Conv2d"}, False),
        ({"_target_": "BasicUNet", "features": "$__import__('os')"}, False),
        ({"_target_": "BasicUNet", "features": "@imports"}, False),
        ({"_target_": "BasicUNet", "act": {"_target_": "os.system"}}, False),
        ({"_target_": "BasicUNet", "_mode_": "debug"}, False),
        ({"_target_": "ResNetFeatures", "model_name": "resnet10"}, False),
        ({"_target_": "HoVerNet", "pretrained_url": "http://localhost/x"}, False),
        ("$torch.nn.Identity()", False),
        (None, False),
    ],
)
def test_a_network_of_a_record_is_monais_or_ours_with_plain_values(definition: Any, plain: bool) -> None:
    assert records.is_network(definition) == plain
    values = {"network_def": definition, "unrecorded": []}
    if plain:
        assert records.trained_settings({"record_version": 2, "prediction": values}, Path("model.pt")) == {
            "network_def": {key: value for key, value in definition.items() if key != "_requires_"}
        }
    else:
        with pytest.raises(PipelineError, match=r"holds network_def \(expected plain values"):
            records.trained_settings({"record_version": 2, "prediction": values}, Path("model.pt"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_shipped_weights_were_trained_with_the_settings_of_their_bundle(bundle: Path) -> None:
    record = json.loads((bundle / "models" / "training.json").read_text())
    found = records.trained_settings(record, bundle / "models" / "model.pt")
    assert set(found) == {*records.RECORDED, "network_def"}
    inference = json.loads((bundle / "configs" / "inference.json").read_text())
    assert records.changed_settings(found, inference) == {}


def test_a_record_does_not_reach_the_network_by_a_link_of_names(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """``scripts`` in a record is this project's, wherever the weights lie."""
    weights = silent_weights(trained, tmp_path / "model.pt")
    record = json.loads((tmp_path / "training.json").read_text())
    record["prediction"]["network_def"] = {"_target_": "scripts.evil.Network"}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert record["weights"]["model.pt"] == sha256_file(weights)
    with pytest.raises(PipelineError, match="expected plain values"):
        load_bundle(BASIC, weights)


def test_a_tuple_of_a_command_line_is_the_list_of_a_record() -> None:
    assert records.changed_settings({"percentiles": [1, 99]}, {"percentiles": (1, 99)}) == {}
    assert records.changed_settings({"percentiles": [1, 99]}, {"percentiles": (1, 98)}) == {"percentiles": [1, 99]}


@pytest.mark.parametrize(
    "values", [{"image_size": -5}, {"percentiles": [99, 1]}, {"around": True}, {"normalize_head": 1}, {"seed": 0}]
)
def test_a_record_holds_only_values_that_a_config_may_have(values: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=f"holds {next(iter(values))} "):
        records.trained_settings({"record_version": 2, "prediction": values}, Path("model.pt"))


def test_a_record_of_a_later_version_is_refused() -> None:
    with pytest.raises(PipelineError, match="written by another version"):
        records.trained_settings({"record_version": 7, "prediction": {}}, Path("model.pt"))


def test_paths_of_the_machine_stay_out_of_a_record(tmp_path: Path) -> None:
    record = {"a": str(tmp_path / "x"), "b": [f"$os.path.join('{tmp_path}/m', 'n')"], "c": "1 / 2", "d": "no/such/x"}
    assert json.loads(records.as_text(record)) == {
        "a": "x",
        "b": ["$os.path.join('m', 'n')"],
        "c": "1 / 2",
        "d": "no/such/x",
    }


def test_a_damaged_training_record_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(trained[1] / "model.pt", tmp_path)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(PipelineError, match=r"training\.json: no readable record"):
        load_bundle(trained[0], tmp_path / "model.pt")
    record = json.loads((trained[1] / "training.json").read_text())
    prediction = record["prediction"]
    for changes, message in (
        ({"weights": {"model.pt": "0" * 64}}, "belongs to other weights"),
        ({"prediction": {**prediction, "unrecorded": ["image_spatial"]}}, "trained with its own image_spatial"),
        ({"prediction": {**prediction, "image_size": "$1"}}, r"holds image_size \(expected plain values"),
        ({"prediction": {**prediction, "network_def": {"_target_": "os.system"}}}, r"holds network_def \(expected"),
        ({"prediction": {**prediction, "imports": ["$import os"]}}, r"holds imports \(expected plain values"),
        ({"prediction": []}, "no readable record"),
    ):
        (tmp_path / "training.json").write_text(json.dumps({**record, **changes}))
        with pytest.raises(PipelineError, match=message):
            load_bundle(trained[0], tmp_path / "model.pt")


def test_patients_of_earlier_weights_count_as_seen() -> None:
    assert records.seen_patients({}) == []
    assert records.seen_patients({"training_patients": ["b"], "init": None}) == ["b"]
    started = {"training_patients": ["b"], "init": {"training_patients": ["c", "a", "b"]}}
    assert records.seen_patients(started) == ["a", "b", "c"]
    chain = {"training_patients": ["c"], "init": {"training_patients": ["b"], "init": {"training_patients": ["a"]}}}
    assert records.seen_patients(chain) == ["a", "b", "c"]


KNOWN, UNKNOWN = {"training_patients": ["a"]}, {"training_patients": None}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, False),
        (KNOWN, True),
        ({**KNOWN, "init": None}, True),
        ({**KNOWN, "init": KNOWN}, True),
        ({**KNOWN, "init": UNKNOWN}, False),
        ({**KNOWN, "init": {"training_patients": []}}, False),
        ({**KNOWN, "init": {**KNOWN, "init": UNKNOWN}}, False),
        ({"training_patients": [], "init": KNOWN}, False),
    ],
)
def test_patients_of_all_trainings_are_known_or_not(record: Any, expected: bool) -> None:
    assert records.knows_all_patients(record) is expected


@pytest.mark.parametrize(
    ("record", "pseudonymised", "expected"),
    [
        ({"pseudonymised": False}, False, False),
        ({"pseudonymised": False}, True, True),
        ({"pseudonymised": True}, False, True),
        ({"pseudonymised": True}, True, True),
        ({}, False, False),  # of an earlier version
        ({"init": {**KNOWN, "manifest_sha256": "1", "pseudonymised": True}}, False, True),
        ({"manifest_sha256": "2", "pseudonymised": True}, True, False),  # the same manifest
        ({"training_patients": []}, True, False),  # there are no names
    ],
)
def test_other_names_are_reported_by_pseudonyms(record: Any, pseudonymised: bool, expected: bool) -> None:
    record = {**KNOWN, "manifest_sha256": "1", **record}
    assert records.has_other_names(record, "2", pseudonymised=pseudonymised) is expected


def test_a_path_that_is_written_as_an_expression_is_cut_too() -> None:
    written = ["$'/home/me/a \\x23b/data'", "$'it\\x40s'", "$@fold + 1", "$'broken", '$"/x/it\'s"']
    assert json.loads(records.as_text(written)) == ["data", "it@s", "$@fold + 1", "$'broken", "it's"]
