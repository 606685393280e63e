"""Compare component rules, thresholds, smoothing and flips on patients that are predicted out of fold.

This trains nothing, and writes only the file of ``--csv``. A rule is chosen on ``--split training``, so the published
validation patients do not influence the choice directly. The networks of other folds have learned from them.

``python benchmarks/postprocessing.py --bundle bundles/basic_unet --folds runs/crossval_basic_unet_cpu_quarter``
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measure import print_table
from medpy.metric.binary import dc
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.cohort.manifest import Volume, read_manifest, select
from pipeline.imaging.nifti import load_label
from pipeline.model.predictor import Predictor, overlapped
from pipeline.scoring.evaluation import bundles_for, load_folds

Probability = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rule = Callable[[Probability], Mask]

NEIGHBOURS = np.ones((3, 3, 3))
MOVED = 0.003
"""The difference in DSC above which a patient counts as better or worse."""


def components(
    probability: Probability, threshold: float = 0.5, power: float | None = 0, share: float | None = None
) -> Mask:
    """The mask of the heaviest connected components (26 neighbours) of the voxels that reach a threshold.

    Args:
        probability: The probability of a lesion, (H, W, D), 0 to 1.
        threshold: The lowest probability of a marked voxel.
        power: The weight of a component is the sum of its probabilities to this power, so 0 counts voxels. None keeps
            all components.
        share: Components with at least this share of the largest weight are kept, 0 to 1. None keeps only the heaviest.
    """
    marked = probability >= threshold
    if power is None:
        return marked
    labels, count = ndimage.label(marked, structure=NEIGHBOURS)
    if count < 2:
        return marked
    weights = ndimage.sum_labels(probability.astype(np.float64) ** power, labels, np.arange(1, count + 1))
    kept = [int(weights.argmax())] if share is None else np.flatnonzero(weights >= share * weights.max())
    return np.isin(labels, 1 + np.asarray(kept))


def large(probability: Probability, voxels: int) -> Mask:
    """The mask of all components of at least ``voxels`` voxels, or of the largest one if all are smaller."""
    labels, count = ndimage.label(probability >= 0.5, structure=NEIGHBOURS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = np.flatnonzero(sizes >= min(voxels, sizes.max(initial=0)))
    return np.isin(labels, 1 + kept)


def smoothed(probability: Probability, weight: float) -> Mask:
    """The largest component after smoothing: each slice takes the share ``weight`` from each of its two neighbours."""
    kernel = np.array([weight, 1 - 2 * weight, weight])
    return components(ndimage.convolve1d(probability, kernel, axis=2, mode="nearest"))


def filled(probability: Probability) -> Mask:
    """The largest component, with its holes filled slice by slice."""
    mask = components(probability)
    return np.stack([ndimage.binary_fill_holes(mask[..., z]) for z in range(mask.shape[2])], axis=2)


RULES: dict[str, Rule] = {
    "the largest component": components,
    "every component": partial(components, power=None),
    **{f"the component of the largest sum of p^{power}": partial(components, power=power) for power in (1, 4, 16)},
    **{f"components of {share} of the largest": partial(components, share=share) for share in (0.1, 0.3, 0.5)},
    **{
        f"components of {share} of the largest sum of p^4": partial(components, power=4, share=share)
        for share in (0.1, 0.3, 0.5)
    },
    **{f"components of at least {voxels} voxels": partial(large, voxels=voxels) for voxels in (50, 200, 1000)},
    **{
        f"threshold {threshold}, the largest": partial(components, threshold=threshold)
        for threshold in (0.2, 0.3, 0.4, 0.6, 0.7)
    },
    **{f"slices smoothed by {weight}, the largest": partial(smoothed, weight=weight) for weight in (0.15, 0.25)},
    "holes filled, the largest": filled,
}


def main() -> None:
    """Predict every patient with and without flips, apply every rule to both, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_folds"), help="folder of a manifest with folds")
    parser.add_argument(
        "--bundle", type=Path, action="append", required=True, help="folder of a bundle; repeat it to average"
    )
    parser.add_argument(
        "--folds", type=Path, action="append", required=True, help="folder of its folds, one for each bundle"
    )
    parser.add_argument("--split", default="training", help="section to score (default: training)")
    parser.add_argument("--csv", type=Path, help="file for the DSC of each patient by each rule")
    args = parser.parse_args()
    manifest = read_manifest(args.manifest)
    volumes = [volume for volume in select(manifest, args.split) if volume.lesion_voxels]
    groups = [load_folds(*pair, manifest.folds) for pair in zip(args.bundle, args.folds, strict=True)]

    def tried(volume: Volume) -> dict[tuple[str, bool], float]:
        bundles, truth = bundles_for(groups, volume), load_label(volume.label)
        found = {}
        for flips in (False, True):
            probability = Predictor(bundles, flips=flips).predict(volume.image).probability
            found |= {(name, flips): dc(rule(probability), truth) for name, rule in RULES.items()}
        return found

    scores = overlapped(tried, volumes, "rules")
    columns = {key: [score[key] for score in scores] for key in scores[0]}
    if args.csv:
        import pandas as pd

        table = pd.DataFrame({f"{name}{', flips' * flips}": column for (name, flips), column in columns.items()})
        table.insert(0, "patient", [volume.patient for volume in volumes])
        table.to_csv(args.csv, index=False)
    first = next(iter(RULES))
    rows = []
    for name in RULES:
        row = [name]
        for flips in (False, True):
            column, base = columns[name, flips], columns[first, flips]
            apart = [value - beside for value, beside in zip(column, base, strict=True)]
            row += [f"{statistics.mean(column):.4f} ({statistics.median(column):.4f})"]
            row += [f"{sum(value > MOVED for value in apart)}, {sum(value < -MOVED for value in apart)}"]
        rows.append(row)
    title = f"{' + '.join(folder.name for folder in args.bundle)}, {len(volumes)} patients of {args.split}, out of fold"
    print_table(title, ["rule", "mean (median) DSC", "better, worse", "with flips", "better, worse"], rows)


if __name__ == "__main__":
    main()
