"""Slices of training volumes: drawn by lesion area, kept in 8 bits, and cached on disk without ever being outdated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.errors import PipelineError
from pipeline.scripts.files import checksum_path
from pipeline.scripts.slices import SliceCache, cached_volumes, recipe_of
from tests.conftest import BASIC, ROOT, TINY
from tests.scripts.conftest import SIZE, composed

BUNDLE = BASIC


def test_nine_slices_of_ten_are_drawn_by_lesion_area(recipe: ConfigParser) -> None:
    """Slice 2 holds three quarters of the lesion, slice 7 a quarter, eight slices none."""
    label = torch.zeros(1, SIZE, SIZE, 10)
    label[0, 8:20, 8:20, 2] = 1
    label[0, 8:14, 8:16, 7] = 1
    image = torch.arange(10.0).expand(3, SIZE, SIZE, 10)
    volume = composed(recipe, "train#to_slices")({"image": image, "label": label})
    healthy = composed(recipe, "train#to_slices")({"image": image + 10, "label": torch.zeros_like(label)})
    recipe["train#slices#volumes"] = [volume, healthy]
    recipe["steps_per_epoch"], recipe["batch_size"] = 100, 20
    torch.manual_seed(0)
    drawn = []
    for batch in recipe.get_parsed_content("train#dataloader"):
        assert batch["image"].shape == (20, 3, SIZE, SIZE)
        assert batch["label"].shape == (20, 1, SIZE, SIZE)
        for seen, truth in zip(batch["image"], batch["label"], strict=True):
            number = round(float(seen[0, 0, 0]))
            assert torch.allclose(seen, torch.full_like(seen, number), atol=0.03)
            assert torch.equal(truth, label[..., number] if number < 10 else torch.zeros_like(truth))
            drawn.append(number)
    assert len(drawn) == 2000
    share = {z: drawn.count(z) / len(drawn) for z in range(20)}
    assert sum(share[z] for z in range(10)) == pytest.approx(0.5, abs=0.04)  # every volume alike
    assert share[2] == pytest.approx(0.5 * (0.9 * 0.75 + 0.01), abs=0.03)
    assert share[7] == pytest.approx(0.5 * (0.9 * 0.25 + 0.01), abs=0.03)
    assert 0.03 < 0.5 - share[2] - share[7] < 0.06
    assert all(share[z] == pytest.approx(0.05, abs=0.02) for z in range(10, 20))
    assert len(set(drawn)) == 20


def test_slices_of_8_bits_are_what_was_preprocessed(recipe: ConfigParser) -> None:
    """To half a level of each channel's own range; a flat channel stays what it is."""
    image = (
        torch.randn(3, SIZE, SIZE, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 9, 0])[:, None, None, None]
        + torch.tensor([0.0, -3, 7])[:, None, None, None]
    )
    label = torch.rand(1, SIZE, SIZE, 5, generator=torch.Generator().manual_seed(1))
    to_slices = composed(recipe, "train#to_slices")
    recipe["train#slices#volumes"] = [to_slices({"image": image, "label": label})]
    slices = recipe.get_parsed_content("train#slices")
    assert {part["image"].dtype for part in slices.volumes} == {torch.uint8}
    batch = slices[[4, 0, 1, 2, 3]]
    for found, wanted in ((batch["image"], image), (batch["label"], label)):
        expected = wanted.permute(3, 0, 1, 2)[[4, 0, 1, 2, 3]]
        ranges = expected.amax((0, 2, 3)) - expected.amin((0, 2, 3))
        assert ((found - expected).abs().amax((0, 2, 3)) <= ranges / 509).all()
    with pytest.raises(Exception, match="a volume: the preprocessed image holds NaN or Inf"):
        to_slices.transforms[0]({"image": image / 0, "label": label})


def test_neighbouring_slices_are_channels(recipe: ConfigParser) -> None:
    """From the lowest to the highest, the end slices repeated."""
    image = torch.arange(4.0) + torch.tensor([0.0, 10, 20])[:, None, None, None] + torch.zeros(3, SIZE, SIZE, 4)
    recipe["around"] = 2
    recipe["train#slices#volumes"] = [
        composed(recipe, "train#to_slices")({"image": image, "label": torch.zeros(1, SIZE, SIZE, 4)})
    ]
    batch = recipe.get_parsed_content("train#slices")[[0, 2]]
    expected = [
        [0, 10, 20] * 2 + [0, 10, 20, 1, 11, 21, 2, 12, 22],
        [0, 10, 20, 1, 11, 21, 2, 12, 22] + [3, 13, 23] * 2,
    ]
    assert torch.allclose(batch["image"][:, :, 0, 0], torch.tensor(expected, dtype=torch.float32), atol=0.01)
    assert batch["image"].shape == (2, 15, SIZE, SIZE)
    assert batch["label"].shape == (2, 1, SIZE, SIZE)


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
        {"train#preprocessing#transforms": "$@image_loading + @label_loading + @train#spatial + @train#to_slices"},
    ],
    ids=" ".join,
)
def test_a_changed_recipe_is_not_served_an_old_entry(data: Path, tmp_path: Path, overrides: dict[str, Any]) -> None:
    before = {**overrides, "own_percentiles": "$[10, 80]"} if "own_percentiles" in overrides else {}
    slices(data, tmp_path / "cache", **before)
    assert same(slices(data, tmp_path / "cache", **overrides), slices(data, None, **overrides))
    assert not same(slices(data, None, **before), slices(data, None, **overrides))


def test_the_recipe_holds_versions_and_code() -> None:
    parser = ConfigParser({"a": "$@b + 1", "b": "@c#0", "c": [1, 2], "d": 3, "scripts_path": "$1/0"})
    parts, versions, code = recipe_of(parser, "a")
    assert parts == {"a": "$@b + 1", "b": "@c#0", "c::0": 1}
    assert set(versions) == {"python", "torch", "monai", "ignite", "numpy"}
    assert set(code) == {path.name for path in (ROOT / "pipeline" / "scripts").glob("*.py")}
    parser["c#0"] = 5
    assert recipe_of(parser, "a")[0] != parts


def test_without_a_workflow_a_cache_is_refused(tmp_path: Path) -> None:
    dataset: Any = object()
    assert cached_volumes(dataset, None, []) is dataset
    with pytest.raises(PipelineError, match="Run the config by MONAI's ConfigWorkflow"):
        cached_volumes(dataset, str(tmp_path), [])


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
    cache = SliceCache([item], lambda item: {"image": torch.zeros(3)}, tmp_path / "cache", ["recipe"])

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
