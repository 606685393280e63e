"""Volume -> probability volume -> mask, by one bundle or by the average of several."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.volumes import refuse_unusable

if TYPE_CHECKING:
    import torch

    from pipeline.bundle import Bundle

Item = TypeVar("Item")
Result = TypeVar("Result")
AT_ONCE = 3
"""Volumes under way: one read, one in the network, one postprocessed."""
_NETWORK = threading.Lock()
"""Reading and postprocessing of volumes overlap, networks take turns."""

LEFT_RIGHT = 3
"""Dimension of a batch (1, C, H, W, D) that a left-right flip mirrors: the image columns."""


def predict_probability(bundles: Sequence[Bundle], image: Path, *, flips: bool = False) -> NDArray[np.float32]:
    """Mean probability of a lesion over bundles, and over left-right flips where asked.

    Preprocessing, inferer and the way back to the native grid are each bundle's own.

    Args:
        bundles: one or several.
        image: NIfTI volume (H, W, D, 3) uint8, channels pre-contrast, FLAIR, post-contrast.
        flips: test-time augmentation: average with the prediction of the mirrored volume, mirrored back.

    Returns:
        (H, W, D) float32, 0 to 1, on the grid of ``image``.

    Raises:
        PipelineError: no bundle, an unreadable volume, or a prediction that is not finite.
    """
    return mean_probability(predict_passes(bundles, image, flips=flips))


def predict_passes(bundles: Sequence[Bundle], image: Path, *, flips: bool = False) -> list[NDArray[np.float32]]:
    """Probability of a lesion by each bundle, and by each on the mirrored volume where asked.

    Args:
        bundles: one or several.
        image: as for ``predict_probability``.
        flips: twice as many: after each bundle's own, that of the mirrored volume, mirrored back.

    Returns:
        (H, W, D) float32, 0 to 1, on the grid of ``image``, one a pass.

    Raises:
        PipelineError: no bundle, an unreadable volume, or a prediction that is not finite.
    """
    if not bundles:
        raise PipelineError("no bundle given (expected at least one). Pass --bundle FOLDER.")
    return [_probability(bundle, image, flip) for bundle in bundles for flip in ((False, True) if flips else (False,))]


def mean_probability(passes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean over passes, (H, W, D) float32."""
    mean: NDArray[np.float32] = np.stack(passes).mean(axis=0, dtype=np.float32)
    return mean


def disagreement(passes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The uncertainty map: standard deviation of the passes' probabilities, 0 (all agree) to 0.5.

    Source: test-time augmentation as in Wang et al., Neurocomputing 338 (2019), ensembles as in Lakshminarayanan et
    al., NeurIPS 2017.

    Args:
        passes: two or more, (H, W, D) float32.

    Returns:
        (H, W, D) float32.
    """
    deviation: NDArray[np.float32] = np.stack(passes).std(axis=0, dtype=np.float32)
    return deviation


def overlapped(work: Callable[[Item], Result], volumes: Sequence[Item], name: str) -> list[Result]:
    """Predict volumes; while a network works on one, the next is read and the one before is finished.

    Args:
        work: to do for each, ``predict_probability`` within.
        volumes: of a manifest, or paths.
        name: of the progress bar.

    Returns:
        Of each volume what ``work`` gave, in order.

    Raises:
        Exception: the first that ``work`` raised; no further volume is begun.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(work, volume) for volume in volumes]
        try:
            return [future.result() for future in tqdm(waiting, desc=name, unit="volume", disable=None)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _probability(bundle: Bundle, image: Path, flip: bool) -> NDArray[np.float32]:
    import torch

    from pipeline.scripts.finite import prediction_fault

    data = _preprocess(bundle, image)
    batch = data["image"][None].to(bundle.device)
    with torch.inference_mode():
        with _NETWORK:
            logits = _mirrored(bundle.inferer(_mirrored(batch, flip), bundle.network), flip)
        # Before the sigmoid, which makes 1 of an infinite logit.
        if fault := prediction_fault(logits, [image.name]):
            refuse_unusable(image)
            raise PipelineError(f"{image}: {bundle.name}: {fault}")
        # The engine hands postprocessing one volume without the batch dimension; so do we.
        data["pred"] = logits[0]
        probability = bundle.to_probability(data)["pred"]
    return np.asarray(probability[0].cpu(), dtype=np.float32)


def _preprocess(bundle: Bundle, image: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = bundle.preprocessing({"image": str(image)})
    except (RuntimeError, ValueError, OSError) as error:
        refuse_unusable(image)
        cause = error.__cause__ or error
        raise PipelineError(f"{image}: {bundle.name} cannot read it ({cause}). Check the volume.") from error
    return data


def _mirrored(batch: torch.Tensor, flip: bool) -> torch.Tensor:
    return batch.flip(LEFT_RIGHT) if flip else batch


def mask_from_probability(bundle: Bundle, probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Threshold and component rule of a bundle's config.

    Args:
        bundle: whose ``to_mask`` decides.
        probability: (H, W, D) float32, 0 to 1.

    Returns:
        (H, W, D) uint8, 0 and 1.
    """
    import torch

    mask = bundle.to_mask({"pred": torch.from_numpy(probability)[None]})["pred"]
    return np.asarray(mask[0], dtype=np.uint8)
