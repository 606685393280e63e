"""What programs that consume MONAI bundles ask of one; tested offline and without their packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.cohort.manifest import read_manifest
from tests.conftest import BUNDLES, ROOT, TINY, every_network, silent_weights

SCHEMA = Path(__file__).with_name("metadata_schema.json")
"""Our own reading of what MONAI's schema of bundle metadata asks for: that schema is in no package, and tests use no
network."""
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)


@pytest.fixture
def zoo(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A bundle with weights, alone below a folder of bundles."""
    bundle = tmp_path / "zoo" / trained[0].name
    shutil.copytree(trained[0], bundle, ignore=shutil.ignore_patterns("models", "eval", "network.yaml"))
    silent_weights(trained, bundle / "models" / "model.pt")
    return bundle


def has_dropout(bundle: Path) -> bool:
    return "dropout" in json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]


@every_network
@pytest.mark.parametrize("workflow", ["train", "inference"])
def test_monai_bundle_load(zoo: Path, workflow: str) -> None:
    """Weights, and the network of either config with an argument overridden where it has that argument."""
    from monai.bundle import load

    state = torch.load(zoo / "models" / "model.pt", weights_only=True)
    override = {"dropout": 0.25} if has_dropout(zoo) else {}
    network = load(zoo.name, bundle_dir=zoo.parent, workflow_type=workflow, net_override=override)
    assert isinstance(network, torch.nn.Module)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert {*override.values()} <= {getattr(layer, "p", None) for layer in network.modules()}
    (zoo / "configs" / f"{workflow}.json").unlink()
    weights = load(zoo.name, bundle_dir=zoo.parent, workflow_type=workflow)
    assert weights.keys() == state.keys()


@each_bundle
@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_workflows_have_every_property(bundle: Path, name: str, manifest: Path) -> None:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / f"{name}.json"),
        workflow_type="train" if name == "train" else "inference",
        logging_file=False,
        dataset_dir=str(manifest),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.network_def is not None
    assert workflow.version == "0.2.0"


@each_bundle
def test_verify_net_in_out(bundle: Path) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )


@each_bundle
def test_verify_metadata(bundle: Path, tmp_path: Path) -> None:
    """By our own reading of what MONAI's schema asks for; MONAI fetches no schema where one lies already."""
    from monai.bundle import verify_metadata

    shutil.copy(SCHEMA, tmp_path / "schema.json")
    meta_file = bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(meta_file), filepath=str(tmp_path / "schema.json"))
    metadata = json.loads(meta_file.read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] == "background"
    for part in ("task", "inputs"):
        broken = {**metadata, "network_data_format": {"outputs": {}}} if part == "inputs" else {**metadata}
        broken.pop(part, None)
        (tmp_path / "metadata.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="Failed validating"):
            verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))


@each_bundle
def test_model_zoo_form(bundle: Path) -> None:
    """Files and headings as the model zoo's bundles have them."""
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "configs/train.json", "docs/README.md"):
        assert (bundle / name).is_file(), name
    text = (bundle / "docs" / "README.md").read_text()
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    wanted = ["Model Overview", "Data", "Training configuration", "Input", "Output", "Performance"]
    wanted += ["MONAI Bundle Commands", "Limits", "References", "License"]
    assert [heading for heading in headings if heading in wanted] == wanted
    for command in ("run", "ckpt_export", "onnx_export"):
        assert f"python -m monai.bundle {command}" in text
    assert "Research only, not for clinical use" in " ".join(text.split())
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["name"]


@every_network
@pytest.mark.slow
def test_copied_bundle_trains_and_evaluates_without_the_package(zoo: Path, manifest: Path, tmp_path: Path) -> None:
    """In an empty folder, by MONAI's own command line, where ``pipeline`` cannot be imported."""
    code = "import runpy, sys; sys.modules['pipeline'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    little = [part for key, value in {**TINY, "max_epochs": 1}.items() for part in (f"--{key}", str(value))]
    weights = (zoo / "models" / "model.pt").read_bytes()
    commands = [["train.json", *little], ["evaluate.json", "--image_size", str(TINY["image_size"])]]
    for config, *options in commands:
        command = ["run", "--config_file", str(zoo / "configs" / config), "--dataset_dir", str(manifest), *options]
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert (zoo / "models" / "model.pt").read_bytes() != weights  # trained into its own folder
    assert (zoo / "eval" / "metrics.csv").is_file()


@every_network
def test_monai_label_inference(zoo: Path, manifest: Path) -> None:
    """Label builds each part by its key, swaps arguments of the network, and writes the mask itself."""
    from monai.bundle import ConfigParser
    from monai.inferers import Inferer
    from monai.transforms import Compose, SaveImaged

    metadata = json.loads((zoo / "configs" / "metadata.json").read_text())["network_data_format"]
    assert (next(iter(metadata["inputs"])), next(iter(metadata["outputs"]))) == ("image", "pred")
    assert "background" in metadata["outputs"]["pred"]["channel_def"].values()
    assert len(metadata["outputs"]["pred"]["channel_def"]) == 2
    parser = ConfigParser()
    parser.read_config(zoo / "configs" / "inference.json")
    parser.update({"bundle_root": str(zoo), "device": "cpu", "image_size": TINY["image_size"]})
    if has_dropout(zoo):
        parser["network_def#dropout"] = 0.1
    before, inferer, after = (parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing"))
    assert isinstance(before, Compose)
    assert isinstance(inferer, Inferer)
    assert isinstance(after, Compose)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(zoo / "models" / "model.pt", weights_only=True))
    volume = read_manifest(manifest).sections["validation"][0]
    data = before({"image": str(volume.image)})
    with torch.inference_mode():
        data["pred"] = inferer(inputs=data["image"][None], network=network)[0]
    written = [step for step in after.transforms if isinstance(step, SaveImaged)]
    assert len(written) == 1
    mask = Compose([step for step in after.transforms if step not in written])(data)["pred"]
    assert mask.shape == (1, *nib.load(volume.image).shape[:3])


@every_network
@pytest.mark.parametrize("place", ["first", "last"])
def test_monai_label_training(zoo: Path, manifest: Path, tmp_path: Path, run_config: Any, place: str) -> None:
    """Label brings its own data, epochs and a loader of the weights, and has no manifest."""
    train = json.loads((zoo / "configs" / "train.json").read_text())
    assert all(isinstance(handler, dict) for part in ("train", "validate") for handler in train[part]["handlers"])
    weights, handlers = zoo / "models" / "model.pt", train["train"]["handlers"]
    loader = {"_target_": "CheckpointLoader", "load_path": str(weights), "load_dict": {"model": "$@network"}}
    volumes = read_manifest(manifest).sections["training"]
    items = [{"image": str(volume.image), "label": str(volume.label)} for volume in volumes]
    workflow = run_config(
        zoo / "configs" / "train.json",
        dataset_dir=str(tmp_path / "nowhere"),
        **{**TINY, "max_epochs": 1, "learning_rate": 1e-9, "weight_decay": 0.0},
        **{
            "train#handlers": [loader, *handlers] if place == "first" else [*handlers, loader],
            "train#dataset#data": items[1:],
            "validate#dataset#data": items[:1],
            "train#trainer#max_epochs": 2,
        },
    )
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 2
    trained = torch.load(weights, weights_only=True)
    key = [name for name in trained if name.endswith("bias")][-1]
    assert float(trained[key]) < -900  # the silent weights that the loader brought, not a fresh network's
    record = (zoo / "models" / "training.json").read_text()
    assert str(tmp_path.parent) not in record
    assert (json.loads(record)["training_patients"], json.loads(record)["manifest_sha256"]) == ([], None)


@every_network
def test_monai_deploy_array_path(zoo: Path, manifest: Path, tmp_path: Path, monkeypatch) -> None:
    """Deploy has the exported model alone: configs from within it, an array in, an array out."""
    from monai.bundle import ConfigParser, ckpt_export
    from monai.data import MetaTensor, load_net_with_metadata
    from monai.transforms import Compose, LoadImaged, MapTransform, SaveImaged

    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(zoo / "models" / "model.pt"),
        meta_file=str(zoo / "configs" / "metadata.json"),
        config_file=str(zoo / "configs" / "inference.json"),
        bundle_root=str(zoo),
    )
    network, metadata, extra = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=("inference.json",))
    data_format = metadata["network_data_format"]
    image, pred = data_format["inputs"]["image"], data_format["outputs"]["pred"]
    assert (image["type"], image["num_channels"], pred["type"]) == ("image", 3, "image")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    parser = ConfigParser({**json.loads(extra["inference.json"]), "image_size": TINY["image_size"]})
    before, after = (parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing"))
    assert isinstance(before, Compose)
    assert isinstance(after, Compose)
    before = Compose([step for step in before.transforms if not isinstance(step, LoadImaged)])
    after = Compose([step for step in after.transforms if not isinstance(step, SaveImaged)])
    assert isinstance(before.transforms[0], MapTransform)
    volume = read_manifest(manifest).sections["validation"][0]
    array = np.asarray(nib.load(volume.image).dataobj)
    data = before({"image": MetaTensor(array.astype(np.float32))})
    with torch.inference_mode():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    assert after(data)["pred"].shape == (1, *array.shape[:3])


@every_network
def test_monai_federated_client(zoo: Path, manifest: Path, monkeypatch) -> None:
    """MONAI's own FL client: two rounds, weights out, evaluation; clipping, average and checks of the training work."""
    from monai.fl.client import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems
    from monai.fl.utils.exchange_object import ExchangeObject

    monkeypatch.chdir(zoo.parent)
    given = {"dataset_dir": str(manifest), **TINY, "max_epochs": 2}
    algo = MonaiAlgo(
        bundle_root=zoo.name,
        local_epochs=1,
        train_kwargs=given,
        eval_kwargs=given,
        eval_workflow_name="train",
        send_weight_diff=False,  # a server would add differences up
    )
    algo.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(zoo.parent)})
    weights = torch.load(zoo / "models" / "model.pt", weights_only=True)
    for _ in range(2):
        algo.train(ExchangeObject(weights=weights), {})
        weights = {key: torch.as_tensor(value) for key, value in algo.get_weights({}).weights.items()}
    assert algo.trainer.state.epoch == 2
    averaged = algo.train_workflow.parser.get_parsed_content("ema").ema_model.state_dict()
    learned = [key for key in weights if weights[key].is_floating_point() and "running_" not in key]
    assert all((averaged[key] - weights[key]).abs().max() < 1 for key in learned)
    metrics = algo.evaluate(ExchangeObject(weights=weights), {}).metrics
    assert 0 <= metrics["val_dsc"] <= 1
    wrong = {**given, "loss": {"_target_": "DiceLoss", "sigmoid": False}}
    algo = MonaiAlgo(bundle_root=zoo.name, local_epochs=1, train_kwargs=wrong, eval_kwargs=given)
    algo.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(zoo.parent)})
    with pytest.raises(Exception, match="no sigmoid to them, or two"):
        algo.train(ExchangeObject(weights=weights), {})


def modules_beyond(packages: Iterable[str]) -> list[str]:
    """Installed modules that neither these packages nor what they require brings."""
    from importlib.metadata import packages_distributions, requires

    def canonical(name: str) -> str:
        return name.lower().replace("_", "-")

    installed = {module: {*map(canonical, names)} for module, names in packages_distributions().items()}
    reached: set[str] = set()
    waiting = [*packages]
    while waiting:
        name = canonical(waiting.pop())
        if name not in reached and name in set().union(*installed.values()):
            reached.add(name)
            waiting += [re.split(r"[^\w.-]", text)[0] for text in requires(name) or () if "extra ==" not in text]
    return [module for module, names in installed.items() if not names & reached and module.isidentifier()]


@pytest.mark.slow
@each_bundle
def test_metadata_names_every_package_that_the_bundle_needs(bundle: Path, manifest: Path, tmp_path: Path) -> None:
    """In the versions that are tested; with every other package out of reach, the bundle trains and infers."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    pinned = dict(re.findall(r"^([\w.\-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    named = metadata["required_packages_version"]
    assert {name: pinned[name] for name in named} == named
    core = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    assert {name: pinned[name] for name in core} == {name: metadata[key] for name, key in core.items()}
    blocked = modules_beyond([*named, *core, "fire"])
    assert {"medpy", "pandas", "pytest"} <= {*blocked}
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked}));"
    code += "runpy.run_module('monai.bundle', None, '__main__')"
    (tmp_path / "images").mkdir()
    shutil.copy(read_manifest(manifest).sections["validation"][0].image, tmp_path / "images")
    little = [part for key, value in {**TINY, "max_epochs": 1}.items() for part in (f"--{key}", str(value))]
    size = ["--image_size", str(TINY["image_size"])]
    for name, data, options in (("train", manifest, little), ("inference", tmp_path / "images", size)):
        command = [sys.executable, "-W", "ignore", "-c", code, "run", "--dataset_dir", str(data), *options]
        command += ["--config_file", str(bundle / "configs" / f"{name}.json"), "--ckpt_dir", "model"]
        command += ["--output_dir", "out"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    assert len([*(tmp_path / "out").glob("*_mask.nii.gz")]) == 1
