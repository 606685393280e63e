"""Compare DSC with two independent implementations, and check the score of an empty prediction.

    python -m stress.numbers --count 1000 --seed 0 --manifest data_manifest

This prints one line for each kind of masks: tried, failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from medpy.metric.binary import dc
from monai.metrics import compute_dice

from pipeline.cohort.manifest import Volume, read_manifest, select
from pipeline.imaging.nifti import load_label
from pipeline.scoring.metrics import score_volume

NEAR = 1e-6


def pair(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random prediction and truth, both (H, W, D) of bool.

    Args:
        kind: ``random``, ``one voxel`` (one of the masks has one voxel) or ``empty`` (one of the masks is empty).
        rng: The source of random numbers.
    """
    shape = tuple(rng.integers(1, 9, 3))
    masks = [rng.random(shape) < rng.choice([0.01, 0.1, 0.5, 0.95]) for _ in range(2)]
    if kind == "one voxel":
        masks[rng.integers(2)] = np.arange(np.prod(shape)).reshape(shape) == rng.integers(np.prod(shape))
    elif kind == "empty":
        masks[rng.integers(2)] = np.zeros(shape, bool)
    return masks[0], masks[1]


def agrees(prediction: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the DSC is equal to those of MedPy and MONAI. Two empty masks have no DSC, while MONAI gives 1."""
    own = score_volume("p", prediction, truth).dsc
    if not prediction.any() and not truth.any():
        return own is None
    one, other = torch.from_numpy(prediction)[None, None], torch.from_numpy(truth)[None, None]
    monai = float(compute_dice(one, other, ignore_empty=False))
    return own is not None and abs(own - dc(prediction, truth)) <= NEAR and abs(own - monai) <= NEAR


def nothing_scores_0(volumes: list[Volume]) -> dict[str, tuple[int, int]]:
    """Score empty predictions: DSC must be 0 for each patient with a lesion, and missing for each one without."""
    failed = 0
    for volume in volumes:
        truth = load_label(volume.label)
        failed += score_volume(volume.patient, np.zeros_like(truth), truth).dsc != (0.0 if truth.any() else None)
    return {"predicting nothing, patients": (len(volumes), failed)}


def numbers(count: int, seed: int) -> dict[str, tuple[int, int]]:
    """Compare the DSC of random masks with two other implementations.

    Args:
        count: The number of pairs of masks, all kinds together.
        seed: The random seed of the masks.

    Returns:
        Kind of masks -> (tried, failed).
    """
    rng, found = np.random.default_rng(seed), {}
    for kind in ("random", "one voxel", "empty"):
        tried = count // 3
        found[f"DSC, {kind}"] = (tried, sum(not agrees(*pair(kind, rng)) for _ in range(tried)))
    return found


def main() -> int:
    """Run the harness, print one line for each kind, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--manifest", type=Path, help="folder of a manifest, whose patients get an empty prediction")
    args = parser.parse_args()
    found = numbers(args.count, args.seed)
    if args.manifest:
        found |= nothing_scores_0(list(select(read_manifest(args.manifest), "all")))
    for kind, (tried, failed) in found.items():
        print(f"| {kind}, seed {args.seed} | {tried} | {failed} |")
    return any(failed for _, failed in found.values())


if __name__ == "__main__":
    sys.exit(main())
