"""Masks in the form of a box, whose overlap can be counted by hand."""

from __future__ import annotations

import numpy as np


def box(*ranges: tuple[int, int], shape: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    """A mask (H, W, D) uint8 that is 1 from the first to before the second number of each dimension's range."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


TRUTH = box((2, 6), (2, 6), (2, 4))
"""32 voxels."""
