"""Statistics over volumes: summaries, bootstrap intervals, paired differences, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.scoring.metrics import MARKED
from pipeline.scoring.results import VolumeScore
from pipeline.scripts.manifest import person

BOOTSTRAP_RESAMPLES = 10_000


def calibration(scores: Sequence[VolumeScore]) -> dict[str, Any] | None:
    """How well probabilities match the frequency of lesion, over all volumes; None if no probability is known.

    Voxels with a probability below ``MARKED`` are not counted.

    Args:
        scores: One score for each volume.

    Returns:
        ``expected_calibration_error`` (0 to 1), ``marked_from`` (the lowest probability that counts), and ``bins``: for
        each tenth of probability its voxels, mean probability and share of lesion.
    """
    known = [score.reliability for score in scores if score.reliability]
    if not known or not np.any(known):
        return None
    tenths = np.sum(known, axis=0)
    bins = [
        {"voxels": int(n), "probability": p / n if n else None, "lesion": t / n if n else None}
        for n, p, t in tenths.tolist()
    ]
    voxels, expected, lesion = tenths.T
    error = float(np.abs(expected - lesion).sum() / voxels.sum())
    return {"expected_calibration_error": error, "marked_from": MARKED, "bins": bins}


def bootstrap_interval(values: Sequence[float], seed: int, patients: Sequence[str] = ()) -> list[float] | list[None]:
    """The 95 % interval of the mean: its lower and upper end, or None and None without values.

    Source: Efron 1979, percentile bootstrap over persons. All exams of a person are drawn together.

    Args:
        values: One value for each volume.
        seed: Seed of the bootstrap, 0 or more.
        patients: Patient id of each value; empty if all are different persons.
    """
    if not values:
        return [None, None]
    persons = [person(patient) for patient in patients] or range(len(values))
    numbers = {one: number for number, one in enumerate(dict.fromkeys(persons))}
    of_value = [numbers[one] for one in persons]
    sums, exams = np.bincount(of_value, values), np.bincount(of_value)
    draws = np.random.default_rng(seed).choice(len(sums), size=(BOOTSTRAP_RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / exams[draws].sum(axis=1)
    ends: list[float] = np.percentile(means, (2.5, 97.5)).tolist()
    return ends


def paired(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> dict[str, Any]:
    """How the DSC of a second run differs from a first, over all patients that have a DSC in both.

    Args:
        first: Patient id -> DSC in the first run.
        second: Patient id -> DSC in the second run.
        seed: Seed of the bootstrap.

    Returns:
        ``patients`` (number of common patients), ``mean`` (of second - first), ``mean_95`` (bootstrap over persons),
        ``better`` and ``worse`` (numbers of patients), and ``wilcoxon_p`` (signed-rank test, Wilcoxon 1945, two-sided,
        of the mean difference of each person, without persons of equal DSC). A value is None if there are no patients
        to compute it from.

    Examples:
        >>> import pipeline
        >>> pipeline.paired({"a": 0.5, "b": 0.5}, {"a": 0.75, "b": 0.5})["mean"]
        0.125
    """
    from scipy.stats import wilcoxon

    common = [patient for patient in first if patient in second]
    apart = [second[patient] - first[patient] for patient in common]
    by_person: dict[str, list[float]] = {}
    for patient, difference in zip(common, apart, strict=True):
        by_person.setdefault(person(patient), []).append(difference)
    differing = [mean for mean in map(fmean, by_person.values()) if mean]
    return {
        "patients": len(apart),
        "mean": float(np.mean(apart)) if apart else None,
        "mean_95": bootstrap_interval(apart, seed, common),
        "better": sum(difference > 0 for difference in apart),
        "worse": sum(difference < 0 for difference in apart),
        "wilcoxon_p": float(wilcoxon(differing).pvalue) if differing else None,
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def summarise(scores: Sequence[VolumeScore], seed: int = 0) -> dict[str, Any]:
    """Statistics over all volumes: mean, median, interval, counts and calibration.

    Args:
        scores: One score for each volume.
        seed: Seed of the bootstrap.

    Returns:
        ``volumes`` (number of all), ``scored`` (number with a DSC), ``undefined`` (ids without a DSC, because truth and
        prediction are empty), ``false_positive_volumes`` (ids with an empty truth and a prediction that is not), and
        the statistics of scored volumes. A statistic is None if no volume has the value.

    Examples:
        >>> import pipeline
        >>> scores = pipeline.read_scores("runs/basic_unet")
        >>> summary = pipeline.summarise(scores)
        >>> print(f"mean DSC {summary['dsc_mean']:.4f} of {summary['volumes']} volumes")
        mean DSC ... of ... volumes
    """
    dsc = [score.dsc for score in scores if score.dsc is not None]
    return {
        "volumes": len(scores),
        "scored": len(dsc),
        "undefined": [score.patient for score in scores if score.dsc is None],
        "false_positive_volumes": [s.patient for s in scores if not s.lesion_voxels and s.predicted_voxels],
        "dsc_mean": float(np.mean(dsc)) if dsc else None,
        "dsc_median": float(np.median(dsc)) if dsc else None,
        "dsc_mean_95": bootstrap_interval(dsc, seed, [score.patient for score in scores if score.dsc is not None]),
        "dsc_min": min(dsc, default=None),
        "hd95_px_median": _median(score.hd95_px for score in scores),
        "hd95_mm_median": _median(score.hd95_mm for score in scores),
        "surface_dice_2mm_median": _median(score.surface_dice_2mm for score in scores),
        "volume_difference_median": _median(score.volume_difference for score in scores),
        "tp_voxels": sum(score.tp_voxels for score in scores),
        "fp_voxels": sum(score.fp_voxels for score in scores),
        "fn_voxels": sum(score.fn_voxels for score in scores),
        "calibration": calibration(scores),
        "bootstrap": {"resamples": BOOTSTRAP_RESAMPLES, "seed": seed},
    }
