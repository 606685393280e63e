"""A bundle is loaded with its own scripts and weights that fit, or refused with a message that says why."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.errors import PipelineError
from pipeline.model.bundle import DEFAULT_BUNDLES, config_of, device_of, load_bundle, load_bundles, versions
from pipeline.model.predictor import Predictor
from tests.conftest import BASIC, ROOT, every_network, last_bias


def test_a_backend_of_another_package_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the module onnxruntime of the package onnxruntime-gpu."""
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.2.3"))
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr("pipeline.model.bundle.version", version)
    assert versions("onnx")["onnxruntime"] == "1.2.3"


def test_bundle_and_weights_come_in_pairs(trained, tmp_path: Path) -> None:
    bundle, weights = trained[0], trained[1] / "model.pt"
    with pytest.raises(PipelineError, match="expected one each"):
        load_bundles([bundle, bundle], [weights])
    with pytest.raises(PipelineError, match=r"configs/inference\.json"):
        load_bundles([tmp_path], [weights])


def test_a_broken_config_is_named(trained, tmp_path: Path) -> None:
    bundle, out = trained
    (tmp_path / "configs").mkdir()
    shutil.copy(out / "model.pt", tmp_path)
    config = tmp_path / "configs" / "inference.json"
    whole = (bundle / "configs" / "inference.json").read_text()
    for text, message in (
        (whole[:100], "no readable JSON"),
        ("{}", "device, network"),
        (json.dumps({**json.loads(whole), "network_def": {"_target_": "NoSuchNetwork"}}), "'network' cannot be built"),
    ):
        config.write_text(text)
        with pytest.raises(PipelineError, match=message):
            load_bundle(tmp_path, tmp_path / "model.pt", trust=True)


@every_network
def test_case_33_weights_of_another_architecture_name_the_keys(trained, tmp_path: Path) -> None:
    bundle, out = trained
    state = torch.load(out / "model.pt", weights_only=True)
    key = last_bias(state)
    state["stranger"] = state.pop(key)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(PipelineError, match=rf"Missing key.*{re.escape(key)}.*Unexpected key.*stranger"):
        load_bundle(bundle, tmp_path / "model.pt")
    torch.save({"net": state, "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(PipelineError, match="no plain state dict"):
        load_bundle(bundle, tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes((out / "model.pt").read_bytes()[:1000])
    with pytest.raises(PipelineError, match="no readable weights"):
        load_bundle(bundle, tmp_path / "model.pt")
    (tmp_path / "model.pt").unlink()
    with pytest.raises(PipelineError, match="no weights"):
        load_bundle(bundle, tmp_path / "model.pt")


def test_two_bundles_with_scripts_load_together(tmp_path: Path, monkeypatch) -> None:
    """A bundle uses its own ``scripts``, even if another bundle's or a user's package ``scripts`` is imported."""
    (tmp_path / "own" / "scripts").mkdir(parents=True)
    (tmp_path / "own" / "scripts" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    found = []
    for name, reduction in (("one", "sum"), ("two", "mean")):
        bundle = tmp_path / name
        shutil.copytree(ROOT / "bundles" / "basic_unet_plusplus", bundle, ignore=shutil.ignore_patterns("models"))
        script = bundle / "scripts" / "networks.py"
        script.write_text(script.read_text().replace(".sum(dim=0)", f".{reduction}(dim=0)"))
        torch.manual_seed(0)
        parser = ConfigParser({**json.loads((bundle / "configs" / "inference.json").read_text())})
        parser["bundle_root"] = str(bundle)
        torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
        found.append(load_bundle(bundle, tmp_path / "model.pt", trust=True).network)
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        summed, averaged = (network(image) for network in found)
    assert torch.allclose(summed, 4 * averaged, atol=1e-5)


def test_a_bundle_is_known_by_its_name_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in DEFAULT_BUNDLES] == ["basic_unet", "attention_unet", "basic_unet_plusplus"]
    assert all(path.is_dir() for path in DEFAULT_BUNDLES)
    assert load_bundle("basic_unet").weights_sha256 == load_bundle(BASIC).weights_sha256
    assert config_of("basic_unet") == DEFAULT_BUNDLES[0] / "configs" / "inference.json"
    with pytest.raises(PipelineError, match=r"nothing: neither a path nor one of the bundles \(known: attention_"):
        load_bundle("nothing")
    with pytest.raises(PipelineError, match=r"found no configs/inference.json. Give a bundle's name"):
        load_bundle(tmp_path)


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [device_of(name) for name in (None, "cpu", "cuda", "cuda:1")] == [None, "cpu", "cuda:0", "cuda:1"]
    for name in ("cuda:2", "mps", "gpu", "cuda:", "cpu'); print('"):
        with pytest.raises(PipelineError, match=r"no such device \(found: cpu, cuda:0, cuda:1\)"):
            device_of(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("mps") == "mps"
    with pytest.raises(PipelineError, match=r"--device cuda: this machine has no such device \(found: cpu, mps\)"):
        load_bundle("basic_unet", device="cuda")
    assert device_of(None, "onnx") == device_of("cpu", "onnx") == "cpu"
    with pytest.raises(PipelineError, match="--device mps: --backend onnx runs on the CPU"):
        device_of("mps", "onnx")


def test_the_device_is_the_one_asked_for() -> None:
    bundle = load_bundle("basic_unet", device="cpu")
    assert bundle.device == torch.device("cpu")
    assert {parameter.device.type for parameter in bundle.network.parameters()} == {"cpu"}


def test_a_program_keeps_its_own_package_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("__init__", "networks", "late"):
        (tmp_path / "scripts" / f"{name}.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    networks = importlib.import_module("scripts.networks")
    found = load_bundle("basic_unet_plusplus")
    assert sys.modules["scripts.networks"] is networks
    assert importlib.import_module("scripts.late").__file__ == str(tmp_path / "scripts" / "late.py")
    assert Predictor(found).predict(np.ones((32, 32, 4), np.float32)).probability.shape == (32, 32, 4)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
