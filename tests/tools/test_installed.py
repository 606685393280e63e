"""The wheel holds what the commands need: bundles, weights and their licence, recipes. It works by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from pipeline.scripts.files import sha256_bytes, sha256_file
from tests.conftest import BUNDLES, ROOT
from tools.installed import LICENCE, build_wheel, flair_and_truth


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_the_folders_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("pipeline", "recipes", "experiments"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        place = Path() if folder == "pipeline" else Path("pipeline")
        assert [path for path in files if (place / path.relative_to(ROOT)).as_posix() not in names] == []
    for bundle in BUNDLES:
        for path in [*bundle.glob("*/*.*"), bundle / "LICENSE"]:
            name = (Path("pipeline") / path.relative_to(ROOT)).as_posix()
            kept = path.parent.name != "models" or path.name in ("model.pt", "training.json", "training.json.sha256")
            kept = kept and path.parent.name != "eval"
            assert (name in names) == kept, name
            assert not kept or sha256_bytes(wheel.read(name)) == sha256_file(path)
    assert not [name for name in names if "template/" in name or "__pycache__" in name]


def test_the_wheel_names_the_licence_of_the_weights(wheel: zipfile.ZipFile) -> None:
    folder = next(name for name in wheel.namelist() if name.endswith("/METADATA")).rpartition("/")[0]
    metadata = BytesParser().parsebytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["License-Expression"] == f"Apache-2.0 AND {LICENCE}"
    assert metadata.get_all("License-File") == ["LICENSE", "bundles/WEIGHTS_LICENSE.md"]
    text = wheel.read(f"{folder}/licenses/bundles/WEIGHTS_LICENSE.md").decode()
    assert text == wheel.read("pipeline/bundles/WEIGHTS_LICENSE.md").decode()
    assert "non-commercial research only" in text
    assert b"lgg-flair = pipeline.__main__:run" in wheel.read(f"{folder}/entry_points.txt")


@pytest.mark.slow
def test_it_works_from_an_empty_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """As installed: compiled, in a folder of its own, the checkout on no path."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    wheel.extractall(site)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(site)], check=True)
    assert list(site.glob("pipeline/bundles/*/scripts/__pycache__/*.pyc"))
    flair, _ = flair_and_truth(tmp_path)

    def run(*given: str) -> str:
        command = [sys.executable, "-m", "pipeline", *given]
        clean = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = json.loads(run("predict", str(flair), "-o", "out", "--json"))
    assert [bundle["name"] for bundle in found["bundles"]] == ["basic_unet", "attention_unet", "basic_unet_plusplus"]
    assert (empty / "out" / "flair_mask.nii.gz").is_file()
    assert "basic_unet_v0.2.0.zip" in run("pack", "basic_unet", "--out", "packed")
    given = ["--manifest", str(tmp_path / "manifest"), "--bundle", "basic_unet", "--split", "test"]
    assert "mean DSC" in run("evaluate", *given, "-o", "scores")
