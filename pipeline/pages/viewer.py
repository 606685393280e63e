"""Volumes -> what the report's viewer shows: slices of a patient as a few small images in text form.

The viewer itself is a page of plain JavaScript on a 2-D canvas (``templates/report.js``). NiiVue, the library for NIfTI
in a browser, draws by WebGL 2, which print, remote desktops and phones do not always give, and would have to be fed
whole volumes; what is wanted here, runs side by side at one slice with false voxels coloured, is no view of its own.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scripts.manifest import CHANNELS, FLAIR

MARGIN = 4
"""Pixels of air left around the head."""
AIR_BELOW = 0.1
"""Of a volume's maximum; darker is air (rule of the reference program)."""
QUALITY = 78
"""Of the slices, WebP; masks are without loss."""
MAX_SIDE_PX = 8192
"""Side of an image that holds all slices: browsers refuse much larger ones. Larger volumes are shown coarser."""
MAX_UNCERTAINTY = 0.5
"""Of an uncertainty map; drawn in full."""


def patient_view(
    image: NDArray[Any], truth: NDArray[Any], masks: Mapping[str, NDArray[Any]], maps: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """All that the viewer needs of one patient, ready for JSON.

    Args:
        image: (H, W, D, 3) uint8.
        truth: (H, W, D), 0 and 1.
        masks: Name of the run -> (H, W, D), 0 and 1.
        maps: Name of the run -> uncertainty (H, W, D), 0 to 0.5; runs without one are absent.

    Returns:
        ``height``, ``width`` (of the box of the head, in pixels), ``depth``, ``columns`` (slices in a row of each
        image), ``channels`` (image of each; a channel that repeats FLAIR shares FLAIR's), ``truth``, ``masks`` and
        ``maps`` (run -> image), ``start`` (the slice with most lesion), each image a ``data:`` address.
    """
    rows, columns = head_box(image, truth, *masks.values())
    depth = image.shape[2]
    across = math.ceil(math.sqrt(depth))
    step = math.ceil(across * max(rows.stop - rows.start, columns.stop - columns.start) / MAX_SIDE_PX)
    rows, columns = slice(rows.start, rows.stop, step), slice(columns.start, columns.stop, step)
    tiles = [_tiled(image[rows, columns, :, channel], across) for channel in range(len(CHANNELS))]
    files = [
        FLAIR if number != FLAIR and np.array_equal(tile, tiles[FLAIR]) else _webp(tile)
        for number, tile in enumerate(tiles)
    ]
    area = truth.sum(axis=(0, 1))
    shown = area if area.any() else sum(mask.sum(axis=(0, 1)) for mask in masks.values())
    return {
        "height": len(range(rows.start, rows.stop, step)),
        "width": len(range(columns.start, columns.stop, step)),
        "depth": depth,
        "columns": across,
        "channels": files,
        "truth": _bits(_tiled(truth[rows, columns], across)),
        "masks": {run: _bits(_tiled(mask[rows, columns], across)) for run, mask in masks.items()},
        "maps": {run: _webp(_tiled(_grey(values[rows, columns]), across)) for run, values in maps.items()},
        "start": int(np.argmax(shown)) if np.any(shown) else depth // 2,
    }


def head_box(image: NDArray[Any], *masks: NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns that hold the head and every mask, with a margin.

    Args:
        image: (H, W, D, 3).
        masks: (H, W, D) each.
    """
    inside = (image >= AIR_BELOW * max(image.max(), 1)).any(axis=(2, 3))
    for mask in masks:
        inside = inside | mask.any(axis=2)
    if not inside.any():
        inside = np.ones_like(inside)
    found = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    rows, columns = (
        slice(max(int(where[0]) - MARGIN, 0), min(int(where[-1]) + MARGIN + 1, size))
        for where, size in zip(found, inside.shape, strict=True)
    )
    return rows, columns


def _tiled(volume: NDArray[Any], across: int) -> NDArray[Any]:
    """(H, W, D) -> one image, ``across`` slices in a row, the last row filled up with 0."""
    height, width, depth = volume.shape
    down = math.ceil(depth / across)
    tiles = np.zeros((down * across, height, width), dtype=volume.dtype)
    tiles[:depth] = np.moveaxis(volume, 2, 0)
    return tiles.reshape(down, across, height, width).swapaxes(1, 2).reshape(down * height, across * width)


def _grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    return (np.clip(values / MAX_UNCERTAINTY, 0, 1) * 255).round().astype(np.uint8)


def _webp(picture: NDArray[np.uint8]) -> str:
    return _address(picture, "webp", quality=QUALITY, method=4)


def _bits(picture: NDArray[Any]) -> str:
    return _address(picture.astype(bool), "png", optimize=True)


def _address(picture: NDArray[Any], kind: str, **options: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
