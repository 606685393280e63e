"""The weights in bundles/*/models that the metadata name: what they are, and what they were trained on and by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.bundle import load_bundle
from pipeline.scripts.files import sha256_file
from pipeline.scripts.weights import shipped_sha256
from tests.conftest import BUNDLES, ROOT

SHIPPED = [bundle for bundle in BUNDLES if shipped_sha256(bundle)]
RECIPES = {path.stem: path for path in (ROOT / "recipes").glob("*.yaml")}


@pytest.fixture(params=SHIPPED, ids=lambda bundle: bundle.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_the_bundles_that_come_trained_name_their_weights() -> None:
    assert {bundle.name for bundle in SHIPPED} >= {"attention_unet", "basic_unet", "basic_unet_plusplus"}


def record_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "models" / "training.json").read_text())


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in (*strings(key), *strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def test_weights_are_a_plain_state_dict_of_the_network(bundle: Path) -> None:
    import torch

    weights = bundle / "models" / "model.pt"
    assert sha256_file(weights) == shipped_sha256(bundle) == record_of(bundle)["weights"]["model.pt"]
    assert weights.stat().st_size < 10e6
    state = torch.load(weights, weights_only=True)
    assert all(isinstance(value, torch.Tensor) and bool(value.isfinite().all()) for value in state.values())
    loaded = load_bundle(bundle, weights)
    assert loaded.recorded
    assert loaded.settings == {}
    network = loaded.network
    assert isinstance(network, torch.nn.Module)
    assert network.state_dict().keys() == state.keys()


def test_the_validation_patients_chose_nothing(bundle: Path) -> None:
    record = record_of(bundle)
    validation = set(json.loads((ROOT / "pipeline" / "cohort" / "reference_split.json").read_text())["validation"])
    assert len(validation) == 10
    assert validation.isdisjoint(record["training_patients"])
    assert len(record["training_patients"]) == 90


def test_the_recipe_in_the_tree_made_them(bundle: Path) -> None:
    import yaml

    config = record_of(bundle)["config"]
    recipe = {name: yaml.safe_load(path.read_text()) for name, path in RECIPES.items()}
    for fields in recipe.values():
        fields.pop("val_interval")  # has no influence on the weights
        fields.setdefault("deterministic", True)
    made_by = [name for name, fields in recipe.items() if all(config[key] == value for key, value in fields.items())]
    assert len(made_by) == 1
    assert f"`{made_by[0]}`" in (bundle / "docs" / "README.md").read_text()


def test_the_record_names_no_machine(bundle: Path) -> None:
    found = [text for text in strings(record_of(bundle)) if Path(text).is_absolute() or "/home/" in text]
    assert found == []


def test_the_metadata_claim_both_protocols(bundle: Path) -> None:
    metrics = json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]
    assert {"dsc_mean_native", "dsc_mean_reference"} <= set(metrics)


def test_the_card_says_what_it_must(bundle: Path) -> None:
    card = (bundle / "docs" / "README.md").read_text()
    sections = ("## Intended use", "## Data", "## Performance", "### Known failures", "# License")
    assert [title for title in sections if f"\n{title}\n" not in card] == []
    failures = card.split("### Known failures")[1].split("\n## ")[0]
    assert re.search(r"TCGA_[A-Z0-9]{2}_[A-Z0-9]{4}\b", failures)
    assert "expected calibration error" in card.split("**Calibration.**")[1].split("\n\n")[0]
    assert "CC BY-NC-SA 4.0" in card.split("# License")[1]
    assert "Research only" in card
    results = {name for names in re.findall(r"<!-- summaries (.*) -->", card) for name in names.split()}
    assert {f"shipped/{bundle.name}_{protocol}" for protocol in ("native", "reference")} <= results
