"""The two protocols for scoring volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:  # NumPy is imported later, so that --help answers at once
    import numpy as np
    from numpy.typing import NDArray

PROTOCOLS = {
    "native": "every voxel of the volume, with the bundle's own component rule",
    "reference": "without the first and last slice, only the largest 3-D component, as in the reference program",
}


def view(
    protocol: str, mask: NDArray[Any], probability: NDArray[np.floating[Any]], truth: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The prediction and the truth that a protocol compares, on the same grid.

    Source of ``reference``: mateuszbuda/brain-segmentation-pytorch, the program of Buda et al., Computers in Biology
    and Medicine 109 (2019). It uses a threshold of 0.5, and scores on its own resized grid. This function keeps the
    native grid.

    Args:
        protocol: A key of ``PROTOCOLS``.
        mask: The bundle's own mask, (H, W, D), 0 and 1.
        probability: The probability of a lesion, (H, W, D), 0 to 1.
        truth: The true mask, (H, W, D), 0 and 1.

    Returns:
        Prediction and truth, each (H, W, D) for ``native`` and (H, W, D - 2) for ``reference``.

    Raises:
        PipelineError: The volume has too few slices for ``reference``.
    """
    if protocol == "native":
        return mask, truth
    if truth.shape[2] < 3:
        raise PipelineError(
            f"{truth.shape[2]} slices (expected 3 or more: protocol reference leaves out both end slices). Use native."
        )
    return largest_component(probability[..., 1:-1] >= 0.5), truth[..., 1:-1]


def largest_component(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """The largest connected component of a mask, (H, W, D), with 26 neighbours.

    If several are of equal size, it is the first in memory order.
    """
    import numpy as np
    from scipy.ndimage import label

    components, _ = label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the background
    largest: NDArray[np.bool_] = (components == sizes.argmax()) & (components > 0)
    return largest
