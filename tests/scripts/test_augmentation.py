"""Random transforms of a batch: image and label move together, intensities vary smoothly, sequences go missing."""

from __future__ import annotations

import math
from unittest import mock

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
    gains, offsets, centers, widths, angles = [], [], [], [], []
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
        center = float((weight * rows).sum()), float((weight * columns).sum())
        centers.append(center)
        down, right = rows - center[0], columns - center[1]
        tilt = (2 * weight * down * right).sum(), (weight * (right**2 - down**2)).sum()
        angles.append(float(torch.atan2(*tilt)) / 2)
        widths.append(float(moved.sum() / blob[0].sum()))
    assert 0.84 < min(gains) < 0.88
    assert 1.12 < max(gains) < 1.16
    assert -0.16 < min(offsets) < -0.12
    assert 0.12 < max(offsets) < 0.16
    assert len({round(gain, 6) for gain in gains[:3]}) == 3  # each channel by itself
    flipped = sum(column > SIZE / 2 for _, column in centers)
    assert 70 < flipped < 130
    assert all(row < SIZE / 2 + 2 for row, _ in centers)  # never upside down
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
    recipe["augmentation"] = [
        {**recipe["augmentation"][1], "scale_range": 0.0, "translate_range": 0.0, "rotate_range": 1.5}
    ]
    rows, columns = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(64) - 31.5, indexing="ij")
    disc = torch.exp(-((rows - 5) ** 2 + columns**2) / 12).repeat(50, 1, 1, 1)
    for moved in composed(recipe, "augmentation")({"image": disc.repeat(1, 3, 1, 1), "label": disc})["label"][:, 0]:
        weight = moved / moved.sum()
        center = float((weight * rows).sum()), float((weight * columns).sum())
        assert math.hypot(*center) == pytest.approx(5, abs=0.1)
        assert float((weight * (rows - center[0]) ** 2).sum()) == pytest.approx(6, abs=0.4)
        assert float((weight * (columns - center[1]) ** 2).sum()) == pytest.approx(6, abs=0.4)


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


def stripes(count: int, slices: int = 1) -> torch.Tensor:
    """A batch (count, 3 * slices, SIZE, SIZE): a ramp of 0 to 1 along the columns, other by sequence and by slice."""
    ramp = torch.linspace(0, 1, SIZE).expand(count, 3 * slices, SIZE, SIZE).clone()
    return ramp.mul_(1 + torch.arange(3.0).repeat(slices)[:, None, None])


@pytest.mark.parametrize(
    "transform",
    [
        augmentation.RandBatchIntensityd("image", gain=0.2, offset=0.2, bias_field=0.4),
        augmentation.RandBatchAdjustContrastd("image", gamma=0.4, prob=1.0),
    ],
    ids=["intensity", "contrast"],
)
def test_neighbouring_slices_change_alike(transform: augmentation.MapTransform) -> None:
    """What differs from slice to slice in an image is anatomy; a field or a contrast is one for all of them."""
    one = stripes(20)
    changed = transform({"image": torch.cat([one, one, one], dim=1)})["image"].unflatten(1, (3, 3))
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert (changed[:, 0] - one).abs().amax((2, 3)).min() > 1e-4
    shares = (changed[:, 0] / one)[..., 1:]
    assert (shares[:, 0] - shares[:, 1]).abs().amax((1, 2)).min() > 1e-4  # each sequence by itself


def test_a_sequence_is_missing_in_all_neighbouring_slices() -> None:
    image = torch.arange(9.0)[None, :, None, None].expand(200, 9, 2, 2).clone()
    drop = augmentation.RandMissingSequenced("image", both=0.5)
    seen = {tuple(values.tolist()) for values in drop({"image": image})["image"][:, :, 0, 0]}
    assert seen == {(0, 1, 2, 3, 4, 5, 6, 7, 8), (1, 1, 1, 4, 4, 4, 7, 7, 7)}


def test_contrast_keeps_the_darkest_and_the_brightest() -> None:
    image = stripes(300) - 0.5
    changed = augmentation.RandBatchAdjustContrastd("image", gamma=0.4, prob=0.5)({"image": image.clone()})["image"]
    assert torch.allclose(changed.amin((2, 3)), image.amin((2, 3)), atol=1e-6)
    assert torch.allclose(changed.amax((2, 3)), image.amax((2, 3)), atol=1e-6)
    middle = (changed[:, 0, 0, SIZE // 2] + 0.5).log() / (image[:, 0, 0, SIZE // 2] + 0.5).log()
    assert ((middle - 1).abs() < 1e-4).float().mean() == pytest.approx(0.5, abs=0.1)
    assert math.exp(-0.4) - 0.01 < middle.min() < math.exp(-0.35)
    assert math.exp(0.35) < middle.max() < math.exp(0.4) + 0.01


def test_low_resolution_blurs_some_slices() -> None:
    image = torch.rand(200, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    blur = augmentation.RandBatchSimulateLowResolutiond("image", least=0.5, prob=0.3)
    torch.manual_seed(0)
    changed = blur({"image": image.clone()})["image"]
    touched = (changed != image).flatten(1).any(1)
    assert touched.float().mean() == pytest.approx(0.3, abs=0.1)
    assert changed[touched].std() < 0.9 * image[touched].std()
    assert changed.mean() == pytest.approx(float(image.mean()), abs=0.01)
    smooth = stripes(20)
    assert torch.allclose(blur({"image": smooth.clone()})["image"], smooth, atol=0.1)


@pytest.mark.parametrize("least", [0.505, 0.53, 0.7, 0.9])
def test_low_resolution_does_not_shift_a_slice_against_its_label(least: float) -> None:
    """A ramp of the columns tells where each pixel came from."""
    ramp = torch.arange(192.0).expand(1, 1, 192, 192).clone()
    blur = augmentation.RandBatchSimulateLowResolutiond("image", least=least, prob=1.0)
    with mock.patch.object(torch, "rand", torch.zeros):  # the smallest share, and every slice
        blurred = blur({"image": ramp.clone()})["image"]
    assert (blurred - ramp)[..., 8:-8, 8:-8].abs().max() < 0.1


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    image = torch.zeros(2000, 3, SIZE, SIZE)
    deviation = augmentation.RandBatchGaussianNoised("image", std=0.2, prob=0.5)({"image": image})["image"].std(
        (1, 2, 3)
    )
    assert (deviation > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert 0.19 < deviation.max() < 0.21
    assert deviation[deviation > 0].mean() == pytest.approx(0.1, abs=0.01)


def test_bending_and_zoom_move_image_and_label_together() -> None:
    """A ramp of the columns tells where each pixel came from."""
    ramp = torch.linspace(-1, 1, SIZE).expand(200, 1, SIZE, SIZE).clone()
    move = augmentation.RandBatchAffined(["image", "label"], elastic=0.1, padding_mode=("border", "border"))
    batch = move({"image": ramp.repeat(1, 3, 1, 1), "label": ramp.clone()})
    assert all(torch.equal(batch["image"][:, channel], batch["label"][:, 0]) for channel in range(3))
    shift = (batch["label"] - ramp)[:, 0, :, 4:-4]
    bent = shift.abs().amax((1, 2)) > 1e-4
    assert bent.float().mean() == pytest.approx(0.5, abs=0.12)
    assert 0.08 < shift.abs().max() < 0.15
    assert shift[bent].std((1, 2)).mean() > 0.02  # not one shift for all
    zoom = augmentation.RandBatchAffined(["label"], zoom_range=0.2, padding_mode=("border",))
    slope = zoom({"label": ramp.clone()})["label"][:, 0, SIZE // 2].diff(dim=-1)[:, SIZE // 2] * (SIZE - 1) / 2
    assert math.exp(-0.2) - 0.01 < slope.min() < math.exp(-0.17)
    assert math.exp(0.17) < slope.max() < math.exp(0.2) + 0.01
