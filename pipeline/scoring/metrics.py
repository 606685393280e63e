"""Agreement of a predicted volume with its truth, and summaries over volumes. Pure: arrays in, records out.

The empty-volume rule, written down here and nowhere else:

- truth and prediction empty: DSC is not defined. The volume forms a class of its own (``undefined`` in a summary,
  with 0 false-positive voxels) and enters no mean.
- truth empty, prediction not: DSC is 0 and the false-positive voxels are reported.
- truth not empty, prediction empty: DSC is 0 by the formula.
- the surface DSC follows the same rule; a surface distance needs two surfaces, a volume difference a truth.
- a prediction with NaN or Inf is an error, never a DSC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.errors import PipelineError
from pipeline.scoring.results import VolumeScore

Mask = NDArray[np.bool_]

TENTHS = 10
TOLERANCE_MM = 2.0
"""Of the surface DSC: surfaces nearer to each other count as one."""
MARKED = 0.01
"""Probability from which a voxel counts in the calibration: the others are so many that they would hide any error."""


def as_mask(volume: NDArray[Any], name: str) -> Mask:
    """A volume of 0 and 1, (H, W, D), as booleans; messages call it by ``name``."""
    if not ((volume == 0) | (volume == 1)).all():
        raise PipelineError(
            f"{name}: values from {volume.min()} to {volume.max()} (expected 0 and 1; NaN or Inf has no DSC). "
            "Threshold it first."
        )
    return volume.astype(np.bool_)


def score_volume(
    patient: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: tuple[float, float, float] | None = None,
) -> VolumeScore:
    """DSC, surface distances, volume difference and voxel counts of one volume.

    DSC = 2 TP / (2 TP + FP + FN) (Dice 1945). ``hd95_px`` is medpy's: the 95th percentile of the distances of both
    surfaces to each other, in voxels. Where the spacing is known, ``hd95_mm`` is MONAI's: the larger of the two
    directions' 95th percentiles, in mm. ``surface_dice_2mm`` is MONAI's normalised surface DSC at 2 mm (Nikolov et al.,
    J Med Internet Res 23, 2021).

    Args:
        patient: The patient's id.
        prediction: (H, W, D), 0 and 1.
        truth: (H, W, D), 0 and 1.
        spacing: Distance of rows, columns and slices in mm; None where it is not known, as of the published slices.

    Raises:
        PipelineError: The shapes differ, or either is no binary volume.

    Example:
        >>> truth = np.zeros((4, 4, 2), np.uint8)
        >>> truth[1:3, 1:3] = 1
        >>> score_volume("patient", truth, truth).dsc
        1.0
    """
    if prediction.shape != truth.shape:
        raise PipelineError(
            f"Patient {patient}: prediction of shape {prediction.shape}, truth of {truth.shape} (expected one grid)."
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
        dsc=_ratio(2 * tp, 2 * tp + fp + fn),
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
    """Both masks in the box that holds both, and a rim of air: to crop to it changes no distance of surfaces."""
    box = next(iter(find_objects((predicted | true).astype(np.uint8))), np.s_[:0, :0, :0])
    return np.pad(predicted[box], 1), np.pad(true[box], 1)


def _hd95_px(predicted: Mask, true: Mask) -> float | None:
    if not (predicted.any() and true.any()):
        return None
    from medpy.metric.binary import hd95

    return float(hd95(predicted, true))


def _surfaces_mm(predicted: Mask, true: Mask, spacing: tuple[float, float, float]) -> tuple[float | None, float | None]:
    """HD95 in mm and surface DSC at ``TOLERANCE_MM``."""
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
    """Number, TP, FP and FN of each slice of two masks (H, W, D), 0 and 1; the lowest has the number ``first``."""
    predicted, true = as_mask(prediction, "prediction"), as_mask(truth, "truth")
    counts = (np.count_nonzero(each, axis=(0, 1)) for each in (predicted & true, predicted & ~true, true & ~predicted))
    return tuple(
        (number, int(tp), int(fp), int(fn)) for number, (tp, fp, fn) in enumerate(zip(*counts, strict=True), first)
    )


def reliability(probability: NDArray[np.floating[Any]], truth: NDArray[Any]) -> tuple[tuple[int, float, int], ...]:
    """Counts for a reliability diagram, by tenths of probability, of voxels that are ``MARKED`` at all.

    ``probability`` is (H, W, D), 0 to 1, ``truth`` (H, W, D), 0 and 1. The counts of each tenth are its voxels, the sum
    of their probabilities and the lesion voxels among them.
    """
    marked = probability >= MARKED
    values = probability[marked].astype(np.float64)
    tenth = np.minimum((values * TENTHS).astype(np.intp), TENTHS - 1)
    sums = (None, values, as_mask(truth, "truth")[marked])
    voxels, expected, lesion = (np.bincount(tenth, weights=each, minlength=TENTHS) for each in sums)
    return tuple((int(n), float(p), int(t)) for n, p, t in zip(voxels, expected, lesion, strict=True))
