"""What a volume goes through before and after the network, the same in training and in prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from pipeline.scoring.protocols import largest_component
from pipeline.scripts.transforms import NeighbouringSlicesd, NormalizePercentilesd
from pipeline.scripts.volumes import AFFINE
from tests.conftest import BASIC, BUNDLES
from tests.scripts.conftest import composed

BUNDLE = BASIC


def config_of(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("dtype", ["<u1", "<i2", ">i2", ">f4", "<u2"])
def test_volumes_of_any_number_type_are_loaded(tmp_path: Path, dtype: str) -> None:
    parser = ConfigParser(json.loads((BUNDLE / "configs" / "train.json").read_text()))
    parser["bundle_root"] = str(BUNDLE)
    parser.get_parsed_content("scripts_path")
    values = np.random.default_rng(0).integers(0, 200, (6, 5, 4, 3)).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(values, AFFINE, header), tmp_path / "image.nii.gz")
    seen = Compose(parser.get_parsed_content("image_loading"))({"image": str(tmp_path / "image.nii.gz")})["image"]
    assert np.array_equal(seen.numpy(), np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("of_head", [True, False])
def test_intensities_are_clipped_to_percentiles_and_standardised(of_head: bool) -> None:
    parser = ConfigParser({**config_of(BUNDLE, "inference"), "normalize_head": of_head})
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


@pytest.mark.parametrize("normalize_head", [False, True])
@pytest.mark.parametrize("percentiles", [[1, 99.5], [0, 90]])
def test_training_and_prediction_see_the_same_intensities(percentiles: list[float], normalize_head: bool) -> None:
    """To the bit: training by a class of the scripts, prediction by stock transforms."""
    settings = {"percentiles": percentiles, "normalize_head": normalize_head}
    parser = ConfigParser({**config_of(BUNDLES[0], "inference"), **settings})
    image = np.random.default_rng(0).gamma(2, 30, (3, 12, 11, 10)).astype(np.float32)
    image[1] = 7  # flat
    for kind in (torch.as_tensor, MetaTensor):
        stock = Compose(parser.get_parsed_content("intensity"))({"image": kind(image.copy())})["image"]
        own = NormalizePercentilesd("image", **settings)({"image": kind(image.copy())})["image"]
        assert torch.equal(torch.as_tensor(stock), torch.as_tensor(own))


def test_training_and_prediction_see_the_same_neighbours() -> None:
    """Channels from the lowest slice to the highest, the end slices repeated."""
    parser = ConfigParser({**config_of(BUNDLES[0], "inference"), "around": 2})
    image = torch.arange(4.0) + torch.tensor([0.0, 10, 20])[:, None, None, None] + torch.zeros(3, 6, 5, 4)
    expected = torch.tensor([[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]])
    for kind in (torch.as_tensor, MetaTensor):
        stock = Compose(parser.get_parsed_content("neighbours"))({"image": kind(image)})["image"]
        own = NeighbouringSlicesd("image", 2)({"image": kind(image)})["image"]
        assert torch.equal(torch.as_tensor(stock), torch.as_tensor(own))
        assert stock.shape == (15, 6, 5, 4)
        assert torch.equal(
            torch.as_tensor(stock)[:, 3, 2].T.reshape(4, 5, 3), expected[..., None] + torch.tensor([0.0, 10, 20])
        )


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_box_of_the_head_fills_the_square(bundle: Path) -> None:
    parser = ConfigParser({**config_of(bundle, "inference"), "image_size": 16})
    image = np.zeros((3, 30, 40, 9), dtype=np.float32)
    image[1, 4:20, 10:18, 2:8] = 100
    image[0, 25, 35, 8] = 9  # below a tenth of the maximum: air
    seen = Compose(parser.get_parsed_content("image_spatial"))({"image": MetaTensor(image)})["image"]
    assert seen.shape == (3, 16, 16, 6)
    assert (seen[1] == 100).all()


def test_without_the_crop_all_is_head() -> None:
    image = torch.tensor([[[[0.0, 9, 10, 100]]], [[[0.0, 0, 0, 50]]]])
    for crop, expected in ((True, [False, False, True, True]), (False, [True] * 4)):
        parser = ConfigParser({**config_of(BUNDLES[0], "train"), "crop_to_head": crop})
        assert parser.get_parsed_content("head")(image).any(0).flatten().tolist() == expected


def test_mask_is_the_largest_component_in_three_dimensions(recipe: ConfigParser) -> None:
    probability = torch.zeros(1, 12, 12, 6)
    probability[0, 1:4, 1:4, 0] = 0.9  # 9 voxels, and with the next slice's diagonal neighbour 18
    probability[0, 4:7, 4:7, 1] = 0.6
    probability[0, 8:12, 8:12, 4] = 1.0  # 16 voxels in one slice
    probability[0, 0:3, 9:12, 5] = 0.49
    mask = composed(recipe, "to_mask")({"pred": probability})["pred"][0]
    assert mask.sum() == 18
    assert np.array_equal(mask, largest_component((probability[0] >= 0.5).numpy()))
