"""The command that predicts: its pictures, and the files that it does not replace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import predict
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_label
from tests.conftest import BUNDLES, lively_weights


@pytest.fixture(scope="module")
def lively(trained: tuple[Path, Path], manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle folder, folder of weights whose masks hit)."""
    folder = tmp_path_factory.mktemp("lively")
    lively_weights(trained, manifest, folder / "model.pt")
    return trained[0], folder


UNUSED = (BUNDLES[0], Path("no_weights"))
"""A bundle for errors that are reported before any bundle is read."""


def run(lively: tuple[Path, Path], out: Path, *given: Path | str) -> dict[str, dict[str, object]]:
    bundle, weights = lively
    options = ["--bundle", str(bundle), "--weights", str(weights / "model.pt"), "--out", str(out)]
    options += [] if "--figures" in given else ["--no-figures"]
    assert predict.main([*map(str, given), *options]) == 0
    summary = json.loads((out / "predictions.json").read_text())
    return {row["volume"]: row for row in summary["volumes"]}


def test_what_is_there_stays_unless_asked(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    (tmp_path / "x_image.nii.gz").write_bytes(image.read_bytes())
    mask = tmp_path / "out" / "x_mask.nii.gz"
    mask.parent.mkdir()
    mask.write_bytes(b"drawn by hand")
    with pytest.raises(PipelineError, match=r"x_mask.nii.gz: already exists.*--overwrite"):
        run(lively, mask.parent, tmp_path / "x_image.nii.gz")
    assert mask.read_bytes() == b"drawn by hand"
    run(lively, mask.parent, tmp_path / "x_image.nii.gz", "--overwrite", "--probability")
    assert load_label(mask).any()
    shutil.copy(tmp_path / "x_image.nii.gz", tmp_path / "y_image.nii.gz")
    with pytest.raises(PipelineError, match=r"predictions.csv: already exists, with 1 more"):
        run(lively, mask.parent, tmp_path / "y_image.nii.gz")
    run(lively, mask.parent, tmp_path / "x_image.nii.gz", "--overwrite")
    assert not (mask.parent / "x_probability.nii.gz").exists()
    with pytest.raises(PipelineError, match="there is a file where a folder is needed"):
        run(UNUSED, tmp_path / "x_image.nii.gz", tmp_path / "y_image.nii.gz")


def test_figures_of_predictions(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    name = image.name.removesuffix("_image.nii.gz")
    found = run(lively, tmp_path / "out", image, "--figures")
    pictures = list((tmp_path / "out" / "figures" / name).glob("slice_*.png"))
    assert len(pictures) == found[name]["lesion_slices"]
    assert (tmp_path / "out" / "figures" / f"{name}.gif").is_file()
    page = tmp_path / "out" / "predictions.html"
    assert name in page.read_text()
    run(lively, tmp_path / "out", image, "--skip-existing")  # without pictures: those of this mask may stay
    assert not page.exists()
    assert (tmp_path / "out" / "figures" / f"{name}.gif").is_file()
    run(lively, tmp_path / "out", image, "--overwrite", "--tta", "--uncertainty")  # of another mask or map they may not
    assert not list((tmp_path / "out" / "figures").iterdir())
    run(lively, tmp_path / "all", image, "--figures", "--all-slices")
    assert len(list((tmp_path / "all" / "figures" / name).glob("slice_*.png"))) == found[name]["slices"]
    with pytest.raises(PipelineError, match="--all-slices and --no-figures"):
        run(UNUSED, tmp_path / "none", image, "--all-slices")


def test_tables_name_no_folder_of_this_machine(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    run(lively, tmp_path / "out", image.resolve())
    for path in (tmp_path / "out" / "predictions.csv", tmp_path / "out" / "predictions.json"):
        assert str(image.parent) not in path.read_text()


def test_the_three_of_the_package_are_the_default(phantoms: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "basic_unet").mkdir()  # an earlier --out is no bundle
    given = [str(phantoms), "--no-figures", "--device", "cpu", "--json", "-o"]
    assert predict.main([*given, "basic_unet"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document == json.loads((tmp_path / "basic_unet" / "predictions.json").read_text())
    assert [one["name"] for one in document["bundles"]] == ["basic_unet", "attention_unet", "basic_unet_plusplus"]
    assert document["device"] == "cpu"
    assert "slices with lesion" in shown.err
    assert predict.main([*given, "one", "--bundle", "basic_unet", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert [one["name"] for one in json.loads(shown.out)["bundles"]] == ["basic_unet"]
    assert all(line.startswith("warning: ") for line in shown.err.splitlines())


def test_a_device_that_is_not_there_is_reported_before_any_work(phantoms: Path, tmp_path: Path) -> None:
    given = [str(phantoms), "-o", str(tmp_path / "out"), "--device", "cuda:99"]
    with pytest.raises(PipelineError, match="--device cuda:99: this machine has no such device"):
        predict.main(given)
    assert not (tmp_path / "out").exists()
