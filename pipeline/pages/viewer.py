"""Turn volumes into data for a page's viewer: a patient's slices as a few small images in text form.

The viewer itself is plain JavaScript on a 2-D canvas (``templates/viewer.js``). NiiVue, the library for NIfTI in a
browser, needs WebGL 2, which printers, remote desktops and phones do not always have. It also needs whole volumes, and
cannot show several runs at the same slice with false voxels in color.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, maximum_filter
from skimage.measure import block_reduce
from skimage.util import montage

from pipeline.pages.overlays import MAX_UNCERTAINTY, picture_bytes
from pipeline.scripts.manifest import FLAIR

MARGIN = 4
"""Pixels of air left around the head."""
AIR_BELOW = 0.1
"""Share of a volume's brightest gray value. Darker voxels are air."""
BRIGHT_PERCENTILE = 99.5
"""Percentile that counts as a volume's brightest gray value. It ignores a few very bright voxels."""
WINDOW_PERCENTILES = (1, 99.5)
"""Percentiles of the voxels inside the head. A slice is first shown with the gray scale between them."""
WEBP = {"quality": 78, "method": 4}
"""Compression of slices and maps. Masks are compressed without loss."""
MAX_SIDE_PX = 4096
"""Side of an image that holds all slices, at most. Phones refuse larger ones, so larger volumes lose pixels."""


def patient_view(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    masks: Mapping[str, NDArray[Any]],
    maps: Mapping[str, NDArray[Any]],
    spacing: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    """The data that the viewer needs for one patient, as values for JSON.

    Args:
        image: The image, (H, W, D, 3) uint8.
        truth: The true mask, (H, W, D), 0 and 1; None if there is no truth.
        masks: Name of the run -> predicted mask, (H, W, D), 0 and 1.
        maps: Name of the run -> uncertainty map, (H, W, D), 0 to 0.5; runs without a map are absent.
        spacing: Distance between rows, columns and slices in mm; None if it is not known.

    Returns:
        ``height`` and ``width`` (of the head's box, in pixels), ``depth`` (number of slices), ``step`` (voxels along
        each side of a pixel; 1 unless slices are large), ``columns`` (slices in a row of each image), ``aspect``
        (height of a pixel divided by its width), ``channels`` (one image each; for a channel that repeats FLAIR,
        FLAIR's number), ``windows`` (for each channel, the gray values that are first shown black and white), ``truth``
        (None if there is no truth), ``masks`` and ``maps`` (run -> image), and ``start`` (the slice with most lesion).
        Every image is a ``data:`` address.
    """
    known = [*masks.values(), *([] if truth is None else [truth])]
    rows, columns = head_box(image, *known)
    depth = image.shape[2]
    across = math.ceil(math.sqrt(depth))
    step = math.ceil(across * max(rows.stop - rows.start, columns.stop - columns.start) / MAX_SIDE_PX)

    def tiled(volume: NDArray[Any]) -> NDArray[Any]:
        """All slices of a volume, (H, W, D), as one picture."""
        slices = np.moveaxis(volume, 2, 0)
        tiles: NDArray[Any] = montage(slices, fill=0, grid_shape=(math.ceil(depth / across), across))
        return tiles

    def highest(volume: NDArray[Any]) -> NDArray[Any]:
        """A volume in the head's box, (H, W, D). Each pixel has the highest of its voxels, so that no mark is lost."""
        found: NDArray[Any] = block_reduce(volume[rows, columns], (step, step, 1), np.max)
        return found

    def webp(volume: NDArray[Any]) -> str:
        return data_address(tiled(volume), "webp", **WEBP)

    def bits(mask: NDArray[Any]) -> str:
        return data_address(tiled(highest(mask.astype(bool))), "png", optimize=True)

    channels = [image[..., number] for number in range(image.shape[3])]
    repeats = [number != FLAIR and np.array_equal(one, channels[FLAIR]) for number, one in enumerate(channels)]
    windows = {number: _window(channels[number]) for number, repeat in enumerate(repeats) if not repeat}
    marked = [truth] if truth is not None and truth.any() else known
    areas = np.sum([np.zeros(depth, int), *(mask.sum(axis=(0, 1)) for mask in marked)], axis=0)
    return {
        "height": len(range(rows.start, rows.stop, step)),
        "width": len(range(columns.start, columns.stop, step)),
        "depth": depth,
        "step": step,
        "columns": across,
        "aspect": spacing[0] / spacing[1] if spacing else 1.0,
        "channels": [
            FLAIR if repeat else webp(one[rows, columns][::step, ::step])
            for one, repeat in zip(channels, repeats, strict=True)
        ],
        "windows": [windows[FLAIR if repeat else number] for number, repeat in enumerate(repeats)],
        "truth": None if truth is None else bits(truth),
        "masks": {run: bits(mask) for run, mask in masks.items()},
        "maps": {run: webp(highest(_gray(uncertainty))) for run, uncertainty in maps.items()},
        "start": int(np.argmax(areas)) if areas.any() else depth // 2,
    }


def head_box(image: NDArray[Any], *masks: NDArray[Any]) -> tuple[slice, slice]:
    """The rows and columns that hold the head and every mask, with a margin.

    Args:
        image: The image, (H, W, D, 3).
        masks: Masks, each (H, W, D).
    """
    own = image[..., :1] if image.strides[-1] == 0 else image  # channels may share memory
    inside: NDArray[np.bool_] = np.any(own >= _air(own), axis=(2, 3))
    for mask in masks:
        inside |= mask.any(axis=2)
    if not inside.any():
        inside[:] = True
    rows, columns = find_objects(maximum_filter(inside.astype(np.uint8), size=2 * MARGIN + 1))[0]
    return rows, columns


def _air(image: NDArray[Any]) -> float:
    """The gray value below which a voxel is air."""
    return float(AIR_BELOW * max(np.percentile(image[::2, ::2], BRIGHT_PERCENTILE), 1))


def _window(channel: NDArray[Any]) -> list[int]:
    """The gray values to show black and white, so that the head's contrast is visible."""
    thinned = channel[::2, ::2]
    head = thinned[thinned >= _air(channel)]
    low, high = np.percentile(head, WINDOW_PERCENTILES).round().astype(int).tolist() if head.size else (0, 255)
    return [low, max(high, low + 1)]


def _gray(uncertainty: NDArray[Any]) -> NDArray[np.uint8]:
    return (np.clip(uncertainty / MAX_UNCERTAINTY, 0, 1) * 255).round().astype(np.uint8)


def data_address(picture: NDArray[Any], kind: str, **options: Any) -> str:
    """A picture as a ``data:`` address that holds its file.

    Args:
        picture: The picture, (H, W, 3) or (H, W), uint8 or bool.
        kind: The format, such as ``webp``.
        options: Options of Pillow's ``save``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(picture_bytes(picture, kind, **options)).decode()}"
