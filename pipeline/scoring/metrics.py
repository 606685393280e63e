"""Agreement of a predicted volume with its truth. The functions take arrays and touch no file.

The rule for empty volumes, which is defined only here:

- Truth and prediction are empty: the DSC is not defined. The volume is listed as ``undefined`` in a summary and counts
  in no mean.
- Only the truth is empty: the DSC is 0, and the false-positive voxels are reported.
- Only the prediction is empty: the DSC is 0 by its formula.
- The surface DSC follows the same rule. A surface distance needs both surfaces, and a volume difference needs a truth.
- A prediction with NaN or Inf is an error and never has a DSC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.errors import PipelineError
from pipeline.scoring.results import VolumeScore, dsc_of

Mask = NDArray[np.bool_]

TENTHS = 10
TOLERANCE_MM = 2.0
"""Tolerance of the surface DSC in mm: surfaces that are closer count as equal."""
MARKED = 0.01
"""Lowest probability that counts in the calibration. Below it lie so many voxels that they would hide any error."""


def as_mask(volume: NDArray[Any], name: str) -> Mask:
    """A mask as booleans, (H, W, D).

    Args:
        volume: The mask, (H, W, D), 0 and 1.
        name: What the error message calls the mask.

    Raises:
        PipelineError: The mask holds other values than 0 and 1.
    """
    if not ((volume == 0) | (volume == 1)).all():
        raise PipelineError(
            f"{name}: values from {volume.min()} to {volume.max()} (expected 0 and 1; NaN or Inf has no DSC). "
            "Apply a threshold first."
        )
    return volume.astype(np.bool_)


def score_volume(
    patient: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: tuple[float, float, float] | None = None,
) -> VolumeScore:
    """DSC, surface distances, volume difference and voxel counts of one volume.

    DSC = 2 TP / (2 TP + FP + FN) (Dice 1945). ``hd95_px``, by medpy, is the 95th percentile of the distances between
    both surfaces in voxels. ``hd95_mm``, by MONAI, is the larger of the 95th percentiles of both directions in mm.
    ``surface_dice_2mm`` is MONAI's normalised surface DSC at 2 mm (Nikolov et al., J Med Internet Res 23, 2021).

    Args:
        patient: The patient's id.
        prediction: The predicted mask, (H, W, D), 0 and 1.
        truth: The true mask, (H, W, D), 0 and 1.
        spacing: Distance between rows, columns and slices in mm. None if it is not known, as for the published slices;
            then scores in mm are None.

    Raises:
        PipelineError: The shapes differ, or a mask holds other values than 0 and 1.

    Examples:
        >>> import numpy as np
        >>> import pipeline
        >>> truth = np.zeros((4, 4, 2), np.uint8)
        >>> truth[1:3, 1:3] = 1
        >>> pipeline.score_volume("patient", truth, truth).dsc
        1.0
    """
    if prediction.shape != truth.shape:
        raise PipelineError(
            f"Patient {patient}: prediction of shape {prediction.shape}, truth of {truth.shape} (expected the same)."
        )
    predicted = as_mask(prediction, f"Patient {patient}: prediction")
    true = as_mask(truth, f"Patient {patient}: truth")
    tp = int(np.count_nonzero(predicted & true))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(true)) - tp
    cropped = _cropped(predicted, true)
    hd95_mm, surface_dice = _surfaces_mm(*cropped, spacing) if spacing else (None, None)
    return VolumeScore(
        patient=patient,
        dsc=dsc_of(tp, fp, fn),
        hd95_px=_hd95_px(*cropped),
        hd95_mm=hd95_mm,
        surface_dice_2mm=surface_dice,
        volume_difference=_ratio(fp - fn, tp + fn),
        sensitivity=_ratio(tp, tp + fn),
        precision=_ratio(tp, tp + fp),
        tp_voxels=tp,
        fp_voxels=fp,
        fn_voxels=fn,
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _cropped(predicted: Mask, true: Mask) -> tuple[Mask, Mask]:
    """Both masks, cropped to the box that holds both, with a rim of zeros. No surface distance changes."""
    box = next(iter(find_objects((predicted | true).astype(np.uint8))), np.s_[:0, :0, :0])
    return np.pad(predicted[box], 1), np.pad(true[box], 1)


def _hd95_px(predicted: Mask, true: Mask) -> float | None:
    if not (predicted.any() and true.any()):
        return None
    from medpy.metric.binary import hd95

    return float(hd95(predicted, true))


def _surfaces_mm(predicted: Mask, true: Mask, spacing: tuple[float, float, float]) -> tuple[float | None, float | None]:
    """HD95 in mm, and the surface DSC at ``TOLERANCE_MM``."""
    if not (predicted.any() and true.any()):
        return None, 0.0 if predicted.any() or true.any() else None
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    ours, theirs = (torch.from_numpy(mask)[None, None] for mask in (predicted, true))
    distance = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
    dsc = compute_surface_dice(ours, theirs, [TOLERANCE_MM], include_background=True, spacing=spacing)
    return float(distance), float(dsc)


def slice_counts(
    prediction: NDArray[Any], truth: NDArray[Any], first: int = 1
) -> tuple[tuple[int, int, int, int], ...]:
    """Number, TP, FP and FN of each slice, from the lowest slice up.

    Args:
        prediction: The predicted mask, (H, W, D), 0 and 1.
        truth: The true mask, (H, W, D), 0 and 1.
        first: The number of the lowest slice.
    """
    predicted, true = as_mask(prediction, "prediction"), as_mask(truth, "truth")
    counts = (np.count_nonzero(each, axis=(0, 1)) for each in (predicted & true, predicted & ~true, true & ~predicted))
    return tuple(
        (number, int(tp), int(fp), int(fn)) for number, (tp, fp, fn) in enumerate(zip(*counts, strict=True), first)
    )


def reliability(probability: NDArray[np.floating[Any]], truth: NDArray[Any]) -> tuple[tuple[int, float, int], ...]:
    """Counts for a reliability diagram: for each tenth of probability, (voxels, sum of probabilities, lesion voxels).

    Voxels with a probability below ``MARKED`` are not counted.

    Args:
        probability: The predicted probability of a lesion, (H, W, D), 0 to 1.
        truth: The true mask, (H, W, D), 0 and 1.
    """
    marked = probability >= MARKED
    values = probability[marked].astype(np.float64)
    tenth = np.minimum((values * TENTHS).astype(np.intp), TENTHS - 1)
    sums = (None, values, as_mask(truth, "truth")[marked])
    voxels, expected, lesion = (np.bincount(tenth, weights=each, minlength=TENTHS) for each in sums)
    return tuple((int(n), float(p), int(t)) for n, p, t in zip(voxels, expected, lesion, strict=True))
