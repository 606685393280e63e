"""The generated configs: they match their source, name stock targets only and describe themselves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BUNDLES, ROOT

from pipeline import template
from pipeline.errors import PipelineError

STOCK = ("monai", "torch", "ignite")
WORKFLOWS = ("train", "evaluate", "inference")


def targets(config: Any) -> set[str]:
    if isinstance(config, dict):
        own = {config["_target_"]} if "_target_" in config else set()
        return own.union(*(targets(value) for value in config.values()))
    if isinstance(config, list):
        return set().union(*(targets(value) for value in config))
    return set()


def config_of(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def test_configs_match_their_source() -> None:
    assert template.main([str(ROOT / "bundles"), "--check"]) == 0


def test_a_drifted_config_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    changed = tmp_path / "bundles" / BUNDLES[0].name / "configs" / "train.json"
    changed.write_text(changed.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(PipelineError, match=r"train\.json"):
        template.main([str(tmp_path / "bundles"), "--check"])
    assert template.main([str(tmp_path / "bundles")]) == 0
    assert template.main([str(tmp_path / "bundles"), "--check"]) == 0


def test_a_folder_without_template_or_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="template"):
        template.main([str(tmp_path)])
    shutil.copytree(ROOT / "bundles" / "template", tmp_path / "template")
    with pytest.raises(PipelineError, match="no bundle"):
        template.main([str(tmp_path)])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "network.yaml").write_text("network_def: {_target_: BasicUNet}\n")
    with pytest.raises(PipelineError, match="metadata missing"):
        template.main([str(tmp_path)])
    (tmp_path / "new" / "network.yaml").write_text("network_def: {}\nmetadata: {}\nthreshold: 0.9\n")
    with pytest.raises(PipelineError, match="found threshold"):
        template.main([str(tmp_path)])


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_targets_are_stock(bundle: Path, name: str) -> None:
    from monai.bundle import ComponentLocator
    from monai.utils import optional_import

    text = (bundle / "configs" / f"{name}.json").read_text()
    assert "pipeline" not in text
    locator = ComponentLocator()
    for target in targets(json.loads(text)):
        path = target if "." in target else locator.get_component_module_name(target)
        assert path, f"{target} is no component of MONAI"
        module = path[0] if isinstance(path, list) else path
        if module.startswith("scripts."):
            assert (bundle / Path(*module.split(".")[:-1])).with_suffix(".py").is_file()
            continue
        assert module.split(".")[0] in STOCK
        if "." in target:
            parent, _, leaf = target.rpartition(".")
            assert optional_import(parent, name=leaf)[1], target


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_every_reference_is_defined(bundle: Path, name: str) -> None:
    config = config_of(bundle, name)
    for reference in re.findall(r"@([\w#]+)", json.dumps(config)):
        place: Any = config
        for key in reference.split("#"):
            assert key in place, f"@{reference}"
            place = place[key]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_metadata_has_what_the_schema_requires(bundle: Path) -> None:
    metadata = config_of(bundle, "metadata")
    required = {"schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "name", "task"}
    required |= {"required_packages_version", "description", "authors", "copyright", "network_data_format"}
    assert not required - metadata.keys()
    assert metadata["version"] in metadata["changelog"]
    assert "Research only" in metadata["intended_use"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_bundle_folder_is_complete(bundle: Path) -> None:
    for name in ("LICENSE", "docs/README.md", "configs/logging.conf", "configs/metadata.json"):
        assert (bundle / name).is_file(), name


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_intensities_are_clipped_to_percentiles_and_standardised(bundle: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    parser = ConfigParser(config_of(bundle, "inference"))
    of_head = config_of(bundle, "inference")["normalize_head"]
    image = np.random.default_rng(0).gamma(2, 30, (3, 12, 11, 10)).astype(np.float32)
    image[:, :5] = np.random.default_rng(1).uniform(0, 4, image[:, :5].shape)  # air
    seen = Compose(parser.get_parsed_content("intensity"))({"image": torch.as_tensor(image)})["image"].numpy()
    for channel, found in zip(image, seen, strict=True):
        low, high = np.percentile(channel, (1, 99.5))
        clipped = (np.clip(channel, low, high) - low) / (high - low)
        counted = clipped[clipped > 0.1] if of_head else clipped
        assert np.allclose(found, (clipped - counted.mean()) / counted.std(ddof=of_head), atol=1e-4)
    flat = np.concatenate([image[:1], np.full_like(image[:1], 7)])
    seen = Compose(parser.get_parsed_content("intensity"))({"image": torch.as_tensor(flat)})["image"].numpy()
    assert np.isfinite(seen).all()
    assert (seen[1] == 0).all()
    two = np.where(image[:1] > 20, np.float32(100), np.float32(0))
    seen = Compose(parser.get_parsed_content("intensity"))({"image": torch.as_tensor(two)})["image"].numpy()
    assert np.abs(seen).max() < 10  # all of the head alike: no deviation to divide by


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_box_of_the_head_fills_the_square(bundle: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor
    from monai.transforms import Compose

    parser = ConfigParser({**config_of(bundle, "inference"), "image_size": 16})
    image = np.zeros((3, 30, 40, 9), dtype=np.float32)
    image[1, 4:20, 10:18, 2:8] = 100
    image[0, 25, 35, 8] = 9  # below a tenth of the maximum: air
    seen = Compose(parser.get_parsed_content("image_spatial"))({"image": MetaTensor(image)})["image"]
    assert seen.shape == (3, 16, 16, 6)
    assert (seen[1] == 100).all()


MOST = {  # lines, expressions, lambdas, characters of a line
    "train": (400, 26, 2, 120),
    "evaluate": (200, 18, 4, 250),
    "inference": (200, 18, 4, 250),
}
"""As dense as the configs of MONAI's model zoo (spleen_ct_segmentation/train.json: 307, 20, 2, 94)."""


def strings(config: Any) -> list[str]:
    if isinstance(config, dict):
        return [text for value in config.values() for text in strings(value)]
    if isinstance(config, list):
        return [text for value in config for text in strings(value)]
    return [config] if isinstance(config, str) else []


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_config_holds_settings_and_references(bundle: Path, name: str) -> None:
    text = (bundle / "configs" / f"{name}.json").read_text()
    expressions = [value for value in strings(json.loads(text)) if value.startswith("$")]
    found = (len(text.splitlines()), len(expressions), text.count("lambda"), max(map(len, text.splitlines())))
    assert all(is_so <= most for is_so, most in zip(found, MOST[name], strict=True)), found
    assert len(config_of(bundle, name)["run"]) <= 2
    assert not re.search(r"\b(mock|ctypes|SimpleNamespace|__import__|exec|open)\b", " ".join(expressions))


@pytest.mark.parametrize("name", ["evaluate", "inference"])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_transforms_of_a_prediction_are_stock(bundle: Path, name: str) -> None:
    """A ``.ts`` holds the configs alone, and MONAI Deploy has no more."""
    config = config_of(bundle, name)
    parts = ("image_loading", "image_spatial", "intensity", "slice_inferer", "to_probability", "to_mask")
    assert not [target for part in parts for target in targets(config[part]) if target.startswith("scripts")]


@pytest.mark.parametrize("normalize_head", [False, True])
@pytest.mark.parametrize("percentiles", [[1, 99.5], [0, 90]])
def test_training_and_prediction_see_the_same_intensities(percentiles: list[float], normalize_head: bool) -> None:
    """To the bit: training by a class of the scripts, prediction by stock transforms."""
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor
    from monai.transforms import Compose

    from pipeline.scripts.transforms import NormalizePercentilesd

    settings = {"percentiles": percentiles, "normalize_head": normalize_head}
    parser = ConfigParser({**config_of(BUNDLES[0], "inference"), **settings})
    image = np.random.default_rng(0).gamma(2, 30, (3, 12, 11, 10)).astype(np.float32)
    image[1] = 7  # flat
    for kind in (torch.as_tensor, MetaTensor):
        stock = Compose(parser.get_parsed_content("intensity"))({"image": kind(image.copy())})["image"]
        own = NormalizePercentilesd("image", **settings)({"image": kind(image.copy())})["image"]
        assert torch.equal(torch.as_tensor(stock), torch.as_tensor(own))


def test_without_the_crop_all_is_head() -> None:
    from monai.bundle import ConfigParser

    image = torch.tensor([[[[0.0, 9, 10, 100]]], [[[0.0, 0, 0, 50]]]])
    for crop, expected in ((True, [False, False, True, True]), (False, [True] * 4)):
        parser = ConfigParser({**config_of(BUNDLES[0], "train"), "crop_to_head": crop})
        assert parser.get_parsed_content("head")(image).any(0).flatten().tolist() == expected


def test_all_bundles_carry_the_scripts_of_the_package() -> None:
    source = {path.name: path.read_bytes() for path in (ROOT / "pipeline" / "scripts").glob("*.py")}
    for bundle in BUNDLES:
        assert {path.name: path.read_bytes() for path in (bundle / "scripts").glob("*.py")} == source


def test_scripts_import_nothing_of_the_package_and_files_no_torch() -> None:
    """Where ``pipeline`` and torch cannot be imported, what reads and writes files still can."""
    code = "import sys; sys.modules.update(pipeline=None, torch=None, monai=None); sys.path.insert(0, sys.argv[1])\n"
    code += "import " + ", ".join(f"scripts.{name}" for name in WITHOUT_TORCH)
    subprocess.run([sys.executable, "-c", code, str(BUNDLES[0])], check=True)
    for path in (ROOT / "pipeline" / "scripts").glob("*.py"):
        assert not re.search(r"^\s*(from|import) pipeline", path.read_text(), re.MULTILINE), path.name


WITHOUT_TORCH = ("config", "faults", "files", "manifest", "records", "volumes", "weights")
