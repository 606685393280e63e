"""Transforms of training volumes without random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, NormalizeIntensity

from .faults import PipelineError
from .volumes import label_fault

HEAD_ABOVE = 0.1  # voxels above it, on the scale from 0 to 1, count as head, the others as air
MIN_DEVIATION = 0.01  # a head with a smaller deviation is not divided by it


class BinaryLabeld(MapTransform):
    """Labels as 0 and 1. The lesion may have any one positive value, such as 255.

    Args:
        keys: Names of the labels, (1, H, W, D).
    """

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The labels as 0 and 1.

        Raises:
            PipelineError: A label holds several values or NaN.
        """
        result = dict(data)
        for key in self.keys:
            label = result[key]
            if fault := label_fault(label.numpy()):
                raise PipelineError(f"{label.meta.get('filename_or_obj', 'label')}: {fault}")
            result[key] = (label > 0).to(label.dtype)
        return result


class NeighbouringSlicesd(MapTransform):
    """Add the slices around each slice as channels, from the lowest slice to the highest.

    The result is that of the transform under ``neighbours`` in ``inference.json``.

    Args:
        keys: Names of the images, (C, H, W, D). They become (C * (2 * around + 1), H, W, D).
        around: Slices on either side. Beyond the ends the last slice is repeated.
    """

    def __init__(self, keys: KeysCollection, around: int = 0) -> None:
        super().__init__(keys)
        self.around = around

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The images with the channels of their neighbours."""
        result = dict(data)
        for key in self.keys if self.around else ():
            image = result[key]
            near = slices_around(torch.arange(image.shape[-1]), self.around, image.shape[-1])
            result[key] = torch.cat([image[..., numbers] for numbers in near.T])
        return result


def slices_around(numbers: torch.Tensor, around: int, depth: int) -> torch.Tensor:
    """Numbers of each slice and of its neighbours, (B,) -> (B, 2 * around + 1), in a volume.

    Args:
        numbers: Numbers of slices, 0 to ``depth - 1``.
        around: Slices on either side. Beyond the ends the last slice is repeated.
        depth: The number of the volume's slices.
    """
    return (numbers[:, None] + torch.arange(-around, around + 1)).clamp(0, depth - 1)


class NormalizePercentilesd(MapTransform):
    """Clip each channel to two percentiles of the volume, then scale it to mean 0 and deviation 1.

    The transforms under ``intensity`` in ``inference.json`` give the same bits. They are stock MONAI transforms,
    because programs such as MONAI Deploy get the configs without this code.

    Args:
        keys: Names of the images, (3, H, W, D), or (1, H, W, D) FLAIR, which is copied to all three channels.
        percentiles: The two percentiles, such as 1 and 99.5. A flat channel becomes 0.
        normalize_head: Take mean and deviation only of the head, which is above a tenth after the clip. The share of
            air in the box of the head differs from patient to patient.
    """

    def __init__(self, keys: KeysCollection, percentiles: Sequence[float], normalize_head: bool = False) -> None:
        super().__init__(keys)
        self.percentiles = tuple(percentiles)
        self.normalize = normalize_over_head if normalize_head else NormalizeIntensity(channel_wise=True)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The images with other intensities."""
        result = dict(data)
        for key in self.keys:
            image = result[key]
            limits = np.percentile(image.flatten(1).numpy(), self.percentiles, axis=1)
            low, high = torch.tensor(limits, dtype=image.dtype)[..., None, None, None]
            scaled = (image - low).div_((high - low).clamp_min(1e-6)).clamp_(0, 1)
            result[key] = self.normalize(scaled.repeat(3 // len(scaled), 1, 1, 1))
        return result


def normalize_over_head(image: torch.Tensor) -> torch.Tensor:
    """An image (C, H, W, D), 0 to 1, with each channel scaled to mean 0 and deviation 1 of its head."""
    statistics = []
    for channel in image:
        head = channel[channel > HEAD_ABOVE]
        mean, deviation = (head.mean(), head.std()) if len(head) > 1 else (0, 1)
        statistics.append((mean, deviation if deviation > MIN_DEVIATION else 1))
    mean, deviation = torch.tensor(statistics, dtype=image.dtype).T[..., None, None, None]
    normalized: torch.Tensor = (image - mean).div_(deviation)
    return normalized
