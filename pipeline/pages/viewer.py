"""Volumes -> what a page's viewer shows: slices of a patient as a few small images in text form.

The viewer itself is plain JavaScript on a 2-D canvas (``templates/viewer.js``). NiiVue, the library for NIfTI
in a browser, draws by WebGL 2, which print, remote desktops and phones do not always give. It also needs whole volumes,
and has no view of runs side by side at one slice with false voxels coloured.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, maximum_filter
from skimage.util import montage

from pipeline.pages.overlays import MAX_UNCERTAINTY, picture_bytes
from pipeline.scripts.manifest import FLAIR

MARGIN = 4
"""Pixels of air left around the head."""
AIR_BELOW = 0.1
"""Of a volume's bright end; darker is air."""
BRIGHT_PERCENTILE = 99.5
"""Where a volume's bright end is: a few very bright voxels do not decide where the head is."""
WINDOW_PERCENTILES = (1, 99.5)
"""Of the voxels inside the head; between them goes the grey scale that a slice is shown with at first."""
WEBP = {"quality": 78, "method": 4}
"""How slices and maps are compressed; masks are without loss."""
MAX_SIDE_PX = 4096
"""Side of an image that holds all slices: phones refuse larger ones. Larger volumes are shown coarser."""


def patient_view(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    masks: Mapping[str, NDArray[Any]],
    maps: Mapping[str, NDArray[Any]],
    spacing: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    """All that the viewer needs of one patient, ready for JSON.

    Args:
        image: (H, W, D, 3) uint8.
        truth: (H, W, D), 0 and 1; None where there is none.
        masks: Name of the run -> (H, W, D), 0 and 1.
        maps: Name of the run -> uncertainty (H, W, D), 0 to 0.5; runs without one are absent.
        spacing: Distance of rows, columns and slices in mm; None where it is not known.

    Returns:
        ``height``, ``width`` (of the box of the head, in pixels), ``depth``, ``columns`` (slices in a row of each
        image), ``aspect`` (height of a pixel by its width), ``channels`` (image of each; a channel that repeats FLAIR
        shares FLAIR's), ``windows`` (of each channel the grey values shown black and white at first), ``truth`` (None
        where there is none), ``masks`` and ``maps`` (run -> image), ``start`` (the slice with most lesion), each image
        a ``data:`` address.
    """
    known = [*masks.values(), *([] if truth is None else [truth])]
    rows, columns = head_box(image, *known)
    depth = image.shape[2]
    across = math.ceil(math.sqrt(depth))
    step = math.ceil(across * max(rows.stop - rows.start, columns.stop - columns.start) / MAX_SIDE_PX)

    def tiled(volume: NDArray[Any]) -> NDArray[Any]:
        """The box of the head in all slices, (H, W, D), as one picture."""
        slices = np.moveaxis(volume[rows, columns][::step, ::step], 2, 0)
        tiles: NDArray[Any] = montage(slices, fill=0, grid_shape=(math.ceil(depth / across), across))
        return tiles

    def webp(volume: NDArray[Any]) -> str:
        return data_address(tiled(volume), "webp", **WEBP)

    def bits(mask: NDArray[Any]) -> str:
        return data_address(tiled(mask.astype(bool)), "png", optimize=True)

    channels = [image[..., number] for number in range(image.shape[3])]
    repeats = [number != FLAIR and np.array_equal(one, channels[FLAIR]) for number, one in enumerate(channels)]
    windows = {number: _window(channels[number]) for number, repeat in enumerate(repeats) if not repeat}
    marked = [truth] if truth is not None and truth.any() else known
    areas = np.sum([np.zeros(depth, int), *(mask.sum(axis=(0, 1)) for mask in marked)], axis=0)
    return {
        "height": len(range(rows.start, rows.stop, step)),
        "width": len(range(columns.start, columns.stop, step)),
        "depth": depth,
        "columns": across,
        "aspect": spacing[0] / spacing[1] if spacing else 1.0,
        "channels": [FLAIR if repeat else webp(one) for one, repeat in zip(channels, repeats, strict=True)],
        "windows": [windows[FLAIR if repeat else number] for number, repeat in enumerate(repeats)],
        "truth": None if truth is None else bits(truth),
        "masks": {run: bits(mask) for run, mask in masks.items()},
        "maps": {run: webp(_grey(uncertainty)) for run, uncertainty in maps.items()},
        "start": int(np.argmax(areas)) if areas.any() else depth // 2,
    }


def head_box(image: NDArray[Any], *masks: NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns that hold the head in an image, (H, W, D, 3), and every mask, (H, W, D), with a margin."""
    own = image[..., :1] if image.strides[-1] == 0 else image  # channels may share one memory
    inside: NDArray[np.bool_] = np.any(own >= _air(own), axis=(2, 3))
    for mask in masks:
        inside |= mask.any(axis=2)
    if not inside.any():
        inside[:] = True
    rows, columns = find_objects(maximum_filter(inside.astype(np.uint8), size=2 * MARGIN + 1))[0]
    return rows, columns


def _air(image: NDArray[Any]) -> float:
    """The grey value below which a voxel is air."""
    return float(AIR_BELOW * max(np.percentile(image[::2, ::2], BRIGHT_PERCENTILE), 1))


def _window(channel: NDArray[Any]) -> list[int]:
    """Grey values to show black and white, so that the head's contrast is seen."""
    thinned = channel[::2, ::2]
    head = thinned[thinned >= _air(channel)]
    low, high = np.percentile(head, WINDOW_PERCENTILES).round().astype(int).tolist() if head.size else (0, 255)
    return [low, max(high, low + 1)]


def _grey(uncertainty: NDArray[Any]) -> NDArray[np.uint8]:
    return (np.clip(uncertainty / MAX_UNCERTAINTY, 0, 1) * 255).round().astype(np.uint8)


def data_address(picture: NDArray[Any], kind: str, **options: Any) -> str:
    """A picture, (H, W, 3) or (H, W), as an address that holds it; the options are those of Pillow's ``save``."""
    return f"data:image/{kind};base64,{base64.b64encode(picture_bytes(picture, kind, **options)).decode()}"
