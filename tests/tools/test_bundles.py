"""The generated configs: they match their source, name stock targets only and describe themselves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.scripts.manifest import CHANNELS
from tests.conftest import BUNDLES, ROOT
from tools import bundles as generator

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
    assert generator.main([str(ROOT / "bundles"), "--check"]) == 0


def test_a_drifted_config_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    changed = tmp_path / "bundles" / BUNDLES[0].name / "configs" / "train.json"
    changed.write_text(changed.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(PipelineError, match=r"train\.json"):
        generator.main([str(tmp_path / "bundles"), "--check"])
    assert generator.main([str(tmp_path / "bundles")]) == 0
    assert generator.main([str(tmp_path / "bundles"), "--check"]) == 0


def test_a_folder_without_template_or_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="template"):
        generator.main([str(tmp_path)])
    shutil.copytree(ROOT / "bundles" / "template", tmp_path / "template")
    with pytest.raises(PipelineError, match="no bundle"):
        generator.main([str(tmp_path)])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "network.yaml").write_text("network_def: {_target_: BasicUNet}\n")
    with pytest.raises(PipelineError, match="metadata missing"):
        generator.main([str(tmp_path)])
    (tmp_path / "new" / "network.yaml").write_text("network_def: {}\nmetadata: {}\nthreshold: 0.9\n")
    with pytest.raises(PipelineError, match="found threshold"):
        generator.main([str(tmp_path)])


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


ENTRY_POINTS = {"imports", "initialize", "run", "finalize"}
"""What MONAI itself looks for in a config."""


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_every_key_is_used(bundle: Path, name: str) -> None:
    config = config_of(bundle, name)
    text = json.dumps(config)
    assert set(config) - ENTRY_POINTS == set(re.findall(r"@(\w+)", text))
    for part in {"train", "validate"} & config.keys():
        assert set(config[part]) == set(re.findall(rf"@{part}#(\w+)", text))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_training_of_several_processes_changes_keys_that_are_there(bundle: Path) -> None:
    changed = {key.lstrip("+").split("#")[0] for key in config_of(bundle, generator.DELTA)}
    assert changed <= config_of(bundle, "train").keys() | ENTRY_POINTS


def test_metadata_has_the_channels_of_the_network(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bundles" / "template", tmp_path / "template")
    (tmp_path / "new").mkdir()
    network = {"network_def": {"_target_": "BasicUNet", "in_channels": 9}, "around": 1, "metadata": {"name": "new"}}
    (tmp_path / "new" / "network.yaml").write_text(json.dumps(network))
    assert generator.main([str(tmp_path)]) == 0
    image = config_of(tmp_path / "new", "metadata")["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == len(image["channel_def"]) == 9
    assert [image["channel_def"][number] for number in "0148"] == [*CHANNELS[:2], CHANNELS[1], CHANNELS[2]]


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
    licence = (ROOT / "bundles" / generator.WEIGHTS_LICENCE).read_text()
    assert "non-commercial research only" in licence
    assert (bundle / "docs" / generator.WEIGHTS_LICENCE).read_text() == licence


MOST = {  # lines, expressions, lambdas, characters of a line
    "train": (400, 26, 2, 120),
    "evaluate": (200, 19, 5, 250),
    "inference": (200, 19, 5, 250),
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
