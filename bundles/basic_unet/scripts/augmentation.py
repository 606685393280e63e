"""Random transforms of a whole batch of slices, on the device of the batch.

Each slice draws its own numbers from torch's global generator. A few calls transform all slices of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch.nn.functional import grid_sample, interpolate

Batch = dict[Any, torch.Tensor]
FIELD_POINTS = 3  # control points of a bias field along each side of a slice
ELASTIC_POINTS = 6  # control points of an elastic displacement along each side of a slice


def uniform(*shape: int, like: torch.Tensor) -> torch.Tensor:
    """Random numbers from -1 to 1, drawn on the CPU so that a seed gives the same numbers on every device."""
    return (2 * torch.rand(shape) - 1).to(like.device)


class RandBatchAffined(MapTransform):
    """Rotate, scale, shift, bend and mirror each slice of a batch, in the same way for all keys.

    Tensors are (B, C, H, W) float32. Values between pixels are interpolated bilinearly.

    Args:
        keys: Names of the images and labels.
        rotate_range: The largest angle, in radians.
        scale_range: The largest change of size along each axis: 0.1 means 0.9 to 1.1.
        translate_range: The largest shift along each axis, as a share of the side. In MONAI's ``RandAffine`` it counts
            pixels; the other ranges mean the same there.
        zoom_range: The largest logarithm of a change of size that both axes share.
        elastic: The largest displacement of ``ELASTIC_POINTS`` x ``ELASTIC_POINTS`` points, as a share of half the
            side. Displacements between the points are bicubic. About half of the slices are bent.
        flip_prob: The probability to mirror left and right, 0 to 1.
        padding_mode: For each key, what lies outside of the slice: ``zeros``, ``border`` or ``reflection``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        rotate_range: float = 0.0,
        scale_range: float = 0.0,
        translate_range: float = 0.0,
        zoom_range: float = 0.0,
        elastic: float = 0.0,
        flip_prob: float = 0.0,
        padding_mode: tuple[str, ...] = ("border", "zeros"),
    ) -> None:
        super().__init__(keys)
        self.rotate_range, self.scale_range, self.translate_range = rotate_range, scale_range, translate_range
        self.zoom_range, self.elastic, self.flip_prob = zoom_range, elastic, flip_prob
        self.padding_mode = padding_mode

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> Batch:
        """The batch after the random movement."""
        image = data[self.keys[0]]
        count, _, height, width = image.shape
        angle = self.rotate_range * uniform(count, like=image)
        # grid_sample maps places of the result to places of the source, so the scale is inverted.
        down, right = 1 / (1 + self.scale_range * uniform(2, count, like=image))
        if self.zoom_range:
            size = torch.exp(self.zoom_range * uniform(count, like=image))
            down, right = size * down, size * right
        mirror = torch.where(uniform(count, like=image) < 2 * self.flip_prob - 1, -1.0, 1.0)
        shift = 2 * self.translate_range * uniform(count, 2, like=image)
        cos, sin, ratio = torch.cos(angle), torch.sin(angle), height / width
        across = torch.stack([mirror * right * cos, mirror * right * -sin * ratio, shift[:, 0]], dim=1)
        along = torch.stack([down * sin / ratio, down * cos, shift[:, 1]], dim=1)
        grid = grid_of(torch.stack([across, along], dim=1), height, width)
        if self.elastic:
            points = self.elastic * uniform(count, 2, ELASTIC_POINTS, ELASTIC_POINTS, like=image)
            points *= (uniform(count, like=image) < 0)[:, None, None, None]
            weights = (bicubic_of(ELASTIC_POINTS, side, points.device) for side in (height, width))
            down, right = weights
            grid = grid + (down.T @ points @ right).permute(0, 2, 3, 1)
        moved = {
            key: grid_sample(data[key], grid, padding_mode=outside, align_corners=False)
            for key, outside in zip(self.keys, self.padding_mode, strict=True)
        }
        return {**data, **moved}


def grid_of(theta: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The grid of ``affine_grid``, (B, H, W, 2), for theta (B, 2, 3), ``align_corners=False``, and faster."""
    sides = (torch.arange(side, device=theta.device)[:, None] for side in (height, width))
    rows, columns = ((2 * places + 1) / len(places) - 1 for places in sides)
    across, down, shift = theta[:, None, None].unbind(-1)
    return across * columns + (down * rows[:, None] + shift)


def by_sequence(image: torch.Tensor) -> torch.Tensor:
    """A batch (B, 3 * K, H, W) of K neighbouring slices each, seen as (B, K, 3, H, W)."""
    return image.view(len(image), -1, 3, *image.shape[2:])


class RandBatchIntensityd(MapTransform):
    """Shade each sequence of each slice by a bias field, multiply it by a factor around 1 and add an offset, in place.

    Tensors are (B, 3 * K, H, W) float32: three sequences of K neighbouring slices, which get the same change.

    Args:
        keys: Names of the images.
        gain: The largest change of the factor.
        offset: The largest offset, in the image's unit.
        bias_field: The largest logarithm of the field at its ``FIELD_POINTS`` x ``FIELD_POINTS`` points. The field is
            bicubic between the points. It multiplies the intensity above the sequence's darkest pixel.
    """

    def __init__(self, keys: KeysCollection, gain: float = 0.0, offset: float = 0.0, bias_field: float = 0.0) -> None:
        super().__init__(keys)
        self.gain, self.offset, self.bias_field = gain, offset, bias_field

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> Batch:
        """The batch with other intensities."""
        for key in self.keys:
            image = by_sequence(data[key])
            shape = (len(image), 1, image.shape[2], 1, 1)
            if self.bias_field:
                points = self.bias_field * uniform(*shape[:3], FIELD_POINTS, FIELD_POINTS, like=image)
                down, across = (bicubic_of(FIELD_POINTS, side, points.device) for side in image.shape[3:])
                darkest = image.amin((1, 3, 4), keepdim=True)
                image.sub_(darkest).mul_((down.T @ points @ across).exp_()).add_(darkest)
            image.mul_(1 + self.gain * uniform(*shape, like=image)).add_(self.offset * uniform(*shape, like=image))
        return dict(data)


def bicubic_of(points: int, side: int, device: torch.device) -> torch.Tensor:
    """Weights of ``interpolate(mode="bicubic")`` along one dimension, (points, side), to apply as a product."""
    return interpolate(torch.eye(points, device=device)[:, None, :, None], (side, 1), mode="bicubic")[:, 0, :, 0]


class RandMissingSequenced(MapTransform):
    """Copy FLAIR over other channels of a slice, in place, as the publishers did where a sequence was missing.

    Tensors are (B, 3 * K, H, W): pre-contrast, FLAIR, post-contrast, of K neighbouring slices. The three probabilities,
    0 to 1, are independent of each other.

    Args:
        keys: Names of the images.
        both: The probability to replace pre-contrast and post-contrast.
        pre: The probability to replace pre-contrast.
        post: The probability to replace post-contrast.
    """

    def __init__(self, keys: KeysCollection, both: float = 0.0, pre: float = 0.0, post: float = 0.0) -> None:
        super().__init__(keys)
        self.both, self.pre, self.post = both, pre, post

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> Batch:
        """The batch with fewer sequences."""
        for key in self.keys:
            image = by_sequence(data[key])
            both, pre, post = torch.rand(3, len(image)) < torch.tensor([[self.both], [self.pre], [self.post]])
            for channel, missing in ((0, both | pre), (2, both | post)):
                image[missing, :, channel] = image[missing, :, 1]
        return dict(data)


class RandBatchAdjustContrastd(MapTransform):
    """Raise each sequence of a slice to a power, between its darkest and its brightest pixel.

    Tensors are (B, 3 * K, H, W) float32.

    Args:
        keys: Names of the images.
        gamma: The largest logarithm of the power.
        prob: The probability that a slice changes, 0 to 1.
    """

    def __init__(self, keys: KeysCollection, gamma: float = 0.0, prob: float = 0.0) -> None:
        super().__init__(keys)
        self.gamma, self.prob = gamma, prob

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> Batch:
        """The batch with other contrasts."""
        data = dict(data)
        for key in self.keys:
            image = by_sequence(data[key])
            power = torch.exp(self.gamma * uniform(len(image), 1, image.shape[2], 1, 1, like=image))
            chosen = torch.rand(len(image)) < self.prob
            part, power = image[chosen], power[chosen]
            darkest = part.amin((1, 3, 4), keepdim=True)
            span = (part.amax((1, 3, 4), keepdim=True) - darkest).clamp_min(1e-3)
            image[chosen] = ((part - darkest) / span).clamp_(0, 1).pow_(power).mul_(span).add_(darkest)
        return data


class RandBatchSimulateLowResolutiond(MapTransform):
    """Resize slices of a batch, (B, C, H, W) float32, to fewer pixels and back, in place.

    Args:
        keys: Names of the images.
        least: The smallest share of a side, at most 0.95. All chosen slices of a batch get the same share.
        prob: The probability that a slice is chosen, 0 to 1.
    """

    def __init__(self, keys: KeysCollection, least: float = 0.5, prob: float = 0.0) -> None:
        super().__init__(keys)
        self.least, self.prob = least, prob

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> Batch:
        """The batch with coarser slices."""
        for key in self.keys:
            image = data[key]
            chosen = torch.rand(len(image)) < self.prob
            share = self.least + (0.95 - self.least) * float(torch.rand(()))
            if chosen.any():
                # By size and not by factor: the size is rounded, and the slice must not shift against its label.
                size = [max(1, round(share * side)) for side in image.shape[2:]]
                small = interpolate(image[chosen], size, mode="bilinear", align_corners=False)
                image[chosen] = interpolate(small, image.shape[2:], mode="bicubic", align_corners=False)
        return dict(data)


class RandBatchGaussianNoised(MapTransform):
    """Add noise to slices of a batch, (B, C, H, W) float32, in place.

    Args:
        keys: Names of the images.
        std: The largest standard deviation, in the image's unit.
        prob: The probability that a slice changes, 0 to 1.
    """

    def __init__(self, keys: KeysCollection, std: float = 0.0, prob: float = 0.0) -> None:
        super().__init__(keys)
        self.std, self.prob = std, prob

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> Batch:
        """The batch with noise."""
        for key in self.keys:
            image = data[key]
            size = self.std * torch.rand(len(image)) * (torch.rand(len(image)) < self.prob)
            image.add_(torch.randn(image.shape).to(image.device) * size.to(image.device)[:, None, None, None])
        return dict(data)
