"""The two protocols by which volumes are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:  # NumPy loads when a volume is scored, so that --help answers at once
    import numpy as np
    from numpy.typing import NDArray

PROTOCOLS = {
    "native": "every voxel of the native volume; the bundle's own component rule",
    "reference": "first and last slice left out, largest 3-D component, as the reference program scores",
}


def view(
    protocol: str, mask: NDArray[Any], probability: NDArray[np.floating[Any]], truth: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a protocol scores of a predicted volume: prediction and truth, on one grid.

    Source of ``reference``: mateuszbuda/brain-segmentation-pytorch, the program of Buda et al., Computers in Biology
    and Medicine 109 (2019). It thresholds at one half and scores on its own resized grid; here the native one is kept.

    Args:
        protocol: A key of ``PROTOCOLS``.
        mask: The bundle's own mask, (H, W, D), 0 and 1.
        probability: The probability of a lesion, (H, W, D), 0 to 1.
        truth: The true mask, (H, W, D), 0 and 1.

    Returns:
        (H, W, D) for ``native``, (H, W, D - 2) for ``reference``.
    """
    if protocol == "native":
        return mask, truth
    if truth.shape[2] < 3:
        raise PipelineError(
            f"{truth.shape[2]} slices (the reference protocol leaves out both end slices). Score natively."
        )
    return largest_component(probability[..., 1:-1] >= 0.5), truth[..., 1:-1]


def largest_component(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """The largest connected component of a mask (H, W, D), 26 neighbours; of equal ones the first in memory order."""
    import numpy as np
    from scipy.ndimage import label

    components, _ = label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the background
    largest: NDArray[np.bool_] = (components == sizes.argmax()) & (components > 0)
    return largest
