"""Agreement of a predicted volume with its truth, and summaries over volumes. Pure: arrays in, records out.

The empty-volume rule, written down here and nowhere else:

- truth and prediction empty: DSC is not defined. The volume forms a class of its own (``undefined`` in a summary,
  with 0 false-positive voxels) and enters no mean.
- truth empty, prediction not: DSC is 0 and the false-positive voxels are reported.
- truth not empty, prediction empty: DSC is 0 by the formula.
- a prediction with NaN or Inf is an error, never a DSC.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.records import VolumeScore

Mask = NDArray[np.bool_]

BOOTSTRAP_RESAMPLES = 10_000
TENTHS = 10
MARKED = 0.01
"""Probability from which a voxel counts in the calibration: the others are so many that they would hide any error."""


def as_mask(volume: NDArray[Any], name: str) -> Mask:
    """A volume of 0 and 1 as booleans.

    Args:
        volume: (H, W, D), any number type or bool.
        name: what it is, for the error.

    Raises:
        PipelineError: NaN, Inf, or a value other than 0 and 1: an unbinarised 0/255 mask would score as empty or full.
    """
    if volume.dtype == np.bool_:
        return volume
    if not np.isfinite(volume).all():
        raise PipelineError(
            f"{name}: NaN or Inf among the voxels (expected 0 and 1). A prediction like this has no DSC."
        )
    if not ((volume == 0) | (volume == 1)).all():
        raise PipelineError(
            f"{name}: values from {volume.min()} to {volume.max()} (expected 0 and 1). Threshold it first."
        )
    return volume.astype(np.bool_)


def largest_component(mask: NDArray[Any]) -> Mask:
    """The largest connected component of a volume, 26 neighbours; of equal ones the first in memory order.

    Args:
        mask: (H, W, D), 0 and 1.

    Returns:
        (H, W, D) bool, empty where ``mask`` is.
    """
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

    Raises:
        PipelineError: fewer than three slices.
    """
    if truth.shape[2] < 3:
        raise PipelineError(
            f"{truth.shape[2]} slices (the reference protocol leaves out both end slices). Score natively."
        )
    inner = slice(1, -1)
    return largest_component(probability[..., inner] >= 0.5), as_mask(truth[..., inner], "truth")


def score_volume(patient: str, prediction: NDArray[Any], truth: NDArray[Any]) -> VolumeScore:
    """DSC, HD95 and voxel counts of one volume.

    DSC = 2 TP / (2 TP + FP + FN) (Dice 1945). HD95 is medpy's: the 95th percentile of the distances of both surfaces to
    each other, in voxels, since the spacing of the published slices is unknown.

    Args:
        patient: patient id.
        prediction: (H, W, D), 0 and 1.
        truth: (H, W, D), 0 and 1.

    Raises:
        PipelineError: shapes differ, or either is no binary volume.
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
    return VolumeScore(
        patient=patient,
        dsc=_ratio(2 * tp, 2 * tp + fp + fn),
        hd95_px=_hd95_px(predicted, true),
        sensitivity=_ratio(tp, tp + fn),
        precision=_ratio(tp, tp + fp),
        tp_voxels=tp,
        fp_voxels=fp,
        fn_voxels=fn,
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _hd95_px(predicted: Mask, true: Mask) -> float | None:
    if not (predicted.any() and true.any()):
        return None
    from medpy.metric.binary import hd95

    # Surfaces lie inside the box of both masks: cropping to it (and a rim of air) changes no distance.
    either = np.pad(predicted | true, 1)
    box = tuple(
        slice(max(int(where.min()) - 1, 0), int(where.max()) + 2)
        for where in (np.flatnonzero(either.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    return float(hd95(np.pad(predicted, 1)[box], np.pad(true, 1)[box]))


def reliability(probability: NDArray[np.floating[Any]], truth: NDArray[Any]) -> tuple[tuple[int, float, int], ...]:
    """Counts for a reliability diagram, by tenths of probability, of voxels that are ``MARKED`` at all.

    Args:
        probability: (H, W, D), 0 to 1.
        truth: (H, W, D), 0 and 1.

    Returns:
        For each tenth: voxels, sum of their probabilities, lesion voxels among them.
    """
    marked = probability >= MARKED
    values = probability[marked].astype(np.float64)
    tenth = np.minimum((values * TENTHS).astype(np.intp), TENTHS - 1)
    sums = (None, values, as_mask(truth, "truth")[marked])
    voxels, expected, lesion = (np.bincount(tenth, weights=each, minlength=TENTHS) for each in sums)
    return tuple((int(n), float(p), int(t)) for n, p, t in zip(voxels, expected, lesion, strict=True))


def calibration(scores: Sequence[VolumeScore]) -> dict[str, Any] | None:
    """How far probabilities are frequencies, over all voxels of all volumes that are ``MARKED`` at all.

    Args:
        scores: with ``reliability``.

    Returns:
        ``expected_calibration_error`` (Naeini, Cooper, Hauskrecht, AAAI 2015; ten bins of equal width) and for each bin
        its ``voxels``, ``probability`` (mean) and ``lesion`` (share that is lesion), None where it is empty; None where
        no reliability is known or no voxel is marked.
    """
    known = [score.reliability for score in scores if score.reliability]
    voxels, expected, lesion = np.sum(known, axis=0).T if known else np.zeros((3, TENTHS))
    if not voxels.sum():
        return None
    bins = [
        {"voxels": int(n), "probability": p / n if n else None, "lesion": t / n if n else None}
        for n, p, t in zip(voxels.tolist(), expected.tolist(), lesion.tolist(), strict=True)
    ]
    error = float(np.abs(expected - lesion).sum() / voxels.sum())
    return {"expected_calibration_error": error, "marked_from": MARKED, "bins": bins}


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = BOOTSTRAP_RESAMPLES) -> tuple[float, float]:
    """95 % interval of the mean by the percentile bootstrap over volumes (Efron 1979).

    Args:
        values: one a volume, at least one.
        seed: of the resampling.
        resamples: how many means are drawn.

    Returns:
        2.5th and 97.5th percentile of the resampled means.
    """
    draws = np.random.default_rng(seed).choice(np.asarray(values, dtype=float), size=(resamples, len(values)))
    low, high = np.percentile(draws.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def paired(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> dict[str, Any]:
    """How a second run differs from a first on the patients that both have a DSC of.

    Args:
        first: patient id -> DSC.
        second: likewise.
        seed: of the bootstrap.

    Returns:
        ``patients`` (how many both have), ``mean`` of second - first, ``mean_95`` (bootstrap over patients), ``better``
        and ``worse`` (how many at all), ``wilcoxon_p`` (signed-rank test, Wilcoxon 1945, two-sided, patients without a
        difference left out); None where there is nothing to compute it from.
    """
    from scipy.stats import wilcoxon

    apart = [second[patient] - first[patient] for patient in first if patient in second]
    differing = [difference for difference in apart if difference]
    low, high = bootstrap_interval(apart, seed) if apart else (None, None)
    return {
        "patients": len(apart),
        "mean": float(np.mean(apart)) if apart else None,
        "mean_95": [low, high],
        "better": sum(difference > 0 for difference in apart),
        "worse": sum(difference < 0 for difference in apart),
        "wilcoxon_p": float(wilcoxon(differing).pvalue) if differing else None,
    }


def pass_agreement(masks: Sequence[NDArray[Any]]) -> float | None:
    """Mean DSC between every two passes' masks: 1 where all agree, near 0 where each marks something else.

    Source: Roy, Conjeti, Navab, Wachinger, NeuroImage 195 (2019), there of Monte Carlo samples; here of networks and
    flips. One number for a volume, known without its truth.

    Args:
        masks: two or more of one shape, 0 and 1.

    Returns:
        0 to 1; None for fewer than two masks, or where no pass marks a voxel.
    """
    pairs = [(one.astype(bool), two.astype(bool)) for one, two in itertools.combinations(masks, 2)]
    agreements = [_ratio(2 * int((one & two).sum()), int(one.sum()) + int(two.sum())) for one, two in pairs]
    known = [agreement for agreement in agreements if agreement is not None]
    return float(np.mean(known)) if known else None


def summarise(scores: Sequence[VolumeScore], seed: int = 0) -> dict[str, Any]:
    """Mean, median and interval over volumes; nothing is dropped silently.

    Args:
        scores: one a volume.
        seed: of the bootstrap.

    Returns:
        ``volumes`` (all), ``scored`` (with a DSC), ``undefined`` (ids of those without, by the empty-volume rule),
        ``false_positive_volumes`` (ids whose truth is empty and whose prediction is not), and the statistics of the
        scored ones, None where there are none.
    """
    dsc = [score.dsc for score in scores if score.dsc is not None]
    hd95 = [score.hd95_px for score in scores if score.hd95_px is not None]
    low, high = bootstrap_interval(dsc, seed) if dsc else (None, None)
    return {
        "volumes": len(scores),
        "scored": len(dsc),
        "undefined": [score.patient for score in scores if score.dsc is None],
        "false_positive_volumes": [s.patient for s in scores if not s.lesion_voxels and s.predicted_voxels],
        "dsc_mean": float(np.mean(dsc)) if dsc else None,
        "dsc_median": float(np.median(dsc)) if dsc else None,
        "dsc_mean_95": [low, high],
        "dsc_min": min(dsc, default=None),
        "hd95_px_median": float(np.median(hd95)) if hd95 else None,
        "tp_voxels": sum(score.tp_voxels for score in scores),
        "fp_voxels": sum(score.fp_voxels for score in scores),
        "fn_voxels": sum(score.fn_voxels for score in scores),
        "calibration": calibration(scores),
        "bootstrap": {"resamples": BOOTSTRAP_RESAMPLES, "seed": seed},
    }
