"""Masks in the shape of a box, so that their overlap can be counted by hand."""

from __future__ import annotations

import numpy as np


def box(*ranges: tuple[int, int], shape: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    """A mask, (H, W, D) uint8, that is 1 in a box. Each range is (first index, index after the last)."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


TRUTH = box((2, 6), (2, 6), (2, 4))
"""A true mask of 32 voxels."""
