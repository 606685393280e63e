"""Random transforms of a batch: image and label move together, intensities vary smoothly, sequences go missing."""

from __future__ import annotations

import math

import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.scripts import augmentation
from tests.scripts.conftest import SIZE, composed


def test_augmentation_moves_image_and_label_together(recipe: ConfigParser) -> None:
    """Image channels are copies of the label, so a gain and an offset must explain each of them exactly."""
    recipe["augmentation"] = recipe["augmentation"][1:]
    recipe["augmentation"][1]["bias_field"] = 0.0
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    blob = torch.exp(-((rows - 12.0) ** 2) / 4 - (columns - 9.0) ** 2 / 20).repeat(200, 1, 1, 1)
    batch = composed(recipe, "augmentation")({"image": blob.repeat(1, 3, 1, 1), "label": blob.clone()})
    gains, offsets, centres, widths, angles = [], [], [], [], []
    for image, label in zip(batch["image"], batch["label"], strict=True):
        assert not torch.isin(label, blob[0]).all()  # interpolated
        moved = label[0]
        explained = torch.stack([moved.flatten(), torch.ones(SIZE * SIZE)], dim=1)
        for channel in image:
            fit = torch.linalg.lstsq(explained, channel.flatten()[:, None]).solution
            assert (explained @ fit - channel.flatten()[:, None]).abs().max() < 0.02
            gains.append(float(fit[0]))
            offsets.append(float(fit[1]))
        weight = moved / moved.sum()
        centre = float((weight * rows).sum()), float((weight * columns).sum())
        centres.append(centre)
        down, right = rows - centre[0], columns - centre[1]
        tilt = (2 * weight * down * right).sum(), (weight * (right**2 - down**2)).sum()
        angles.append(float(torch.atan2(*tilt)) / 2)
        widths.append(float(moved.sum() / blob[0].sum()))
    assert 0.84 < min(gains) < 0.88
    assert 1.12 < max(gains) < 1.16
    assert -0.16 < min(offsets) < -0.12
    assert 0.12 < max(offsets) < 0.16
    assert len({round(gain, 6) for gain in gains[:3]}) == 3  # each channel by itself
    flipped = sum(column > SIZE / 2 for _, column in centres)
    assert 70 < flipped < 130
    assert all(row < SIZE / 2 + 2 for row, _ in centres)  # never upside down
    assert -0.5 < min(angles) < -0.25  # rotated
    assert 0.25 < max(angles) < 0.5
    assert 0.7 < min(widths) < 0.85  # scaled
    assert 1.15 < max(widths) < 1.4


def test_augmentation_shifts_along_both_axes(recipe: ConfigParser) -> None:
    """A disc in the middle, which neither rotation, scale nor flip moves."""
    recipe["augmentation"] = recipe["augmentation"][1:]
    rows, columns = torch.meshgrid(torch.arange(SIZE) - 15.5, torch.arange(SIZE) - 15.5, indexing="ij")
    disc = torch.exp(-(rows**2 + columns**2) / 12).repeat(200, 1, 1, 1)
    moved = composed(recipe, "augmentation")({"image": disc.repeat(1, 3, 1, 1), "label": disc.clone()})["label"][:, 0]
    for axis in (rows, columns):
        shifts = [float((image * axis).sum() / image.sum()) for image in moved]
        assert 1.4 < max(shifts) < 2.4
        assert -2.4 < min(shifts) < -1.4


def test_rotation_keeps_the_shape_of_slices_that_are_not_square(recipe: ConfigParser) -> None:
    """A disc stays a disc: angles are of pixels, not of shares of the sides."""
    recipe["augmentation"] = [{**recipe["augmentation"][1], "scale": 0.0, "translate": 0.0, "rotate": 1.5}]
    rows, columns = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(64) - 31.5, indexing="ij")
    disc = torch.exp(-((rows - 5) ** 2 + columns**2) / 12).repeat(50, 1, 1, 1)
    for moved in composed(recipe, "augmentation")({"image": disc.repeat(1, 3, 1, 1), "label": disc})["label"][:, 0]:
        weight = moved / moved.sum()
        centre = float((weight * rows).sum()), float((weight * columns).sum())
        assert math.hypot(*centre) == pytest.approx(5, abs=0.1)
        assert float((weight * (rows - centre[0]) ** 2).sum()) == pytest.approx(6, abs=0.4)
        assert float((weight * (columns - centre[1]) ** 2).sum()) == pytest.approx(6, abs=0.4)


def test_bias_field_shades_each_channel_smoothly(recipe: ConfigParser) -> None:
    """A field of e^-0.4 to e^0.4 over the slice, and what is black stays black."""
    recipe["augmentation"] = [{**recipe["augmentation"][2], "gain": 0.0, "offset": 0.0}]
    image = torch.full((200, 3, SIZE, SIZE), 4.0)
    image[:, :, ::4, ::4] = -1.0
    shaded = composed(recipe, "augmentation")({"image": image.clone()})["image"]
    assert torch.equal(shaded[:, :, ::4, ::4], image[:, :, ::4, ::4])
    field = ((shaded + 1) / 5).log()[:, :, 1::2, 1::2]
    assert 0.3 < field.max() < 0.6  # bicubic goes a little beyond its points
    assert -0.6 < field.min() < -0.3
    assert max(field.diff(dim=axis).abs().max() for axis in (2, 3)) < 0.25
    assert (field.amax((2, 3)) - field.amin((2, 3))).mean() > 0.5  # within a slice
    assert (field[:, 0] - field[:, 1]).abs().amax((1, 2)).min() > 0.2  # each channel by itself
    assert (field[0] - field[1]).abs().max() > 0.2  # each slice by itself


def test_missing_sequences_are_shown_more_often_than_they_occur(recipe: ConfigParser) -> None:
    recipe["augmentation"] = recipe["augmentation"][:1]
    drop = composed(recipe, "augmentation")
    image = torch.tensor([10.0, 20.0, 30.0])[None, :, None, None].expand(3000, 3, 4, 4)
    seen = [tuple(values.tolist()) for values in drop({"image": image.clone()})["image"][:, :, 0, 0]]
    assert all(values[1] == 20 for values in seen)
    assert {values[0] for values in seen} == {10, 20}
    assert {values[2] for values in seen} == {30, 20}
    share = {kind: seen.count(kind) / len(seen) for kind in set(seen)}
    assert share[20, 20, 20] == pytest.approx(0.15 + 0.85 * 0.10 * 0.05, abs=0.025)
    assert share[10, 20, 20] == pytest.approx(0.85 * 0.10 * 0.95, abs=0.025)
    assert share[20, 20, 30] == pytest.approx(0.85 * 0.90 * 0.05, abs=0.02)


def test_grid_is_that_of_affine_grid() -> None:
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [5, 1, 7, 11], align_corners=False)
    assert torch.allclose(augmentation.grid_of(theta, 7, 11), expected, atol=1e-6)


def test_bicubic_weights_are_those_of_interpolate() -> None:
    points = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    down, across = (augmentation.bicubic_of(3, side, points.device) for side in (7, 11))
    expected = torch.nn.functional.interpolate(points, (7, 11), mode="bicubic")
    assert torch.allclose(down.T @ points @ across, expected, atol=1e-6)
