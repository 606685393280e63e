"""Deterministic transforms of training volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, NormalizeIntensity

from .faults import PipelineError
from .volumes import label_fault

HEAD_ABOVE = 0.1  # after the clip to 0 to 1, voxels above it count as head, the others as air
MIN_DEVIATION = 0.01  # a head with less contrast is not divided by its deviation


class BinaryLabeld(MapTransform):
    """Labels as 0 and 1. What marks the lesion may be any one value, such as 255; several values are refused.

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
        keys: Names of the images, (C, H, W, D); they become (C * (2 * around + 1), H, W, D).
        around: Slices on either side; beyond the ends the last slice is repeated.
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
    """Numbers of the slices around others, (B,) -> (B, 2 * around + 1), in a volume of ``depth`` slices.

    Args:
        numbers: Numbers of slices, 0 to ``depth - 1``.
        around: Slices on either side; beyond the ends the last slice is repeated.
        depth: How many slices the volume has.
    """
    return (numbers[:, None] + torch.arange(-around, around + 1)).clamp(0, depth - 1)


class NormalizePercentilesd(MapTransform):
    """Clip each channel to two percentiles of the volume, then bring it to mean 0 and deviation 1.

    The result is, bit for bit, that of the transforms under ``intensity`` in ``inference.json``. They are written as
    stock MONAI transforms there because programs such as MONAI Deploy get the configs without this code.

    Args:
        keys: Names of the images, (3, H, W, D), or (1, H, W, D) FLAIR, which stands in for all three channels.
        percentiles: The two percentiles, such as 1 and 99.5; a flat channel becomes 0.
        normalize_head: Mean and deviation are those of the head, which is what lies above a tenth after the clip, and
            not of all voxels. How much air the box of the head holds differs from patient to patient.
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
    """Each channel of an image (C, H, W, D), 0 to 1, less the mean of its head, over its deviation."""
    statistics = []
    for channel in image:
        head = channel[channel > HEAD_ABOVE]
        mean, deviation = (head.mean(), head.std()) if len(head) > 1 else (0, 1)
        statistics.append((mean, deviation if deviation > MIN_DEVIATION else 1))
    mean, deviation = torch.tensor(statistics, dtype=image.dtype).T[..., None, None, None]
    normalized: torch.Tensor = (image - mean).div_(deviation)
    return normalized
