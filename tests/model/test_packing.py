"""The zip of a bundle is reproducible, complete and small, and works without the package ``pipeline``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from pipeline import pack
from pipeline.errors import PipelineError
from pipeline.model import packing
from pipeline.model.packing import pack_bundle
from pipeline.scripts.files import sha256_file
from tests.conftest import BUNDLES, every_network, silent_weights


@pytest.fixture
def ready(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the bundle with weights, and with files that do not belong in a zip."""
    bundle = tmp_path / "source" / trained[0].name
    shutil.copytree(trained[0], bundle, ignore=shutil.ignore_patterns("models", "eval"))
    silent_weights(trained, bundle / "models" / "model.pt")
    record = json.loads((bundle / "models" / "training.json").read_text())
    record["prediction"]["image_size"] = 192  # the value in the config; the tests train with a smaller one
    (bundle / "models" / "training.json").write_text(json.dumps(record))
    metadata = bundle / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**content, "weights": {"sha256": sha256_file(bundle / "models" / "model.pt")}}))
    (bundle / "models" / "checkpoint_1.pt").touch()
    (bundle / "eval").mkdir()
    (bundle / "eval" / "events").touch()
    return bundle


def test_packing_twice_gives_the_same_bytes(ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([str(ready), "--out", str(tmp_path / "one")]) == 0
    for path in ready.rglob("*"):
        os.utime(path, (1e9, 1e9))
        if path.is_file():
            path.chmod(0o600)
    assert pack.main([str(ready), "--out", str(tmp_path / "two")]) == 0
    first, second = ((tmp_path / name / f"{ready.name}_v0.2.0.zip").read_bytes() for name in ("one", "two"))
    assert first == second
    assert len(first) < packing.MAX_ZIP_BYTES
    digest = hashlib.sha256(first).hexdigest()
    assert digest in capsys.readouterr().out
    assert (tmp_path / "one" / f"{ready.name}_v0.2.0.zip.sha256").read_text().split()[0] == digest


@every_network
def test_zip_holds_the_bundle_and_nothing_else(ready: Path, tmp_path: Path) -> None:
    assert pack.main([str(ready), "--out", str(tmp_path)]) == 0
    with zipfile.ZipFile(tmp_path / f"{ready.name}_v0.2.0.zip") as archive:
        names = archive.namelist()
        code = [archive.read(name) for name in names if name.endswith((".json", ".py"))]
    assert {name.split("/")[0] for name in names} == {ready.name}
    inside = {name.split("/", 1)[1] for name in names}
    configs = {f"configs/{name}.json" for name in ("train", "evaluate", "inference", "multi_gpu_train", "metadata")}
    scripts = {path.relative_to(ready).as_posix() for path in ready.glob("scripts/*.py")}
    models = {"models/model.pt", "models/training.json"}
    docs = {"docs/README.md", "docs/WEIGHTS_LICENSE.md"}
    assert inside == {"LICENSE", "configs/logging.conf"} | docs | configs | scripts | models
    assert not any(word in text for text in code for word in (b"import pipeline", b"from pipeline"))


def test_incomplete_or_wrong_bundles_are_not_packed(ready: Path, tmp_path: Path, monkeypatch) -> None:
    record = json.loads((ready / "models" / "training.json").read_text())
    monkeypatch.setattr(packing, "MAX_ZIP_BYTES", 1000)
    with pytest.raises(PipelineError, match="bytes packed"):
        pack_bundle(ready, tmp_path / "out")
    monkeypatch.undo()
    record["prediction"]["image_size"] = 96
    (ready / "models" / "training.json").write_text(json.dumps(record))
    with pytest.raises(PipelineError, match="trained with another image_size"):
        pack_bundle(ready, tmp_path / "out")
    record["prediction"]["image_size"] = 192
    (ready / "models" / "training.json").write_text(json.dumps(record))
    metadata = ready / "configs" / "metadata.json"
    content = metadata.read_text()
    metadata.write_text(json.dumps({**json.loads(content), "weights": {"sha256": "0" * 64}}))
    with pytest.raises(PipelineError, match=r"metadata\.json names other weights.*, or remove it"):
        pack_bundle(ready, tmp_path / "out")
    metadata.write_text(json.dumps({**json.loads(content), "version": "1/../../../escaped"}))
    with pytest.raises(PipelineError, match=r"metadata\.json: version '1/\.\./.*expected letters"):
        pack_bundle(ready, tmp_path / "out")
    metadata.write_text(content)
    record["weights"] = {"model.pt": "0"}
    (ready / "models" / "training.json").write_text(json.dumps(record))
    with pytest.raises(PipelineError, match="belongs to other weights"):
        pack_bundle(ready, tmp_path / "out")
    (ready / "models" / "model.pt").unlink()
    with pytest.raises(PipelineError, match=r"found no models/model\.pt"):
        pack_bundle(ready, tmp_path / "out")
    monkeypatch.chdir(BUNDLES[0].parent.parent)
    with pytest.raises(PipelineError, match="known: attention_unet, basic_unet"):
        pack_bundle("no_such_bundle", tmp_path / "out")
    assert not (tmp_path / "out").exists()
