"""Volumes -> what the report's viewer shows: slices of a patient as a few small images in text form.

The viewer is plain JavaScript on a 2-D canvas (``templates/report.js``). NiiVue, the library for NIfTI in a browser,
needs WebGL 2 and whole volumes, and has no view of runs side by side with false voxels coloured.
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
"""Of a volume's maximum; darker is air (rule of the reference program)."""
WEBP = {"quality": 78, "method": 4}
"""How slices and maps are compressed; masks are without loss."""
MAX_SIDE_PX = 8192
"""Side of an image that holds all slices: browsers refuse much larger ones. Larger volumes are shown coarser."""


def patient_view(
    image: NDArray[Any], truth: NDArray[Any], masks: Mapping[str, NDArray[Any]], maps: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """All that the viewer needs of one patient, ready for JSON; each image is a ``data:`` address.

    The image is (H, W, D, 3) uint8. Truth and masks are (H, W, D), 0 and 1, and maps (H, W, D), 0 to 0.5; masks and
    maps by the name of their run. ``height`` and ``width`` are the head's, in pixels; ``columns`` is the number of
    slices in a row; ``start`` is the slice with most lesion. A channel that repeats FLAIR is FLAIR's number.
    """
    rows, columns = head_box(image, truth, *masks.values())
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

    def channel(number: int) -> str | int:
        repeats = number != FLAIR and np.array_equal(image[..., number], image[..., FLAIR])
        return FLAIR if repeats else webp(image[..., number])

    shares = {run: np.clip(uncertainty / MAX_UNCERTAINTY, 0, 1) for run, uncertainty in maps.items()}
    lesion = truth if truth.any() else np.sum([*masks.values(), truth], axis=0)
    return {
        "height": len(range(rows.start, rows.stop, step)),
        "width": len(range(columns.start, columns.stop, step)),
        "depth": depth,
        "columns": across,
        "channels": [channel(number) for number in range(image.shape[3])],
        "truth": bits(truth),
        "masks": {run: bits(mask) for run, mask in masks.items()},
        "maps": {run: webp((share * 255).round().astype(np.uint8)) for run, share in shares.items()},
        "start": int(np.argmax(lesion.sum(axis=(0, 1)))) if lesion.any() else depth // 2,
    }


def head_box(image: NDArray[Any], *masks: NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns that hold the head in an image, (H, W, D, 3), and every mask, (H, W, D), with a margin."""
    inside = (image >= AIR_BELOW * max(image.max(), 1)).any(axis=(2, 3))
    for mask in masks:
        inside |= mask.any(axis=2)
    if not inside.any():
        inside[:] = True
    rows, columns = find_objects(maximum_filter(inside.astype(np.uint8), size=2 * MARGIN + 1))[0]
    return rows, columns


def data_address(picture: NDArray[Any], kind: str, **options: Any) -> str:
    """A picture, (H, W, 3) or (H, W), as an address that holds it; the options are those of Pillow's ``save``."""
    return f"data:image/{kind};base64,{base64.b64encode(picture_bytes(picture, kind, **options)).decode()}"
