"""The two protocols by which volumes are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:  # NumPy loads when a volume is scored, so that --help answers at once
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.scoring.metrics import Mask

PROTOCOLS = {
    "native": "every voxel of the native volume; the bundle's own component rule",
    "reference": "first and last slice left out, largest 3-D component, as the reference program scores",
}


def refuse_unknown(protocol: str) -> None:
    """Refuse a protocol that is no key of ``PROTOCOLS``."""
    if protocol not in PROTOCOLS:
        raise PipelineError(f"protocol {protocol!r} (expected {' or '.join(PROTOCOLS)}).")


def largest_component(mask: NDArray[Any]) -> Mask:
    """The largest connected component of a volume, 26 neighbours; of equal ones the first in memory order.

    Args:
        mask: (H, W, D), 0 and 1.

    Returns:
        (H, W, D) bool, empty where ``mask`` is.
    """
    import numpy as np
    from scipy.ndimage import label

    components, count = label(mask, structure=np.ones((3, 3, 3)))
    if count == 0:
        return np.zeros(mask.shape, dtype=np.bool_)
    sizes = np.bincount(components.ravel())[1:]
    largest: Mask = components == 1 + int(np.argmax(sizes))
    return largest


def reference_view(probability: NDArray[np.floating[Any]], truth: NDArray[Any]) -> tuple[Mask, Mask]:
    """What the reference program scores: the first and the last slice left out, then the largest 3-D component.

    Source: mateuszbuda/brain-segmentation-pytorch, the program of Buda et al., Computers in Biology and Medicine 109
    (2019). It thresholds at one half and scores on its own resized grid; here the native one is kept.

    Args:
        probability: (H, W, D), 0 to 1.
        truth: (H, W, D), 0 and 1.

    Returns:
        prediction and truth, (H, W, D - 2) bool.
    """
    from pipeline.scoring.metrics import as_mask

    if truth.shape[2] < 3:
        raise PipelineError(
            f"{truth.shape[2]} slices (the reference protocol leaves out both end slices). Score natively."
        )
    inner = slice(1, -1)
    return largest_component(probability[..., inner] >= 0.5), as_mask(truth[..., inner], "truth")


def view(
    protocol: str, mask: NDArray[Any], probability: NDArray[np.floating[Any]], truth: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a protocol scores of a predicted volume.

    Args:
        protocol: A key of ``PROTOCOLS``.
        mask: The bundle's own mask, (H, W, D), 0 and 1.
        probability: The probability of a lesion, (H, W, D), 0 to 1.
        truth: The true mask, (H, W, D), 0 and 1.
    """
    refuse_unknown(protocol)
    return reference_view(probability, truth) if protocol == "reference" else (mask, truth)
