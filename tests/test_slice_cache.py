"""The cache on disk: the same slices, never those of another file or recipe, made again where damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY

from pipeline.errors import PipelineError
from pipeline.scripts import slices as module
from pipeline.scripts.files import checksum_path

BUNDLE = ROOT / "bundles" / "basic_unet"


@pytest.fixture
def data(manifest: Path, tmp_path: Path) -> Path:
    """A copy of the manifest's folder, to be changed."""
    return shutil.copytree(manifest, tmp_path / "data")


def slices(data: Path, cache: Path | None, **overrides: Any) -> Any:
    """The training slices as the bundle's config builds them."""
    from monai.bundle import ConfigWorkflow

    folders = {"dataset_dir": str(data), "cache_dir": str(cache) if cache else None}
    workflow = ConfigWorkflow(
        str(BUNDLE / "configs" / "train.json"), logging_file=False, **{**TINY, **folders, **overrides}
    )
    workflow.initialize()
    return workflow.parser.get_parsed_content("train#slices")


def same(one: Any, other: Any) -> bool:
    numbers = list(range(len(one)))
    return len(one) == len(other) and all(torch.equal(one[numbers][key], other[numbers][key]) for key in one[[0]])


def entries(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("*.pt")}


def test_cached_slices_are_the_slices(data: Path, tmp_path: Path) -> None:
    plain = slices(data, None)
    first = slices(data, tmp_path / "cache")
    before = entries(tmp_path / "cache")
    assert len(before) == 5
    again = slices(data, tmp_path / "cache")
    assert entries(tmp_path / "cache") == before
    assert same(plain, first)
    assert same(plain, again)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".pt", ".sha256"}


def test_training_loads_what_prediction_loads(data: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    parser = ConfigParser(json.loads((BUNDLE / "configs" / "train.json").read_text()))
    parser["bundle_root"] = str(BUNDLE)
    parser.get_parsed_content("scripts_path")
    image = data / json.loads((data / "manifest.json").read_text())["training"][0]["image"]
    train, predict = (
        Compose(parser.get_parsed_content(key))({"image": str(image)})["image"]
        for key in ("train#image_loading", "image_loading")
    )
    assert train.dtype == predict.dtype == torch.uint8
    assert torch.equal(train, predict)
    assert torch.equal(train.affine, predict.affine)
    assert train.meta["filename_or_obj"] == predict.meta["filename_or_obj"]


@pytest.mark.parametrize("dtype", ["<u1", "<i2", ">i2", ">f4", "<u2"])
def test_training_loads_volumes_of_any_number_type(tmp_path: Path, dtype: str) -> None:
    import nibabel as nib
    import numpy as np
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    parser = ConfigParser(json.loads((BUNDLE / "configs" / "train.json").read_text()))
    parser["bundle_root"] = str(BUNDLE)
    parser.get_parsed_content("scripts_path")
    values = np.random.default_rng(0).integers(0, 200, (6, 5, 4, 3)).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(values, np.eye(4), header), tmp_path / "image.nii.gz")
    seen = Compose(parser.get_parsed_content("train#image_loading"))({"image": str(tmp_path / "image.nii.gz")})["image"]
    assert np.array_equal(seen.numpy(), np.moveaxis(values, -1, 0))


def test_a_changed_file_is_not_served_an_old_entry(data: Path, tmp_path: Path) -> None:
    slices(data, tmp_path / "cache")
    sections = json.loads((data / "manifest.json").read_text())
    for kind in ("label", "image"):  # one after the other: each alone has to be noticed
        one, two = (data / item[kind] for item in sections["training"][:2])
        times = one.stat()
        shutil.copy(two, one)
        os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert same(slices(data, tmp_path / "cache"), slices(data, None))


@pytest.mark.parametrize(
    "overrides",
    [
        {"image_size": 48},
        {"percentiles": [0, 90]},
        {"intensity#0#percentiles": [5, 95]},
        {"intensity#0#percentiles": "$@own_percentiles", "own_percentiles": "$[0, 90]"},
        {"head": "$lambda image: image >= 0"},
        {"train#spatial#0#margin": 3},
        {
            "train#preprocessing#transforms": "$@train#image_loading + @label_loading + "
            "@train#spatial + @train#to_slices"
        },
    ],
    ids=" ".join,
)
def test_a_changed_recipe_is_not_served_an_old_entry(data: Path, tmp_path: Path, overrides: dict[str, Any]) -> None:
    before = {**overrides, "own_percentiles": "$[10, 80]"} if "own_percentiles" in overrides else {}
    slices(data, tmp_path / "cache", **before)
    assert same(slices(data, tmp_path / "cache", **overrides), slices(data, None, **overrides))
    assert not same(slices(data, None, **before), slices(data, None, **overrides))


def test_the_recipe_holds_versions_and_code() -> None:
    from monai.bundle import ConfigParser

    parser = ConfigParser({"a": "$@b + 1", "b": "@c#0", "c": [1, 2], "d": 3, "scripts_path": "$1/0"})
    parts, versions, code = module.recipe_of(parser, "a")
    assert parts == {"a": "$@b + 1", "b": "@c#0", "c::0": 1}
    assert set(versions) == {"python", "torch", "monai", "ignite", "numpy"}
    assert set(code) == {path.name for path in (ROOT / "pipeline" / "scripts").glob("*.py")}
    parser["c#0"] = 5
    assert module.recipe_of(parser, "a")[0] != parts


def test_without_a_workflow_a_cache_is_refused(tmp_path: Path) -> None:
    dataset: Any = object()
    assert module.cached_volumes(dataset, None, []) is dataset
    with pytest.raises(PipelineError, match="Run the config by a ConfigWorkflow"):
        module.cached_volumes(dataset, str(tmp_path), [])


def test_entries_can_be_read_by_whoever_the_folder_is_shared_with(data: Path, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        slices(data, tmp_path / "cache")
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()} == {0o644}


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"image": str(tmp_path / "a"), "label": str(tmp_path / "a")}
    (tmp_path / "a").touch()
    cache = module.SliceCache([item], lambda item: {"image": torch.zeros(3)}, tmp_path / "cache", ["recipe"])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PipelineError, match="No space"):
            cache[0]
    assert not list((tmp_path / "cache").iterdir())
    assert torch.equal(cache[0]["image"], torch.zeros(3))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "truncated": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "no hash"])
def test_a_damaged_entry_is_made_again(data: Path, tmp_path: Path, how: str) -> None:
    plain = slices(data, tmp_path / "cache")
    entry = min((tmp_path / "cache").glob("*.pt"))
    whole = entry.read_bytes()
    if how == "no hash":
        checksum_path(entry).unlink()
    else:
        damage(entry, how)
    with pytest.warns(UserWarning, match="damaged, made again"):
        again = slices(data, tmp_path / "cache")
    assert same(again, slices(data, None))
    assert len(plain) == len(again)
    assert len(entry.read_bytes()) == len(whole)
